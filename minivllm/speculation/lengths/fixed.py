"""Always as many drafts as there may be."""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.speculation.lengths.base import DraftCandidate, DraftLengthPolicy


class Fixed(DraftLengthPolicy):
    """`speculation.num_draft_tokens`, whatever it costs."""

    def choose(self, candidates: Sequence[DraftCandidate], num_prefill_tokens: int) -> Sequence[int]:
        return [candidate.limit for candidate in candidates]
