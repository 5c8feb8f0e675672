"""Compose, run, record: from overrides on the command line to tables on disk. The only floor that knows Hydra."""
