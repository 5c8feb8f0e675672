"""The product of activations and a weight in 4 bits."""
