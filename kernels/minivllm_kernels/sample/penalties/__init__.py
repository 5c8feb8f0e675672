"""Which tokens a row has seen, and how often."""
