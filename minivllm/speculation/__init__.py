"""Speculative decoding: who drafts (one drafter a file), how much is drafted (`lengths`), and what is accepted."""
