"""Learns from what was: requests of one client with prompts of about one length tend to have answers of one length
(clients run applications: BurstGPT, arXiv 2401.17644)."""

from __future__ import annotations

from collections import deque
from math import ceil
from statistics import fmean

from minivllm.component import is_count, require
from minivllm.request import RequestView
from minivllm.scheduler.predictors.base import LengthPredictor


class History(LengthPredictor):
    """The mean, or a quantile, of the answers that ended last in the request's bucket: the same client, and a prompt
    of as many binary digits.

    Args:
        quantile: in (0, 1), above 0.5 to err on the long side; null takes the mean.
        window: answers that a bucket remembers.
        prior_tokens: what is said before anything ended.
        prior_weight: answers that the prior counts for in each bucket.
    """

    def __init__(
        self,
        quantile: float | None = None,
        window: int = 100,
        prior_tokens: int = 256,
        prior_weight: int = 1,
    ) -> None:
        valid = isinstance(quantile, (int, float)) and 0 < quantile < 1
        require(quantile is None or valid, "length_predictor.quantile", quantile, "null or in (0, 1)")
        require(is_count(window), "length_predictor.window", window, "1 or more")
        require(is_count(prior_tokens), "length_predictor.prior_tokens", prior_tokens, "1 or more")
        require(is_count(prior_weight), "length_predictor.prior_weight", prior_weight, "1 or more")
        self._quantile = quantile
        self._window = window
        self._prior = [prior_tokens] * prior_weight
        self._buckets: dict[tuple[int, int], deque[int]] = {}

    def predict(self, request: RequestView) -> int:
        lengths = [*self._prior, *self._buckets.get(_bucket(request), ())]
        if self._quantile is None:
            return max(1, round(fmean(lengths)))
        return sorted(lengths)[ceil(self._quantile * len(lengths)) - 1]

    def on_finish(self, request: RequestView) -> None:
        if request.num_output_tokens:
            self._buckets.setdefault(_bucket(request), deque(maxlen=self._window)).append(request.num_output_tokens)


def _bucket(request: RequestView) -> tuple[int, int]:
    return request.client_id, request.num_prompt_tokens.bit_length()
