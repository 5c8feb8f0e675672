"""Where the runs of a sweep run: on this machine, one at a time or several, or on a cluster."""
