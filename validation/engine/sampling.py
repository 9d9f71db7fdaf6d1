"""What a request may ask of the sampler, and the choice of one token."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

DEFAULT_MAX_NEW_TOKENS = 128
"""SGLang's default for /generate."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "top_p": (1, None),
    "top_k": (-1, 0, 1 << 30, None),
    "min_p": (0, None),
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "repetition_penalty": (1, None),
    "min_new_tokens": (0, None),
    "n": (1, None),
    "skip_special_tokens": (True, None),
    "spaces_between_special_tokens": (True, False, None),
    "no_stop_trim": (False, None),
    "stop_token_ids": (None, []),
}
"""Options of SGLang's that clients send at their neutral value; any other value is refused rather than ignored."""


class BadRequestError(ValueError):
    """A request that cannot be served; the sentence names the field, the value and what was expected."""


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How one request is continued."""

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    temperature: float = 0.0
    """0 is greedy: the highest fp32 logit, ties to the lowest id."""
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    seed: int = 0

    @staticmethod
    def from_json(data: Any) -> SamplingParams:
        """The parameters in a request's ``sampling_params``. Temperature defaults to 0: this is a measuring tool.

        Raises:
            BadRequestError: a field is unknown, of another type or out of range.
        """
        if data is None:
            return SamplingParams()
        if not isinstance(data, Mapping):
            raise BadRequestError(f"sampling_params is {type(data).__name__}; expected an object")
        fields = dict(data)
        for name, allowed in _NEUTRAL.items():
            if name in fields and fields[name] not in allowed:
                raise BadRequestError(
                    f"{name} {fields[name]!r} is not supported; the embedded engine takes {allowed[0]!r} only"
                )
            fields.pop(name, None)
        if "sampling_seed" in fields:
            fields["seed"] = fields.pop("sampling_seed")
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(SamplingParams)})
        if unknown:
            raise BadRequestError(
                f"sampling parameter {unknown[0]!r} is unknown; expected max_new_tokens, temperature, stop, ..."
            )
        given = {name: value for name, value in fields.items() if value is not None}
        limit = given.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise BadRequestError(f"max_new_tokens {limit!r} was given; expected an integer of at least 1")
        temperature = given.get("temperature", 0.0)
        if not isinstance(temperature, int | float) or isinstance(temperature, bool) or not 0 <= temperature < 100:
            raise BadRequestError(f"temperature {temperature!r} was given; expected a number of at least 0")
        stop = given.get("stop", ())
        stops = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list | tuple) else (None,)
        if not all(isinstance(s, str) and s for s in stops):
            raise BadRequestError(f"stop {stop!r} was given; expected a non-empty string or a list of them")
        ignore_eos, seed = given.get("ignore_eos", False), given.get("seed", 0)
        if not isinstance(ignore_eos, bool):
            raise BadRequestError(f"ignore_eos {ignore_eos!r} was given; expected true or false")
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise BadRequestError(f"seed {seed!r} was given; expected an integer of at least 0")
        return SamplingParams(limit, float(temperature), stops, ignore_eos, seed)


def choose(logits: npt.NDArray[np.float32], params: SamplingParams, step: int) -> int:
    """One token id out of logits (vocabulary,). The same seed and step give the same token, whatever else is served."""
    if params.temperature == 0.0:
        return int(logits.argmax())  # numpy takes the first of equals
    scaled = logits.astype(np.float64) / params.temperature
    probabilities = np.exp(scaled - scaled.max())
    drawn = np.random.default_rng((params.seed, step)).random() * probabilities.sum()
    return min(int(np.searchsorted(probabilities.cumsum(), drawn, side="right")), len(logits) - 1)


def log_probability(logits: npt.NDArray[np.float32], token: int) -> float:
    """Natural logarithm of ``token``'s probability at temperature 1."""
    scaled = logits.astype(np.float64)
    highest = scaled.max()
    return float(scaled[token] - highest - np.log(np.exp(scaled - highest).sum()))
