"""Knows the answer better the longer it listens: an idealized TRAIL (arXiv 2410.01035), which reads the length
still to come from the model's own embeddings after each token, so that its error shrinks while the request talks."""

from __future__ import annotations

from math import exp

from minivllm.component import require
from minivllm.request import RequestView
from minivllm.scheduler.chance import standard_normal
from minivllm.scheduler.predictors.base import LengthPredictor


class RefiningOracle(LengthPredictor):
    """Of the remaining tokens it says a lognormal multiple whose sigma falls to 0 as the answer nears its end.

    At progress p (said over `max_tokens`, which is the answer where the end token is ignored) the prediction is
    said + remaining * exp(sigma * (1 - p) * z), z drawn once a request: who starts too long stays too long, by less.

    Args:
        sigma: of the factor's logarithm on arrival; 0 is the oracle.
        seed: of the draws.
    """

    refines = True

    def __init__(self, sigma: float = 0.5, seed: int = 0) -> None:
        valid = isinstance(sigma, (int, float)) and sigma >= 0
        require(valid, "length_predictor.sigma", sigma, "0 or more")
        self._sigma = sigma
        self._seed = seed

    def predict(self, request: RequestView) -> int:
        said = request.num_output_tokens
        left = request.max_tokens - said
        z = standard_normal(self._seed, request.request_id)
        factor = exp(self._sigma * left / request.max_tokens * z)
        return said + max(1, round(left * factor))
