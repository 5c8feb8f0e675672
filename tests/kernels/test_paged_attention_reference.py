from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from minivllm_kernels.paged_attention.reference import paged_attention_reference


def _make_cache(
    keys: list[Tensor], values: list[Tensor], block_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Scatter each request's [L, K, D] keys and values over shuffled blocks; NaN where nobody wrote."""
    lens = [len(k) for k in keys]
    per_request = [-(-length // block_size) for length in lens]
    block_ids = torch.randperm(sum(per_request) + 3, generator=generator).tolist()
    cache = torch.full((sum(per_request) + 3, block_size, 2, *keys[0].shape[1:]), torch.nan, dtype=keys[0].dtype)
    block_table = torch.full((len(keys), max(per_request) + 1), -1, dtype=torch.int32)
    for request, (k, v) in enumerate(zip(keys, values, strict=True)):
        for token in range(lens[request]):
            if token % block_size == 0:
                block_table[request, token // block_size] = block_ids.pop()
            block = block_table[request, token // block_size]
            cache[block, token % block_size] = torch.stack([k[token], v[token]])
    return cache, block_table


@pytest.mark.parametrize("window", [None, 1, 3, 100], ids=lambda w: f"W{w}")
@pytest.mark.parametrize("num_heads,num_kv_heads", [(4, 4), (6, 2), (3, 1)], ids=["H4-KV4", "H6-KV2", "H3-KV1"])
@pytest.mark.parametrize("block_size", [1, 4, 16], ids=lambda b: f"B{b}")
def test_each_request_is_plain_causal_attention(
    block_size: int, num_heads: int, num_kv_heads: int, window: int | None
) -> None:
    generator = torch.Generator().manual_seed(block_size * num_heads)
    # (queries, context): a whole prompt, a chunk, a decode step, nothing this step, a lone first token.
    lens = [(7, 7), (3, 12), (1, 17), (0, 5), (1, 1)]
    dim, scale = 6, 0.3

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    keys = [random(context, num_kv_heads, dim) for _, context in lens]
    values = [random(context, num_kv_heads, dim) for _, context in lens]
    queries = [random(num_queries, num_heads, dim) for num_queries, _ in lens]
    cache, block_table = _make_cache(keys, values, block_size, generator)
    cu_seqlens_q = torch.tensor([0, 7, 10, 11, 11, 12], dtype=torch.int32)
    # Two padding queries that belong to nobody.
    out = paged_attention_reference(
        torch.cat([*queries, random(2, num_heads, dim)]),
        cache,
        block_table,
        cu_seqlens_q,
        torch.tensor([context for _, context in lens], dtype=torch.int32),
        scale=scale,
        sliding_window=window,
    )
    assert out.shape == (14, num_heads, dim) and not out[12:].any()
    for request, (num_queries, context) in enumerate(lens):
        if num_queries == 0:
            continue
        query_at = torch.arange(context - num_queries, context)[:, None]
        key_at = torch.arange(context)[None]
        seen = (key_at <= query_at) & (key_at > query_at - (window or math.inf))
        # [H, tokens, D]
        expected = scaled_dot_product_attention(
            queries[request].transpose(0, 1),
            keys[request].repeat_interleave(num_heads // num_kv_heads, dim=1).transpose(0, 1),
            values[request].repeat_interleave(num_heads // num_kv_heads, dim=1).transpose(0, 1),
            attn_mask=seen,
            scale=scale,
        )
        ours = out[cu_seqlens_q[request] : cu_seqlens_q[request + 1]]
        torch.testing.assert_close(ours, expected.transpose(0, 1), rtol=1e-12, atol=1e-12)


def test_by_hand_two_keys_share_a_query() -> None:
    # Scores ln 3 and 0, so probabilities 3/4 and 1/4, over values 1 and 5.
    cache = torch.tensor([[[[[math.log(3)]], [[1.0]]], [[[0.0]], [[5.0]]]]])
    out = paged_attention_reference(
        torch.tensor([[[2.0]]]),
        cache,
        torch.tensor([[0]], dtype=torch.int32),
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([2], dtype=torch.int32),
        scale=0.5,
    )
    assert out.dtype == torch.float32 and out.item() == pytest.approx(2.0)


def test_a_table_that_is_too_short_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="request 0 lacks blocks for 3 tokens"):
        paged_attention_reference(
            torch.zeros(1, 1, 1),
            torch.zeros(2, 2, 2, 1, 1),
            torch.tensor([[1, -1]], dtype=torch.int32),
            torch.tensor([0, 1], dtype=torch.int32),
            torch.tensor([3], dtype=torch.int32),
            scale=1.0,
        )


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])
def test_scales_turn_an_8_bit_cache_into_its_values(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    lens, num_kv_heads, dim, block_size = [5, 1, 8], 2, 6, 4
    numbers = [torch.randint(-7, 8, (length, num_kv_heads, dim), generator=generator).float() for length in lens]
    cache, block_table = _make_cache(numbers, [n + 1 for n in numbers], block_size, generator)
    written = ~cache.isnan()
    stored = cache.nan_to_num(0).to(dtype)
    scales = torch.rand(cache.shape[:4], generator=generator).masked_fill(~written.all(-1), torch.nan)
    q = torch.randn(len(lens), 4, dim, generator=generator, dtype=torch.float64)
    where = (block_table, torch.arange(len(lens) + 1, dtype=torch.int32), torch.tensor(lens, dtype=torch.int32))
    out = paged_attention_reference(q, stored, *where, scale=0.4, kv_scales=scales)
    values = stored.double() * scales[..., None].double()
    assert torch.equal(out, paged_attention_reference(q, values, *where, scale=0.4))
    assert not out.isnan().any()
