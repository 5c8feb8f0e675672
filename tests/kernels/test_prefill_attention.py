from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from minivllm.speculation.tree import DraftTree
from minivllm_kernels.prefill_attention import kernel
from minivllm_kernels.prefill_attention.config import PrefillConfig, choose_config
from minivllm_kernels.prefill_attention.kernel import prefill_attention
from minivllm_kernels.prefill_attention.reference import prefill_attention_reference
from minivllm_kernels.prefill_attention.tree import pack_tree_mask, unpack_tree_mask

SMALL = PrefillConfig(block_m=16, block_n=16, num_warps=4, num_stages=2)
OVERLAPPED = replace(SMALL, overlap=True)
SCALE = 0.3
TOLERANCE = {torch.float32: 3e-6, torch.float16: 3e-3}


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    q: Tensor
    kv_cache: Tensor
    block_table: Tensor
    cu_seqlens_q: Tensor
    context_lens: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.q, self.kv_cache, self.block_table, self.cu_seqlens_q, self.context_lens


def _make_batch(
    lens: list[tuple[int, int]],
    *,
    seed: int = 0,
    num_kv_heads: int = 1,
    group_size: int = 2,
    head_dim: int = 32,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    num_nobodys: int = 0,
) -> Batch:
    """Requests of (queries, context). NaN: unused slots, the block before the first, and queries of nobody."""
    generator = torch.Generator().manual_seed(seed)
    per_request = [-(-context // block_size) for _, context in lens]
    block_ids = torch.randperm(sum(per_request) + 2, generator=generator).tolist()
    # Block -1, which the table is padded with, exists, so that reading it is seen.
    pool = torch.full((len(block_ids) + 1, block_size, 2, num_kv_heads, head_dim), torch.nan, dtype=dtype)
    cache = pool[1:]
    table = torch.full((len(lens), max(per_request, default=0) + 1), -1, dtype=torch.int32)
    for request, (_, context) in enumerate(lens):
        for position in range(context):
            if position % block_size == 0:
                table[request, position // block_size] = block_ids.pop()
            cache[table[request, position // block_size], position % block_size] = torch.randn(
                2, num_kv_heads, head_dim, generator=generator
            )
    num_tokens = sum(queries for queries, _ in lens)
    num_columns = group_size * num_kv_heads * head_dim
    # q as a view of qkv, whose other columns are not this kernel's to read.
    qkv = torch.full((num_tokens + num_nobodys, num_columns + 2 * num_kv_heads * head_dim), torch.nan, dtype=dtype)
    qkv[:num_tokens, :num_columns] = torch.randn(num_tokens, num_columns, generator=generator)
    return Batch(
        q=qkv[:, :num_columns].unflatten(1, (group_size * num_kv_heads, head_dim)),
        kv_cache=cache,
        block_table=table,
        cu_seqlens_q=torch.tensor([0, *(queries for queries, _ in lens)]).cumsum(0).int(),
        context_lens=torch.tensor([context for _, context in lens], dtype=torch.int32),
    )


def _run(batch: Batch, **options) -> Tensor:
    """The kernel into a poisoned output; what is nobody's stays poisoned and is cut off."""
    bounds = batch.cu_seqlens_q.tolist()
    options.setdefault("max_query_len", max((b - a for a, b in zip(bounds, bounds[1:], strict=False)), default=0))
    num_tokens, num_heads, head_dim = batch.q.shape
    out = torch.full((num_tokens, num_heads + 1, head_dim), torch.nan, dtype=batch.q.dtype)[:, :num_heads]
    options = {"scale": SCALE, "config": SMALL, "out": out} | options
    assert prefill_attention(*batch.tensors, **options) is options["out"]
    assert out[bounds[-1] :].isnan().all(), "written to the rows of nobody"
    assert out[: bounds[-1]].isfinite().all()
    return out[: bounds[-1]]


def _assert_close(batch: Batch, ours: Tensor, **options) -> None:
    expected = prefill_attention_reference(*batch.tensors, scale=SCALE, **options)[: len(ours)]
    tolerance = TOLERANCE[batch.q.dtype]
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


def _forget_before_window(batch: Batch, window: int) -> None:
    """Take out of the table what every query's window has left behind."""
    block_size, bounds = batch.kv_cache.shape[1], batch.cu_seqlens_q.tolist()
    for request, context in enumerate(batch.context_lens.tolist()):
        first_position = context - (bounds[request + 1] - bounds[request])
        batch.block_table[request, : max(first_position - window + 1, 0) // block_size] = -1


# Queries of a request and tokens computed before them: none, one, a verification, chunks with and without a prefix.
_lens = st.tuples(st.sampled_from([0, 1, 1, 3, 8, 19]), st.sampled_from([0, 0, 1, 15, 16, 37]))


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    lens=st.lists(_lens, min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (1, 4), (2, 2), (1, 7), (1, 16)]),
    head_dim=st.sampled_from([32, 24, 64]),
    block_size=st.sampled_from([1, 4, 16, 64]),
    window=st.sampled_from([None, None, 1, 5, 16, 30]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    overlap=st.booleans(),
    num_nobodys=st.sampled_from([0, 3]),
    seed=st.integers(0, 99),
)
def test_any_mixture_of_chunks_and_decodes_is_the_reference(
    lens, heads, head_dim, block_size, window, dtype, overlap, num_nobodys, seed
) -> None:
    batch = _make_batch(
        [(queries, queries + before) for queries, before in lens],
        seed=seed,
        num_kv_heads=heads[0],
        group_size=heads[1],
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
        num_nobodys=num_nobodys,
    )
    expected = prefill_attention_reference(*batch.tensors, scale=SCALE, sliding_window=window)
    if window is not None:
        _forget_before_window(batch, window)
    ours = _run(batch, config=replace(SMALL, overlap=overlap), sliding_window=window)
    torch.testing.assert_close(ours, expected[: len(ours)], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("window", [None, 11], ids=lambda w: f"W{w}")
@pytest.mark.parametrize("config", [SMALL, OVERLAPPED], ids=["plain", "overlapped"])
def test_a_query_has_the_same_bits_however_its_prompt_is_cut_and_whoever_is_beside_it(config, window) -> None:
    batch = _make_batch([(35, 35), (9, 20)], dtype=torch.float16, block_size=4)
    whole = _run(batch, config=config, sliding_window=window)

    def in_chunks_of(sizes: list[int]) -> Tensor:
        chunks, done = [], 0
        for size in sizes:
            chunk = replace(
                batch,
                q=batch.q[done : done + size],
                block_table=batch.block_table[:1],
                cu_seqlens_q=torch.tensor([0, size], dtype=torch.int32),
                context_lens=torch.tensor([done + size], dtype=torch.int32),
            )
            chunks.append(_run(chunk, config=config, sliding_window=window))
            done += size
        return torch.cat(chunks)

    assert torch.equal(in_chunks_of([35]), whole[:35])
    assert torch.equal(in_chunks_of([3, 13, 1, 18]), whole[:35])
    assert torch.equal(in_chunks_of([17, *[1] * 18]), whole[:35])


def test_both_schedules_and_tiles_of_more_rows_give_the_same_bits() -> None:
    batch = _make_batch([(20, 41), (5, 5)], dtype=torch.float16, group_size=3)
    plain = _run(batch)
    assert torch.equal(_run(batch, config=OVERLAPPED), plain)
    assert torch.equal(_run(batch, config=replace(OVERLAPPED, block_m=32)), plain)


def test_each_program_finds_its_request_among_more_than_one_step_looks_at(monkeypatch) -> None:
    monkeypatch.setattr(kernel, "SEARCH_WIDTH", tl.constexpr(2))
    batch = _make_batch([(1, 1), (0, 3), (0, 0), (9, 9), (8, 8), (0, 2), (1, 5)], group_size=2, head_dim=16)
    _assert_close(batch, _run(batch))


def test_a_larger_bound_on_the_queries_changes_nothing() -> None:
    # As in a captured graph: one request of several is short of the bound.
    batch = _make_batch([(3, 3), (1, 18)])
    assert torch.equal(_run(batch, max_query_len=8), _run(batch, max_query_len=500))


@pytest.mark.parametrize("lens", [[], [(0, 0)], [(0, 5), (0, 0)]], ids=["no-request", "no-token", "no-query"])
def test_nothing_to_do_writes_nothing(lens) -> None:
    assert _run(_make_batch(lens, num_nobodys=2), max_query_len=0).shape[0] == 0


@pytest.mark.parametrize("config", [SMALL, OVERLAPPED], ids=["plain", "overlapped"])
def test_a_row_without_a_context_pads_the_batch_and_is_left_alone(config) -> None:
    batch = _make_batch([(1, 18), (1, 1), (1, 0)])
    out = torch.full((3, *batch.q.shape[1:]), 7.0)
    ours = prefill_attention(*batch.tensors, max_query_len=1, scale=SCALE, config=config, out=out)
    real = {"q": batch.q[:2], "cu_seqlens_q": batch.cu_seqlens_q[:3]}
    real |= {"block_table": batch.block_table[:2], "context_lens": batch.context_lens[:2]}
    _assert_close(replace(batch, **real), ours[:2])
    assert (ours[2] == 7).all()


def test_without_a_configuration_the_shapes_choose_it() -> None:
    batch = _make_batch([(3, 30)], head_dim=40, dtype=torch.float16)
    _assert_close(batch, _run(batch, config=None))


@pytest.mark.parametrize("config", [SMALL, OVERLAPPED], ids=["plain", "overlapped"])
def test_a_draft_sees_what_came_before_and_what_its_mask_names(config) -> None:
    # Trees without a past, and across a border of tiles; the bits behind a request's drafts are set at random too.
    batch = _make_batch([(6, 6), (11, 37), (1, 17)], group_size=3, block_size=4)
    mask = torch.rand(18, 70, generator=torch.Generator().manual_seed(0)) < 0.5
    # A draft without a past that sees nothing.
    mask[2] = False
    packed = pack_tree_mask(mask)
    ours = _run(batch, config=config, tree_mask=packed)
    _assert_close(batch, ours, tree_mask=packed)
    assert not ours[2].any()


@pytest.mark.parametrize("block_n", [16, 128], ids=lambda n: f"tile{n}")
def test_a_tree_may_have_more_drafts_than_a_word_has_bits(block_n) -> None:
    batch = _make_batch([(70, 75)], group_size=1, head_dim=16)
    packed = pack_tree_mask(torch.rand(70, 70, generator=torch.Generator().manual_seed(1)) < 0.5)
    config = replace(SMALL, block_m=64, block_n=block_n)
    _assert_close(batch, _run(batch, config=config, tree_mask=packed), tree_mask=packed)


def test_a_chain_of_drafts_is_the_tree_that_sees_all_before() -> None:
    batch = _make_batch([(4, 20), (2, 2)])
    chain = pack_tree_mask(torch.cat([torch.ones(4, 4).tril(), torch.ones(2, 4).tril()]).bool())
    torch.testing.assert_close(_run(batch, tree_mask=chain), _run(batch), rtol=1e-6, atol=1e-6)


def test_packing_a_mask_loses_nothing() -> None:
    mask = torch.rand(5, 130, generator=torch.Generator().manual_seed(0)) < 0.5
    packed = pack_tree_mask(mask)
    assert packed.shape == (5, 3) and packed.dtype == torch.int64
    assert torch.equal(unpack_tree_mask(packed)[:, :130], mask) and not unpack_tree_mask(packed)[:, 130:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("kv_dtype", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])
def test_kv_in_8_bits_is_what_its_scales_say(kv_dtype, dtype) -> None:
    lens = [(9, 9), (3, 37)]
    exact = _make_batch(lens, num_kv_heads=2, block_size=4, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    unused = exact.kv_cache.isnan()
    # Every byte occurs but fp8's two NaN, which stand where nobody wrote; int8 has none, there the scale is.
    codes = torch.randint(0, 256, exact.kv_cache.shape, generator=generator).to(torch.uint8)
    if kv_dtype == torch.float8_e4m3fn:
        codes[codes & 0x7F == 0x7F] = 0
        codes[unused] = 0x7F
    scales = (torch.rand(exact.kv_cache.shape[:-1], generator=generator) + 0.1) / 100
    scales[unused.any(dim=-1)] = torch.nan
    batch = replace(exact, kv_cache=codes.view(kv_dtype))
    _assert_close(batch, _run(batch, kv_scales=scales), kv_scales=scales)


@pytest.mark.parametrize("window", [1, 3, 9, 30], ids=lambda w: f"W{w}")
@pytest.mark.parametrize("config", [SMALL, OVERLAPPED], ids=["plain", "overlapped"])
def test_the_window_of_a_draft_is_counted_in_positions_not_in_places(config, window) -> None:
    # Trees without a past, over several tiles of rows and keys, and of a root alone.
    lens = [(6, 6), (19, 53), (1, 17), (11, 37)]
    batch = _make_batch(lens, group_size=2, block_size=4)
    chance, bits, positions = random.Random(window), [], []
    for queries, context in lens:
        tree = DraftTree(tuple(chance.randint(-1, node - 1) for node in range(queries - 1))) if queries > 1 else None
        bits += [1] if tree is None else tree.seen_bits(tree.num_nodes).tolist()
        positions += [context - queries + depth for depth in (0, *(() if tree is None else tree.depths))]
    trees = {
        "tree_mask": torch.tensor(bits)[:, None],
        "positions": torch.tensor(positions),
        "sliding_window": window,
    }
    expected = prefill_attention_reference(*batch.tensors, scale=SCALE, **trees)
    _forget_before_window(batch, window)
    torch.testing.assert_close(_run(batch, config=config, **trees), expected, rtol=3e-6, atol=3e-6)


@given(
    head_dim=st.integers(16, 256),
    group_size=st.integers(1, 16),
    shapes=st.lists(st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)), min_size=2, max_size=2),
    dtype_bytes=st.sampled_from([2, 4]),
    quantized=st.booleans(),
    hopper=st.booleans(),
)
def test_tiles_hold_a_group_and_their_keys_do_not_depend_on_the_batch(
    head_dim, group_size, shapes, dtype_bytes, quantized, hopper
) -> None:
    configs = [
        choose_config(
            head_dim=head_dim,
            group_size=group_size,
            num_kv_heads=8,
            num_tokens=max(shape),
            max_query_len=min(shape),
            dtype_bytes=dtype_bytes,
            quantized=quantized,
            hopper=hopper,
        )
        for shape in shapes
    ]
    assert configs[0].block_n == configs[1].block_n
    for config in configs:
        assert config.block_m >= group_size and not (config.overlap and (quantized or not hopper))


_COMPILE = """
import json, subprocess, sys, tempfile
from pathlib import Path
import triton
from minivllm_kernels.ahead_of_time import compile_ahead
from minivllm_kernels.prefill_attention.kernel import _specialisation
ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
for options in json.loads(sys.argv[1]):
    specialisation = _specialisation(**options)
    compiled = compile_ahead(specialisation, 90)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "ptx").write_text(compiled.ptx)
        command = [ptxas, "-v", "--gpu-name=sm_90a", f"{folder}/ptx", "-o", f"{folder}/cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
    print(json.dumps({
        "spill_bytes": compiled.spill_bytes,
        "shared_bytes": compiled.shared_bytes,
        "num_wgmma": compiled.num_wgmma,
        "wide_copies": compiled.ptx.count(", 0x10, "),
        "serialised": "serialized" in said.stdout + said.stderr,
        "overlap": specialisation.constants["OVERLAP"],
    }))
"""


def test_on_hopper_products_fly_under_the_softmax_and_nothing_leaves_the_registers() -> None:
    wanted = [
        {"dtype": "bf16", "head_dim": 128, "hopper": True},
        {"dtype": "bf16", "head_dim": 96, "group_size": 7, "block_size": 16, "hopper": True},
        # Its instruction is not sm_80's, so that the list of specialisations cannot have it.
        {"dtype": "bf16", "head_dim": 128, "hopper": True, "kv": "u8", "fp8": "native"},
    ]
    # In a process of its own, as Triton interprets here.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    printed = subprocess.run(
        [sys.executable, "-c", _COMPILE, json.dumps(wanted)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    compiled = [json.loads(line) for line in printed.splitlines()]
    assert [one["overlap"] for one in compiled] == [True, True, False]
    for one in compiled:
        assert one["num_wgmma"] > 0 and one["wide_copies"] > 0
        assert one["spill_bytes"] == 0 and one["shared_bytes"] <= 227 * 1024
        assert not one["serialised"], "the assembler waits after each product"
