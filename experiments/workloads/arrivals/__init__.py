"""When requests come: a closed loop, a process with a rate, or times from a file."""
