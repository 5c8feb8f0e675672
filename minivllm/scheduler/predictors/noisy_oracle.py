"""Knows the answer, but for a factor: how good must a prediction be?"""

from __future__ import annotations

from math import exp

from minivllm.component import require
from minivllm.request import RequestView
from minivllm.scheduler.chance import standard_normal
from minivllm.scheduler.predictors.base import LengthPredictor


class NoisyOracle(LengthPredictor):
    """Says `max_tokens` times a lognormal factor of median 1, drawn as a hash of (seed, request); exact knowledge where
    the end token is ignored. Half of the predictions are too short, half too long.

    Args:
        sigma: of the factor's logarithm; 0 is the oracle, 0.7 is within a factor of 2 in two of three cases.
        seed: of the draws.
    """

    def __init__(self, sigma: float = 0.5, seed: int = 0) -> None:
        valid = isinstance(sigma, (int, float)) and sigma >= 0
        require(valid, "length_predictor.sigma", sigma, "0 or more")
        self._sigma = sigma
        self._seed = seed

    def predict(self, request: RequestView) -> int:
        return max(1, round(request.max_tokens * exp(self._sigma * standard_normal(self._seed, request.request_id))))
