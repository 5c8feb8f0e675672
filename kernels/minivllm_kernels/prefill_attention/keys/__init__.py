"""How a program of prefill attention walks over its keys."""
