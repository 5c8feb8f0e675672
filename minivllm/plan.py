"""What crosses between the wings: a plan goes to the runner, a result comes back, a report goes to whoever watches.

The runner keeps one row a request (its tokens and its block table), so a plan says only what changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from minivllm.sampling_params import SamplingParams


@dataclass(frozen=True, kw_only=True, slots=True)
class NewRow:
    """A request that starts, or starts again after preemption: the runner makes a row for it."""

    request_id: int
    # Everything known so far: prompt, then output before a preemption.
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    sampling_params: SamplingParams
    sampling_seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TableUpdate:
    """Entries `[first, first + len(block_ids))` of a request's block table are now these."""

    request_id: int
    first: int
    block_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockCopy:
    """Copy-on-write: all that block `source` held before the step goes to block `target`. A source may be the target of
    another copy: who held it was put out since."""

    source: int
    target: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSwap:
    """All that is kept of block `block_id` goes to slot `slot` of host memory, or comes from there."""

    block_id: int
    slot: int


class Chunk(NamedTuple):
    """Tokens `[start, start + num_tokens)` of one request run in this step. Given by name."""

    request_id: int
    start: int
    num_tokens: int
    # True when the chunk reaches the newest token, so that its last logits are sampled from.
    samples: bool
    # Drafts that may follow the newest token and be verified in the same pass; a drafter may find fewer.
    num_draft_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """One step of the engine. The runner applies `released`, `new_rows`, `table_updates`, `swaps_out`, `copies` and
    `swaps_in`, in this order, then runs the chunks. What is copied, on the device or from it, is what was there before
    the step; no slot of host memory is both written and read in one.

    The usual chunk is a decode: a request's newest token, alone, without drafts. Hundreds of them may run in a step, so
    they lie side by side as numbers.
    """

    step: int
    released: tuple[int, ...]
    new_rows: tuple[NewRow, ...]
    table_updates: tuple[TableUpdate, ...]
    copies: tuple[BlockCopy, ...]
    # Requests that decode, and where their newest token stands, above 0.
    decodes: tuple[int, ...] = ()
    decode_starts: tuple[int, ...] = ()
    # All other chunks.
    others: tuple[Chunk, ...] = ()
    swaps_out: tuple[BlockSwap, ...] = ()
    swaps_in: tuple[BlockSwap, ...] = ()
    # Set where the policy chose to run nothing before this instant.
    idle_until_s: float | None = None

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """All chunks, decodes first. Made at each call."""
        decodes = (Chunk(i, start, 1, True) for i, start in zip(self.decodes, self.decode_starts, strict=True))
        return (*decodes, *self.others)

    @property
    def is_empty(self) -> bool:
        return not self.decodes and not self.others

    @property
    def num_tokens(self) -> int:
        return len(self.decodes) + sum(chunk.num_tokens for chunk in self.others)

    @property
    def num_swapped_blocks(self) -> int:
        """Blocks that move between device and host, either way."""
        return len(self.swaps_out) + len(self.swaps_in)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledTokens:
    """What came of one sampling chunk: one token, or the accepted drafts and one token more.

    `token_ids` of a chunk that drafted are the accepted drafts, then the target's own token: the correction of the
    first rejected draft, or a bonus where none was.
    """

    request_id: int
    token_ids: tuple[int, ...]
    # One {token: logprob} a token where the request asks for logprobs, else empty.
    logprobs: tuple[dict[int, float], ...] = ()
    # Set, with no tokens, when the logits were not finite.
    error: str | None = None
    # Drafts that were verified, and how many of them lie on the longest path: as many, but for a tree.
    num_draft_tokens: int = 0
    draft_depth: int = 0

    @property
    def num_accepted_tokens(self) -> int:
        return len(self.token_ids) - 1 if self.num_draft_tokens and self.token_ids else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """The samples of a step, in the order of the plan's sampling chunks.

    `decoded` are the tokens of the plan's decodes, and then `samples` are those of the other chunks alone; it is None
    where one of them is more than a token (it has logprobs, or failed) and `samples` tell of all.

    `device_s` is how long the device was busy with it, None where that is not told apart; `num_compilations` counts
    the kernels that had to be compiled for it, 0 once the runner is warm. `draft_s` is the time it took to draft, and
    `verify_s` that of all the rest of the step; None where nothing was drafted.
    """

    samples: tuple[SampledTokens, ...]
    decoded: tuple[int, ...] | None = None
    device_s: float | None = None
    draft_s: float | None = None
    verify_s: float | None = None
    num_compilations: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one step did: a row of the `steps` table, and who got tokens or ended.

    Times are seconds on the engine's clock. Block counts are of the moment after the step. Where steps overlap, the
    tokens counted are of the step that was launched, and `device_s`, `emitted` and `finished` of the one before, which
    was waited for.
    """

    step: int
    start_s: float
    duration_s: float
    schedule_s: float
    run_s: float
    commit_s: float
    # The device's own time; None where it is not told apart.
    device_s: float | None = None
    num_prefill_tokens: int
    num_decode_tokens: int
    num_running: int
    num_waiting: int
    kv_blocks_used: int
    kv_blocks_cached: int
    # Slots of used blocks that hold no K/V.
    kv_slots_unused: int
    num_evictions: int
    num_preemptions: int
    num_recomputed_tokens: int
    # Both ways.
    num_swapped_blocks: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    # Requests whose drafts were verified, and the parts of the step; None where there were none.
    num_verifications: int = 0
    draft_s: float | None = None
    verify_s: float | None = None
    num_compilations: int = 0
    # Set where the policy chose to run nothing before this instant, and nothing ran.
    idle_until_s: float | None = None
    # (request_id, new tokens) of every request that got some, and the ids of those that ended.
    emitted: tuple[tuple[int, tuple[int, ...]], ...] = ()
    finished: tuple[int, ...] = ()
