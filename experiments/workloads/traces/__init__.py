"""Recorded traffic: readers of public traces and of our own two formats, one line of a file at a time."""
