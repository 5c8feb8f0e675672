"""Whose blocks are taken when there are too few."""
