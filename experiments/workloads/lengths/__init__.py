"""How long prompts and outputs are: each by a distribution of its own, or both from pairs that were counted."""
