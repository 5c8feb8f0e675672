"""Who sends the requests, and how urgent they are."""
