"""How a GPU learns which tokens a penalized row has seen, and how often: a bit a token, and a count where it is set.

Counting needs memory that is zero at first, and [M, V] counts are as large as the logits. So only a bit a token is
cleared (19 KB a row of 152k), and the counts of tokens that occur; what else the counts hold is never read. Later
kernels read the bits with the logits, a 32nd of their bytes, and gather counts where a bit is set.

Two launches, since clearing must end before counting begins; a row without penalties costs its programs' return. Floor
at 8k tokens: 3 scattered accesses a token by 16 programs, about 2 us.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _what_counts(m, rows_ptr, positions_ptr, repetition_ptr, presence_ptr, frequency_ptr, num_prompt_ptr):
    """Row of the store, whether it is penalized, the tokens [first, last) that count, and the prompt's length."""
    row = tl.load(rows_ptr + m).to(tl.int64)
    held = tl.maximum(row, 0)
    repeats = tl.load(repetition_ptr + held) != 1.0
    counts = (tl.load(presence_ptr + held) != 0.0) | (tl.load(frequency_ptr + held) != 0.0)
    penalized = (repeats | counts) & (row >= 0)
    num_prompt = tl.load(num_prompt_ptr + held)
    # Presence and frequency do not look at the prompt, which is often the longer part.
    first = tl.where(repeats, 0, num_prompt)
    last = tl.where(penalized, tl.load(positions_ptr + m), 0)
    return held, penalized, first, last, num_prompt


@triton.jit
def forget_tokens(
    rows_ptr,
    positions_ptr,
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    num_prompt_ptr,
    tokens_ptr,
    touched_ptr,
    counts_ptr,
    vocab_size,
    stride_tokens,
    BLOCK: tl.constexpr,
):
    """Clear the bits of penalized rows, and the counts of the tokens that occur there."""
    m = tl.program_id(1).to(tl.int64)
    row, penalized, first, last, _ = _what_counts(
        m, rows_ptr, positions_ptr, repetition_ptr, presence_ptr, frequency_ptr, num_prompt_ptr
    )
    start = tl.program_id(0) * BLOCK
    stride = tl.num_programs(0) * BLOCK
    num_words = tl.cdiv(vocab_size, 32)
    for begin in range(start, tl.where(penalized, num_words, 0), stride):
        offs = begin + tl.arange(0, BLOCK)
        tl.store(touched_ptr + m * num_words + offs, tl.zeros((BLOCK,), tl.int32), mask=offs < num_words)
    for begin in range(first + start, last, stride):
        offs = begin + tl.arange(0, BLOCK)
        token = tl.load(tokens_ptr + row * stride_tokens + offs, mask=offs < last, other=-1)
        known = (token >= 0) & (token < vocab_size)
        tl.store(counts_ptr + m * vocab_size + token, tl.zeros((BLOCK,), tl.int32), mask=known)


@triton.jit
def remember_tokens(
    rows_ptr,
    positions_ptr,
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    num_prompt_ptr,
    tokens_ptr,
    touched_ptr,
    counts_ptr,
    vocab_size,
    stride_tokens,
    BLOCK: tl.constexpr,
):
    """Set the bits of the tokens that occur, and count those of the output."""
    m = tl.program_id(1).to(tl.int64)
    row, _, first, last, num_prompt = _what_counts(
        m, rows_ptr, positions_ptr, repetition_ptr, presence_ptr, frequency_ptr, num_prompt_ptr
    )
    num_words = tl.cdiv(vocab_size, 32)
    for begin in range(first + tl.program_id(0) * BLOCK, last, tl.num_programs(0) * BLOCK):
        offs = begin + tl.arange(0, BLOCK)
        token = tl.load(tokens_ptr + row * stride_tokens + offs, mask=offs < last, other=-1)
        known = (token >= 0) & (token < vocab_size)
        bit = tl.full((BLOCK,), 1, tl.int32) << (token & 31)
        tl.atomic_or(touched_ptr + m * num_words + (token >> 5), bit, mask=known, sem="relaxed")
        tl.atomic_add(
            counts_ptr + m * vocab_size + token,
            tl.full((BLOCK,), 1, tl.int32),
            mask=known & (offs >= num_prompt),
            sem="relaxed",
        )
