"""An engine without a device: how long each step would take, by a model of it."""
