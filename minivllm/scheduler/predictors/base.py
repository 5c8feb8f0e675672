"""The seam of output lengths: what `predicted_output_tokens` of a request is."""

from __future__ import annotations

from minivllm.request import RequestView


class LengthPredictor:
    """Base of all predictors. The scheduler asks when a request arrives, and tells when it ends."""

    # True asks again before each step in which a running request is ranked.
    refines: bool = False

    def predict(self, request: RequestView) -> int:
        """Output tokens that the request will have in all, 1 or more.

        Args:
            request: on its arrival, or, for those that refine, with what it has said so far.
        """
        raise NotImplementedError

    def on_finish(self, request: RequestView) -> None:
        """A request ended with `num_output_tokens`; to learn from."""
