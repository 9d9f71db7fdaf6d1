"""Sampling parameters in, one token out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from validation.engine.sampling import BadRequestError, SamplingParams, choose, log_probability


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], "sampling_params is list"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"max_new_tokens": 1.5}, "max_new_tokens 1.5"),
        ({"max_new_tokens": True}, "max_new_tokens True"),
        ({"temperature": -1}, "temperature -1"),
        ({"temperature": "hot"}, "temperature 'hot'"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"stop": [1]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"ignore_eos": 1}, "ignore_eos 1"),
        ({"seed": -1}, "seed -1"),
        ({"top_p": 0.5}, "top_p 0.5 is not supported"),
        ({"n": 2}, "n 2 is not supported"),
        ({"max_tokens": 3}, "'max_tokens' is unknown"),
    ],
)
def test_bad_parameters_are_refused_in_one_sentence(data: Any, sentence: str) -> None:
    with pytest.raises(BadRequestError, match=sentence):
        SamplingParams.from_json(data)


def test_neutral_values_of_other_servers_options_are_accepted() -> None:
    data = {"max_new_tokens": 7, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "n": 1, "stop": None}
    assert SamplingParams.from_json(data) == SamplingParams(max_new_tokens=7)
    assert SamplingParams.from_json({"stop": "x", "sampling_seed": 4}) == SamplingParams(stop=("x",), seed=4)


def test_greedy_takes_the_highest_and_the_lowest_id_of_equals() -> None:
    logits = np.array([0.0, 3.0, 1.0, 3.0], dtype=np.float32)
    assert choose(logits, SamplingParams(), 0) == 1


def test_sampling_follows_the_seed_and_the_distribution() -> None:
    logits = np.log(np.array([0.1, 0.6, 0.3], dtype=np.float32))
    drawn = [choose(logits, SamplingParams(temperature=1.0, seed=7), step) for step in range(4000)]
    assert drawn == [choose(logits, SamplingParams(temperature=1.0, seed=7), step) for step in range(4000)]
    shares = np.bincount(drawn, minlength=3) / len(drawn)
    assert np.abs(shares - [0.1, 0.6, 0.3]).max() < 0.03
    cold = [choose(logits, SamplingParams(temperature=0.05, seed=7), step) for step in range(100)]
    assert set(cold) == {1}


def test_log_probabilities_are_normalised() -> None:
    logits = np.array([1.0, 2.0, 1000.0, -5.0], dtype=np.float32)
    assert math.isclose(sum(math.exp(log_probability(logits, token)) for token in range(4)), 1.0)
    assert log_probability(logits, 2) == pytest.approx(0.0)
