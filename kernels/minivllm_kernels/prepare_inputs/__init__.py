"""A step's inputs, made on the device from the rows that the runner keeps there."""
