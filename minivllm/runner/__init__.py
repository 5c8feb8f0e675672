"""The device wing's owner: rows, K/V tensors, the forward pass of a step."""
