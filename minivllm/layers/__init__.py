"""The small parts of a decoder that are no matrix product: norm and activation, in plain PyTorch."""
