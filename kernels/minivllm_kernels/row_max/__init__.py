"""The largest value of each row and its place: greedy sampling."""
