"""Speed, memory and error of the operators, measured side by side."""
