"""What the engine is asked to do: arrivals x lengths x prompts, made from seeds before the clock starts."""
