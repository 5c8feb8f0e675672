"""The gated activation of Llama-family MLPs."""
