"""What becomes of a victim's K/V."""
