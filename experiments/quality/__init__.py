"""What a lossy part costs: the text, the answers and the tokens of a point, held against the unquantized model's."""
