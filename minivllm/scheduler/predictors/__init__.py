"""How long an answer will be, said before it is there."""
