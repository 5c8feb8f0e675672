"""Step times that a theory can be held against: a constant, and so much a token and a request."""

from __future__ import annotations

import math

from minivllm.component import require
from minivllm.simulation.base import StepTimeTarget, StepWork


class Constant:
    """`step_s + token_s * tokens + request_s * requests`.

    Args:
        target: what is stood for; nothing of it matters here.
        step_s: of every step that computes something.
        token_s: a token.
        request_s: a request that gets tokens.
    """

    def __init__(
        self, *, target: StepTimeTarget, step_s: float = 0.01, token_s: float = 0.0, request_s: float = 0.0
    ) -> None:
        for key, value in (("step_s", step_s), ("token_s", token_s), ("request_s", request_s)):
            valid = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
            require(valid, f"step_time.{key}", value, "0 or more")
        self._step_s, self._token_s, self._request_s = float(step_s), float(token_s), float(request_s)

    def step_s(self, work: StepWork) -> float:
        num_requests = work.num_prefill_requests + work.num_decode_tokens
        return self._step_s + self._token_s * work.num_tokens + self._request_s * num_requests
