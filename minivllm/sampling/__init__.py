"""From logits to tokens: a stateless sampler, so that a batch, a replay or a preemption cannot change a draw.

`random` hashes (seed, position) to a uniform and needs no torch; `filters` says which tokens may be drawn; `batch`
turns the requests of a step into tensors; `sampler` puts them together. For speculation, `drafts` draws what a model
proposes, and `verify` says how much of it stands. Import the modules: this package imports none of them, so that the
host wing can have `random` alone.
"""
