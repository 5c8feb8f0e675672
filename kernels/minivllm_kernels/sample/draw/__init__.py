"""The thresholds of a row, the chunk in which its draw falls, and the token."""
