"""How many drafts are worth their cost: one policy a file."""
