"""A verification's inputs: each request brings its newest token and its drafts."""
