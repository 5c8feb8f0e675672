"""Attention backends: the Protocol in `base.py`, one file an implementation."""
