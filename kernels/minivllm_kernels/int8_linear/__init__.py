"""The product of activations and a weight in 8 bits."""
