from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from minivllm.sampling_params import SamplingParams

_BAD: dict[str, list[Any]] = {
    "temperature": [-0.1, math.nan, math.inf, "warm", None, True],
    "top_k": [-2, 1.5, "5", None, True],
    "top_p": [0, -0.5, 1.01, math.nan, "0.9", None, True],
    "min_p": [-0.01, 1.01, math.nan, "0.1", None],
    "max_tokens": [0, -1, 2.0, "16", None, True],
    "n": [0, -3, 1.0, None, True],
    "seed": [1.5, "7", True],
    "stop": [("",), ("a", 3), ("a", None)],
    "stop_token_ids": [(1.5,), ("a",), (None,), (True,)],
    "logprobs": [-1, 1025, 2.5, "all", True],
    "repetition_penalty": [0, -1.0, math.nan, math.inf, None],
    "presence_penalty": [-2.01, 2.01, math.nan, "x", None],
    "frequency_penalty": [-2.01, 2.01, math.nan, "x", None],
}

_GOOD: dict[str, list[Any]] = {
    "temperature": [0, 0.0, 5e-324, 100],
    "top_k": [-1, 0, 1, 10**9],
    "top_p": [5e-324, 0.5, 1, 1.0],
    "min_p": [0, 0.5, 1],
    "max_tokens": [1, 10**9],
    "n": [1, 64],
    "seed": [None, 0, -1, 2**200],
    "logprobs": [None, 0, 1024],
    "repetition_penalty": [1e-3, 1, 10.0],
    "presence_penalty": [-2, 2.0],
    "frequency_penalty": [-2, 2.0],
}


@pytest.mark.parametrize("key,value", [(key, value) for key, values in _BAD.items() for value in values])
def test_a_bad_value_is_one_line_that_names_key_and_value(key: str, value: Any) -> None:
    with pytest.raises(ValueError) as raised:
        SamplingParams(**{key: value})
    message = str(raised.value)
    assert message.startswith(f"sampling.{key}={value!r}: must be ") and "\n" not in message


@pytest.mark.parametrize("key,value", [(key, value) for key, values in _GOOD.items() for value in values])
def test_values_up_to_the_limits_are_kept(key: str, value: Any) -> None:
    assert getattr(SamplingParams(**{key: value}), key) == value


def test_every_key_that_has_a_range_is_tested() -> None:
    keys = {field.name for field in dataclasses.fields(SamplingParams)}
    assert keys - set(_BAD) == {"ignore_eos"}


def test_a_misspelt_key_is_an_error() -> None:
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=0.5)  # type: ignore[call-arg]


@pytest.mark.parametrize("stop,expected", [("end", ("end",)), (["a", "b"], ("a", "b")), ((), ()), (None, ())], ids=str)
def test_stop_strings_come_as_one_or_many(stop: Any, expected: tuple[str, ...]) -> None:
    assert SamplingParams(stop=stop).stop == expected


def test_stop_tokens_come_as_any_sequence() -> None:
    listed: Any = [3, 1]
    assert SamplingParams(stop_token_ids=listed).stop_token_ids == (3, 1)


def test_equal_values_are_one_dictionary_key() -> None:
    assert len({SamplingParams(stop="x"), SamplingParams(stop=("x",))}) == 1


def test_values_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().temperature = 0.0  # type: ignore[misc]


def test_only_temperature_makes_a_request_greedy() -> None:
    assert SamplingParams(temperature=0).greedy and not SamplingParams(top_k=1).greedy


@pytest.mark.parametrize("key,value", [("repetition_penalty", 1.1), ("presence_penalty", -1), ("frequency_penalty", 1)])
def test_any_penalty_makes_a_request_penalized(key: str, value: Any) -> None:
    assert SamplingParams(**{key: value}).penalized and not SamplingParams().penalized
