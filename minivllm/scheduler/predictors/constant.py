"""Says the same of everybody: with it, an order by length is an order by arrival. A control."""

from __future__ import annotations

from minivllm.component import is_count, require
from minivllm.request import RequestView
from minivllm.scheduler.predictors.base import LengthPredictor


class Constant(LengthPredictor):
    """One length for all.

    Args:
        num_tokens: that length.
    """

    def __init__(self, num_tokens: int = 256) -> None:
        require(is_count(num_tokens), "length_predictor.num_tokens", num_tokens, "1 or more")
        self._num_tokens = num_tokens

    def predict(self, request: RequestView) -> int:
        return self._num_tokens
