"""How weights are stored and multiplied: one scheme a file, behind the Protocols in `base`."""
