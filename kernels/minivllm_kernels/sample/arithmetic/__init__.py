"""Scores, weights and random bits: the device functions that the sampler's kernels share."""
