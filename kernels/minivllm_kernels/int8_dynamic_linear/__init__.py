"""The product in 8-bit integers, of activations that are rounded row by row and a weight."""
