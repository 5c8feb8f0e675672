"""Length predictors: what they say, and what becomes of a prediction that was wrong."""

from __future__ import annotations

from math import exp, log
from statistics import NormalDist, fmean, median, pstdev

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from policies import PREDICTORS, Bench, Job

from minivllm.config import Component
from minivllm.request import Request
from minivllm.sampling_params import SamplingParams
from minivllm.scheduler.chance import standard_normal, uniform
from minivllm.scheduler.predictors.base import LengthPredictor
from minivllm.scheduler.predictors.constant import Constant
from minivllm.scheduler.predictors.history import History
from minivllm.scheduler.predictors.noisy_oracle import NoisyOracle
from minivllm.scheduler.predictors.oracle import Oracle
from minivllm.scheduler.predictors.refining_oracle import RefiningOracle
from minivllm.scheduler.remaining import remaining_output_tokens

_few = settings(max_examples=30, deadline=None, derandomize=True)


def _request(
    request_id: int = 0,
    *,
    num_output_tokens: int = 0,
    max_tokens: int = 100,
    num_prompt_tokens: int = 3,
    client: int = 0,
) -> Request:
    request = Request(
        request_id=request_id,
        prompt_token_ids=[0] * num_prompt_tokens,
        sampling_params=SamplingParams(max_tokens=max_tokens),
        sampling_seed=0,
        arrival_s=0.0,
        max_total_tokens=num_prompt_tokens + max_tokens,
        client_id=client,
    )
    for _ in range(num_output_tokens):
        request.append(0, 0.0)
    return request


@_few
@given(st.integers(-3, 200), st.integers(0, 400))
def test_what_remains_is_the_prediction_doubled_until_it_is_more_than_what_was_said(predicted: int, said: int) -> None:
    request = _request(num_output_tokens=said, max_tokens=500)
    request.predicted_output_tokens = predicted
    first = max(1, predicted)
    doubled = next(first << k for k in range(40) if first << k > said)
    assert remaining_output_tokens(request) == doubled - said >= 1


def test_draws_are_uniform_and_normal_and_their_own() -> None:
    draws = sorted(uniform(5, i) for i in range(20_000))
    # Kolmogorov-Smirnov at 1e-6: sqrt(ln(2 / 1e-6) / 2n).
    gap = max(abs(x - (i + 0.5) / len(draws)) for i, x in enumerate(draws))
    assert gap < (log(2e6) / (2 * len(draws))) ** 0.5 + 1 / len(draws)
    assert len({*draws}) == len(draws) and draws[0] > 0 and draws[-1] < 1
    normals = [standard_normal(5, i) for i in range(20_000)]
    assert abs(fmean(normals)) < 0.035 and abs(pstdev(normals) - 1) < 0.025
    assert uniform(5, 1) == uniform(5, 1) and uniform(5, 1) not in (uniform(6, 1), uniform(1, 5), uniform(51, 1))


def test_the_oracle_knows_and_the_constant_does_not() -> None:
    assert [Oracle().predict(_request(max_tokens=n)) for n in (1, 7, 99)] == [1, 7, 99]
    assert [Constant(num_tokens=5).predict(_request(max_tokens=n)) for n in (1, 7, 99)] == [5, 5, 5]


def test_the_noise_is_lognormal_and_errs_to_both_sides() -> None:
    sigma, truth = 0.7, 100_000
    noisy = NoisyOracle(sigma=sigma, seed=2)
    errors = [log(noisy.predict(_request(i, max_tokens=truth)) / truth) for i in range(4000)]
    assert abs(median(errors)) < 0.06 and abs(pstdev(errors) - sigma) < 0.04
    assert NoisyOracle(sigma=0.0).predict(_request(3, max_tokens=41)) == 41
    assert NoisyOracle(sigma=3.0).predict(_request(3, max_tokens=1)) >= 1
    again = NoisyOracle(sigma=sigma, seed=2)
    assert noisy.predict(_request(9)) == again.predict(_request(9)) != NoisyOracle(sigma, 3).predict(_request(9))


def test_a_refined_prediction_nears_the_truth_as_the_answer_goes_on() -> None:
    predictor, truth = RefiningOracle(sigma=0.8, seed=1), 100
    for request_id in range(20):
        errors = []
        for said in range(0, truth, 9):
            request = _request(request_id, num_output_tokens=said, max_tokens=truth)
            predicted = predictor.predict(request)
            assert predicted > said
            errors.append(abs(predicted - truth))
        assert errors == sorted(errors, reverse=True) and errors[-1] <= 1
    # On arrival it is the noisy oracle.
    z = standard_normal(1, 4)
    assert predictor.predict(_request(4, max_tokens=truth)) == round(truth * exp(0.8 * z))


def _teach(history: History, lengths: list[int], **place) -> None:
    for i, length in enumerate(lengths):
        history.on_finish(_request(i, num_output_tokens=length, max_tokens=500, **place))


def test_history_says_the_mean_of_prior_and_answers() -> None:
    history = History(prior_tokens=10, prior_weight=2)
    assert history.predict(_request()) == 10
    _teach(history, [40, 40, 100])
    assert history.predict(_request()) == round((10 + 10 + 40 + 40 + 100) / 5)


@_few
@given(st.lists(st.integers(1, 300), min_size=1, max_size=20), st.floats(0.01, 0.99))
def test_history_says_the_quantile(lengths: list[int], quantile: float) -> None:
    history = History(quantile=quantile, prior_tokens=50, window=100)
    _teach(history, lengths)
    known, said = [50, *lengths], history.predict(_request())
    assert said in known
    # The smallest value that a fraction of `quantile` does not exceed.
    assert sum(x <= said for x in known) >= quantile * len(known) - 1e-9
    assert sum(x < said for x in known) < quantile * len(known)


def test_history_keeps_clients_and_prompt_lengths_apart_and_forgets_the_oldest() -> None:
    history = History(prior_tokens=10, window=3)
    _teach(history, [90, 90, 90], client=1)
    assert history.predict(_request(client=0)) == 10 and history.predict(_request(client=1)) == round((10 + 270) / 4)
    # Three and two tokens are both two binary digits, four are three.
    assert history.predict(_request(client=1, num_prompt_tokens=2)) == 70
    assert history.predict(_request(client=1, num_prompt_tokens=4)) == 10
    _teach(history, [2, 2, 2], client=1)
    assert history.predict(_request(client=1)) == 4
    # Whoever said nothing was given up, and teaches nothing.
    _teach(history, [0], client=1)
    assert history.predict(_request(client=1)) == 4


@pytest.mark.parametrize("name", PREDICTORS)
def test_srpt_serves_everyone_whatever_is_predicted(name: str) -> None:
    jobs = [Job(at_s=float(i), num_output_tokens=1 + 5 * i % 12, client_id=i % 2) for i in range(20)]
    options = {"predictor": name, "predictor_kwargs": PREDICTORS[name], "max_num_seqs": 2}
    bench = Bench(jobs, "srpt.ShortestRemaining", {}, **options)
    wrong = 0
    while bench.is_busy:
        bench.step()
        wrong += sum(r.predicted_output_tokens != r.max_tokens for r in bench.engine.scheduler.waiting)
    assert [r.num_output_tokens for r in sorted(bench.finished, key=lambda r: r.request_id)] == [
        job.num_output_tokens for job in jobs
    ]
    assert (wrong > 0) == (name != "oracle.Oracle")


def test_better_predictions_make_srpt_faster() -> None:
    """Mean latency with the oracle, with little noise, and with a constant, which is first come first served."""
    dice = NormalDist()
    jobs = [Job(num_output_tokens=max(1, round(6 * exp(dice.inv_cdf((i + 0.5) / 40) / 1.5)))) for i in range(40)]
    jobs = [jobs[17 * i % 40] for i in range(40)]

    def mean_s(name: str, **kwargs) -> float:
        options = {"predictor": name, "predictor_kwargs": kwargs, "max_num_seqs": 1}
        return fmean(r.finish_s for r in Bench(jobs, "srpt.ShortestRemaining", {}, **options).drain())

    oracle, noisy = mean_s("oracle.Oracle"), mean_s("noisy_oracle.NoisyOracle", sigma=0.5)
    fcfs = fmean(r.finish_s for r in Bench(jobs, "fcfs.FCFS", max_num_seqs=1).drain())
    assert oracle < noisy < fcfs


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("noisy_oracle.NoisyOracle", {"sigma": -1}, "length_predictor.sigma=-1: must be 0 or more"),
        ("refining_oracle.RefiningOracle", {"sigma": None}, "length_predictor.sigma=None: must be 0 or more"),
        ("constant.Constant", {"num_tokens": 0}, "length_predictor.num_tokens=0: must be 1 or more"),
        ("history.History", {"quantile": 1.0}, "length_predictor.quantile=1.0: must be null or in"),
        ("history.History", {"prior_weight": 0}, "length_predictor.prior_weight=0: must be 1 or more"),
    ],
)
def test_a_wrong_argument_is_named(name: str, kwargs: dict, message: str) -> None:
    component = Component(target=f"minivllm.scheduler.predictors.{name}", kwargs=kwargs)
    with pytest.raises(ValueError, match=f"^{message}"):
        component.make("length_predictor", LengthPredictor)
