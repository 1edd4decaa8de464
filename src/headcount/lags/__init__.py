"""The trade-off between heads and dimensions: selecting lags with heads, exact budget allocation, and saturation."""
