"""p-bit machines: number formats, attention layers and recurrent nets whose every step is rounded."""
