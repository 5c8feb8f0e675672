"""The product of activations and a weight in 16-bit floats."""
