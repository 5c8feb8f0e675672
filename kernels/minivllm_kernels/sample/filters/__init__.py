"""Top-k, top-p and min-p without a sort."""
