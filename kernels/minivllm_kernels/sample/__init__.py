"""From logits to the next token, on the device, with nothing read by the host.

`state` holds what each request wants, in rows; `reference` says what is meant; `kernel` is what the engine calls. The
folders hold the kernels' parts: `arithmetic` (scores, weights, random bits), `argmax`, `penalties` and `filters`.
"""
