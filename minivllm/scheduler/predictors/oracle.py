"""Knows the answer: the bound of what a prediction can do."""

from __future__ import annotations

from minivllm.request import RequestView
from minivllm.scheduler.predictors.base import LengthPredictor


class Oracle(LengthPredictor):
    """Says `max_tokens`: exact where the end token is ignored, as in a replayed trace, and an upper bound elsewhere."""

    def predict(self, request: RequestView) -> int:
        return request.max_tokens
