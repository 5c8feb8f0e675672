"""The product in 8-bit floats, of activations that are rounded row by row and a weight."""
