"""What a prediction still says of a request that talks on."""

from __future__ import annotations

from minivllm.request import RequestView


def remaining_output_tokens(request: RequestView) -> int:
    """Output tokens still to come by `predicted_output_tokens`, 1 or more.

    A request that has said all that was predicted, and goes on, was predicted wrongly: the prediction doubles until it
    is more than what was said. (One more token each time would put those that were most underestimated first, and they
    would stay there: Dell'Amico et al., "PSBS: practical size-based scheduling", IEEE TC 2015.) `max_tokens` is no
    bound here: of a replayed trace it is the very answer.
    """
    # As `num_output_tokens`: this is asked for every running request in every step.
    said = request.num_tokens - request.num_prompt_tokens
    left = request.predicted_output_tokens - said
    if left > 0:
        return left
    total = max(1, request.predicted_output_tokens)
    while total <= said:
        total *= 2
    return total - said
