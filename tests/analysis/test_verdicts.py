from __future__ import annotations

import numpy as np
import pytest

from analysis.columns import TABLES
from analysis.direction import direction_of
from analysis.intervals import paired
from analysis.quality_figures import FIGURES
from analysis.verdicts import verdict

THROUGHPUT = "output_throughput_tps"


def _verdict(ratios: list[float], metric: str = THROUGHPUT, floor: float = np.nan, p: float | None = None) -> str:
    base = np.linspace(90, 110, len(ratios))
    compared = paired(base * ratios, base)
    p = compared.p if p is None else p
    return verdict(compared, p, direction_of(metric), equal_within=0.01, noise_floor=floor)


@pytest.mark.parametrize(
    ("metric", "up", "down"),
    [
        (THROUGHPUT, "faster", "slower"),
        ("ttft_p99_s", "slower", "faster"),
        ("duration_s", "slower", "faster"),
        ("goodput_rps", "better", "worse"),
        ("token_agreement_fraction", "better", "worse"),
        ("prefix_hit_fraction", "better", "worse"),
        ("perplexity", "worse", "better"),
        ("kl_mean_nats", "worse", "better"),
        ("peak_process_bytes", "more", "less"),
        ("energy_per_output_token_j", "more", "less"),
        ("num_preemptions", "more", "less"),
        ("kv_blocks_total", "more", "less"),
    ],
)
def test_each_metric_has_its_words(metric: str, up: str, down: str) -> None:
    assert _verdict([1.2, 1.21, 1.19, 1.2], metric) == up
    assert _verdict([0.8, 0.81, 0.79, 0.8], metric) == down


def test_each_figure_of_quality_has_a_better_direction() -> None:
    better = {name: direction_of(name).higher_is_better for name in FIGURES}
    down = {"perplexity", "kl_mean_nats", "top1_flip_fraction"}
    assert better == {name: name not in down for name in FIGURES}
    assert direction_of("bits_per_weight").higher_is_better is False


def test_no_latency_throughput_or_size_of_the_contract_is_without_direction() -> None:
    judged = [c for c in TABLES["runs"] if c.endswith(("_s", "_tps", "_rps", "_bytes"))]
    assert len(judged) > 25
    # What was asked of an engine is no merit of its.
    judged.remove("offered_rate_rps")
    assert [column for column in judged if direction_of(column).higher_is_better is None] == []
    assert [c for c in judged if c.endswith(("_tps", "_rps")) and not direction_of(c).higher_is_better] == []


def test_an_interval_inside_the_band_is_equal_even_where_it_leaves_out_one() -> None:
    assert _verdict([1.004, 1.005, 1.006, 1.005]) == "equal within 1 %"
    assert _verdict([1.0, 0.998, 1.002, 1.001]) == "equal within 1 %"


def test_an_interval_across_an_edge_of_the_band_shows_nothing() -> None:
    # p < 0.001, but the difference may be under 1 %.
    assert _verdict([1.010, 1.012, 1.008, 1.011]) == "no difference shown"
    assert _verdict([1.2, 0.9, 1.3, 1.0]) == "no difference shown"


def test_a_difference_under_the_noise_floor_is_not_shown() -> None:
    ratios = [1.05, 1.051, 1.049, 1.05]
    assert _verdict(ratios) == _verdict(ratios, floor=0.04) == "faster"
    assert _verdict(ratios, floor=0.06) == "no difference shown"
    assert _verdict([1 / ratio for ratio in ratios], floor=0.06) == "no difference shown"


def test_the_corrected_p_decides() -> None:
    assert _verdict([1.05, 1.051, 1.049, 1.05], p=0.06) == "no difference shown"


@pytest.mark.parametrize("ratios", [[1.5], [1.5, 1.51]])
def test_under_three_repeats_there_is_no_verdict(ratios: list[float]) -> None:
    assert _verdict(ratios) == "too few repeats"


def test_no_common_repeat_is_not_measured() -> None:
    assert _verdict([]) == "not measured"


def test_counts_that_start_at_zero_are_judged_by_their_differences() -> None:
    none, some = np.zeros(4), np.array([20.0, 22.0, 19.0, 21.0])
    words = direction_of("num_preemptions")
    more = paired(some, none)
    assert verdict(more, more.p, words, equal_within=0.01) == "more"
    less = paired(none, some)
    assert verdict(less, less.p, words, equal_within=0.01) == "less"
    same = paired(none, none)
    assert verdict(same, same.p, words, equal_within=0.01) == "equal within 1 %"
