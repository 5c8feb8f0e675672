"""Prices that were planted are found again through noise and hiccups; what was not measured is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulating import CPU, GPU, SHAPE, sizes_of

from experiments import tables
from experiments.step_times.fitted import Fitted
from experiments.step_times.records import WORK, RecordedRun, read_runs
from experiments.step_times.regression import choose_knots, cross_validate, fit
from experiments.step_times.replay import Replay
from minivllm.config import EngineConfig, ExecutionConfig, ModelConfig
from minivllm.models.spec import ModelSpec
from minivllm.simulation.base import StepTimeTarget, StepWork
from minivllm.simulation.config import SimulationConfig
from minivllm.simulation.hardware import HardwareConfig

_SPEC = ModelSpec.from_hf(SHAPE, "test")


def _target(hardware: HardwareConfig = CPU) -> StepTimeTarget:
    config = EngineConfig(
        model=ModelConfig(weights="random", shape=SHAPE),
        execution=ExecutionConfig(device="simulated"),
        simulation=SimulationConfig(hardware=hardware),
    )
    return StepTimeTarget(config=config, spec=_SPEC, sizes=sizes_of(_SPEC), hardware=hardware)


def _planted_s(work: np.ndarray) -> np.ndarray:
    """Flat up to 4 tokens, then steeper, then less steep again; and so much for what attention reads and computes."""
    column = dict(zip(WORK, work.T, strict=True))
    num_tokens = column["num_prefill_tokens"] + column["num_decode_tokens"]
    total = 2e-3 + 1e-4 * np.clip(num_tokens - 4, 0, 28) + 3e-5 * np.maximum(num_tokens - 32, 0)
    total += 2e-5 * column["num_decode_tokens"] + 3e-4 * column["num_prefill_requests"]
    total += 1e-7 * column["num_decode_context_tokens"] + 4e-9 * column["num_prefill_pairs"]
    total += 5e-5 * column["num_swapped_blocks"]
    return np.asarray(total)


def _work(generator: np.random.Generator, num_steps: int, most: int = 40) -> np.ndarray:
    """Steps of a busy engine: decodes, and now and then a prompt beside them."""
    decodes = generator.integers(0, most, size=num_steps)
    prefills = np.where(generator.random(num_steps) < 0.3, generator.integers(1, 4, size=num_steps), 0)
    prefills = np.where(decodes + prefills == 0, 1, prefills)
    prompt = prefills * generator.integers(5, 90, size=num_steps)
    context = decodes * generator.integers(20, 900, size=num_steps)
    swapped = np.where(generator.random(num_steps) < 0.1, generator.integers(1, 9, size=num_steps), 0)
    columns = {
        "num_prefill_tokens": prompt,
        "num_decode_tokens": decodes,
        "num_prefill_requests": prefills,
        "num_prefill_context_tokens": prompt,
        "num_decode_context_tokens": context,
        "num_prefill_pairs": prompt * (prompt + 1) // 2,
        "num_swapped_blocks": swapped,
    }
    return np.stack([columns[name] for name in WORK], axis=1).astype(float)


def _noisy_s(work: np.ndarray, generator: np.random.Generator, *, hiccups: float = 0.0) -> np.ndarray:
    step_s = _planted_s(work) * generator.lognormal(-0.5 * 0.05**2, 0.05, size=len(work))
    return np.where(generator.random(len(work)) < hiccups, step_s * 30, step_s)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_planted_prices_predict_steps_that_were_not_seen(seed: int) -> None:
    generator = np.random.default_rng(seed)
    work, unseen = _work(generator, 1_500), _work(generator, 1_500)
    prices = fit(work, _noisy_s(work, generator))
    assert min(prices.step_s, *prices.token_s, *prices.each_s) >= 0
    expected = _planted_s(unseen)
    predicted = prices.predict(unseen)
    assert np.abs(predicted / expected - 1).mean() < 0.03
    assert predicted.sum() == pytest.approx(expected.sum(), rel=0.01)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_a_few_hiccups_of_a_busy_machine_change_little(seed: int) -> None:
    generator = np.random.default_rng(seed)
    work = _work(generator, 1_500)
    prices = fit(work, _noisy_s(work, generator, hiccups=0.01))
    assert prices.predict(work).sum() == pytest.approx(_planted_s(work).sum(), rel=0.02)
    # Least squares would be off by a third.
    assert np.abs(prices.predict(work) / _planted_s(work) - 1).mean() < 0.04


def test_the_error_is_that_of_steps_that_were_held_out() -> None:
    generator = np.random.default_rng(5)
    works = [_work(generator, 600) for _ in range(3)]
    runs = [RecordedRun(run_id=str(i), work=w, step_s=_noisy_s(w, generator)) for i, w in enumerate(works)]
    errors = cross_validate(runs)
    # The mean absolute value of a normal deviate of 5 %.
    assert errors.step_fraction == pytest.approx(0.05 * np.sqrt(2 / np.pi), rel=0.15)
    assert errors.total_fraction < 0.01
    slower = [*runs[:2], RecordedRun(run_id="2", work=works[2], step_s=1.5 * runs[2].step_s)]
    assert cross_validate(slower).total_fraction > 0.2
    assert cross_validate(runs[:1]).total_fraction < 0.02


def test_a_piece_has_a_price_only_where_steps_lie_in_it() -> None:
    counts = np.array([1] * 50 + [2] * 3 + [3] * 20 + [7] * 11 + [90] * 40)
    assert choose_knots(counts) == (0.0, 1.0, 4.0, 90.0)
    assert choose_knots(np.array([5] * 9)) == (0.0, 5.0)


# Folders


def _write(
    folder: Path, run_id: str, work: np.ndarray, step_s: np.ndarray, *, steps: dict[str, Any] | None = None, **row: Any
) -> None:
    """A run as its tables have it: half of a step's time is the client's, and the engine idles after every tenth."""
    column = dict(zip(WORK, work.T, strict=True))
    after_s = step_s / 2
    idle = np.arange(len(work)) % 10 == 9
    client_s = np.append(np.nan, (after_s + np.where(idle, 7.0, 0.0))[:-1])
    written = {
        "step": np.arange(len(work)),
        "duration_s": step_s / 2,
        "client_s": pa.array(client_s, from_pandas=True),
        "num_running": np.where(idle, 0, 3),
        "num_waiting": np.zeros(len(work), dtype=int),
        **{name: column[name].astype(int) for name in WORK if name not in ("num_decode_context_tokens", WORK[5])},
        "num_context_tokens": column["num_prefill_context_tokens"] + column["num_decode_context_tokens"],
        "num_query_key_pairs": column["num_prefill_pairs"] + column["num_decode_context_tokens"],
        "num_draft_tokens": pa.nulls(len(work), pa.int64()),
        **(steps or {}),
    }
    run = {
        "run_id": run_id,
        "status": "ok",
        "simulated": False,
        "weights_bytes": sizes_of(_SPEC).weights_bytes,
        "cfg.execution.device": "cpu",
        "cfg.execution.overlap": None,
        "cfg.model.path": "somewhere",
        "env.machine": "m",
        **row,
    }
    tables.write_table(folder / "steps" / f"{run_id}.parquet", pa.table(written))
    tables.write_table(folder / "runs" / f"{run_id}.parquet", pa.Table.from_pylist([run]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(3)
    for run_id in ("a", "b"):
        work = _work(generator, 300)
        _write(tmp_path, run_id, work, _planted_s(work))
    return tmp_path


def _step(work: np.ndarray) -> StepWork:
    return StepWork(**{name: int(value) for name, value in zip(WORK, work, strict=True)})


def test_a_step_takes_from_its_start_to_the_next_ones_but_for_idling(folder: Path) -> None:
    runs = read_runs(str(folder), None, _target())
    assert [run.run_id for run in runs] == ["a", "b"]
    for run in runs:
        busy = np.arange(len(run.step_s)) % 10 != 9
        busy[-1] = False
        np.testing.assert_allclose(run.step_s[busy], _planted_s(run.work)[busy], rtol=1e-9)
        # The usual time between two steps, not the seven seconds of nothing to do.
        assert run.step_s[~busy].max() < 0.1


def test_where_steps_overlap_a_row_waits_for_the_step_before_it(tmp_path: Path) -> None:
    work = _work(np.random.default_rng(1), 50)
    step_s = _planted_s(work)
    _write(tmp_path, "a", work, np.append(0.001, step_s[:-1]), **{"cfg.execution.overlap": True})
    (run,) = read_runs(str(tmp_path), "a", _target())
    busy = np.arange(len(run.work)) % 10 != 8
    busy[-1] = False
    np.testing.assert_allclose(run.step_s[busy], _planted_s(run.work)[busy], rtol=1e-9)


def test_the_model_says_what_was_measured_and_how_sure_it_is(folder: Path) -> None:
    model = Fitted(target=_target(), folder=str(folder))
    for work in _work(np.random.default_rng(8), 40, most=30):
        expected = float(model.prices.predict(work[None])[0])
        assert model.step_s(_step(work)) == pytest.approx(expected, rel=1e-9)
        assert expected == pytest.approx(float(_planted_s(work[None])[0]), rel=0.2)
    assert 0 <= model.total_error_fraction <= model.error_fraction < 0.1


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (StepWork(num_decode_tokens=500, num_decode_context_tokens=500), "num_tokens=500, and was measured with"),
        (StepWork(num_decode_tokens=2, num_decode_context_tokens=10**9), "num_decode_context_tokens=1e"),
        (StepWork(num_decode_tokens=2, num_swapped_blocks=99), "num_swapped_blocks=99, and was measured with up to 8"),
        (StepWork(num_prefill_tokens=9, num_prefill_requests=9), "num_prefill_requests=9"),
    ],
    ids=["tokens", "contexts", "swaps", "prompts"],
)
def test_work_that_was_never_measured_is_refused_by_name(folder: Path, work: StepWork, says: str) -> None:
    model = Fitted(target=_target(), folder=str(folder))
    with pytest.raises(ValueError, match=says) as caught:
        model.step_s(work)
    assert "\n" not in str(caught.value)


def _drop(folder: Path, column: str) -> None:
    path = folder / "steps" / "a.parquet"
    tables.write_table(path, tables.read_table(path).drop_columns([column]))


_few = _work(np.random.default_rng(2), 30)
_drafts = {"num_draft_tokens": np.ones(30, dtype=int)}
MISTAKES: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "no folder": (lambda f: None, {"folder": "nowhere"}, "step_time.folder='nowhere': must be the folder of a sweep"),
    "no such run": (lambda f: None, {"run_ids": ["c"]}, "step_time.run_ids='c': must be of real runs that ended well"),
    "an old version": (lambda f: _drop(f, "num_context_tokens"), {}, "older version and lacks num_context_tokens"),
    "no steps": (lambda f: (f / "steps" / "a.parquet").unlink(), {}, "the steps of a cannot be read"),
    "a simulation": (lambda f: _write(f, "s", _few, _few[:, 0], simulated=True), {"run_ids": "s"}, "run_ids='s'"),
    "another model": (
        lambda f: _write(f, "m", _few, _few[:, 0], weights_bytes=10**9),
        {"run_ids": "m"},
        "its weights take 1000000000 bytes",
    ),
    "two models": (
        lambda f: _write(f, "m", _few, _few[:, 0], **{"cfg.model.path": "elsewhere"}),
        {},
        "differ in cfg.model.path .elsewhere, somewhere.; name some in step_time.run_ids",
    ),
    "another device": (lambda f: None, {"target": _target(GPU)}, "hardware.device='cuda': must be cpu, on which"),
    "too few steps": (lambda f: _write(f, "f", _few, _planted_s(_few)), {"run_ids": "f"}, "with 100 busy steps"),
    "drafts": (lambda f: _write(f, "d", _few, _few[:, 0], steps=_drafts), {"run_ids": "d"}, "d speculates"),
}


@pytest.mark.parametrize(("spoil", "changes", "says"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_run_of_no_use_is_one_line(
    folder: Path, spoil: Callable[[Path], Any], changes: dict[str, Any], says: str
) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=says) as caught:
        Fitted(**{"target": _target(), "folder": str(folder), **changes})
    assert "\n" not in str(caught.value)


def test_a_replay_goes_the_recorded_way_or_stops(folder: Path) -> None:
    (run,) = read_runs(str(folder), "b", _target())
    model = Replay(target=_target(), folder=str(folder), run_id="b")
    assert [model.step_s(_step(work)) for work in run.work] == run.step_s.tolist()
    with pytest.raises(ValueError, match="step 301: the recording has 300: this run is longer"):
        model.step_s(_step(run.work[0]))
    model = Replay(target=_target(), folder=str(folder), run_id="b")
    model.step_s(_step(run.work[0]))
    other = run.work[1] + np.eye(len(WORK))[1]
    with pytest.raises(ValueError, match="step 2: num_decode_tokens was .* this run goes another way"):
        model.step_s(_step(other))
    with pytest.raises(ValueError, match="step_time.run_id=None: must be one of a, b"):
        Replay(target=_target(), folder=str(folder))
