"""The product of activations and a weight."""
