"""The decision table of cat-skip: which form of the query reaches a decode kernel, and who concatenates on the way.

Two functions decide it in SGLang: the caller (``forward_absorb_core``) passes the query split or concatenated, and the
attention backend (``forward_decode`` behind ``forward``, or ``forward_extend``) reuses or rebuilds the concatenation.
The table is SGLang pull request 24125 as merged, after its review; ``later`` holds what successors were seen to do.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Iterator, Mapping


class Action(str, enum.Enum):
    """What the attention backend does with the query before its kernel runs."""

    REUSES = "reuses"
    """The kernel gets a zero-copy view of the caller's tensor."""
    CONCATENATES = "concatenates"
    """The kernel gets a freshly concatenated tensor."""
    SEPARATE = "separate"
    """The kernel takes q_nope and q_rope apart."""
    DELEGATED = "delegated"
    """The implementation gets q and q_rope as they came."""
    NO_KERNEL = "no_kernel"
    REFUSED = "refused"
    COPIES = "copies"
    """The kernel gets another tensor that no concatenation made. Expected nowhere."""
    ALTERS = "alters"
    """The kernel gets other values than the caller gave. Expected nowhere."""


UNREADABLE = "unreadable: "
"""How a cell begins that could not be decided; the rest says why."""

PLATFORMS = ("hip", "cuda", "musa")
IMPLEMENTATIONS = ("tilelang", "aiter", "flashmla_sparse", "flashmla_kv", "fa3", "trtllm")
SPLIT, CONCATENATED = "split", "concatenated"
FORMS = (SPLIT, CONCATENATED)
MODES = ("decode", "idle", "extend")

MODE_PREDICATES = {
    "decode": frozenset({"is_decode", "is_decode_or_idle"}),
    "idle": frozenset({"is_idle", "is_decode_or_idle"}),
    "extend": frozenset({"is_extend", "is_prefill", "is_extend_without_speculative"}),
}
"""The ``is_*`` predicates of SGLang's ``ForwardMode`` (0.5.12) that hold in a mode; every other one is false."""

GATED = ("tilelang", "aiter")
FLASHMLA = ("flashmla_sparse", "flashmla_kv")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row: the cells it covers, what is expected there, and why. The first rule that covers a cell decides it."""

    action: Action
    reason: str
    platforms: tuple[str, ...] = PLATFORMS
    implementations: tuple[str, ...] = IMPLEMENTATIONS
    forms: tuple[str, ...] = FORMS
    modes: tuple[str, ...] = MODES
    later: Action | None = None
    """Also accepted: what a later release does here, in a cell that no caller reaches."""

    def covers(self, platform: str, implementation: str, form: str, mode: str) -> bool:
        """Whether the cell is in this row."""
        return (
            platform in self.platforms
            and implementation in self.implementations
            and form in self.forms
            and mode in self.modes
        )


_EXTEND_REFUSES = "forward_extend demands q_rope, so prefill keeps the split form (the pull request's reason for it)"

BACKEND_RULES: tuple[Rule, ...] = (
    Rule(
        Action.NO_KERNEL,
        "an idle rank has no token: the backend's base class answers before any implementation is asked",
        modes=("idle",),
    ),
    Rule(
        Action.DELEGATED,
        "the trtllm implementation branches off first and treats q and q_rope itself",
        implementations=("trtllm",),
    ),
    Rule(
        Action.REFUSED,
        f"{_EXTEND_REFUSES}; 0.5.23 accepts it and skips the concatenation on HIP",
        platforms=("hip",),
        implementations=("tilelang",),
        forms=(CONCATENATED,),
        modes=("extend",),
        later=Action.REUSES,
    ),
    Rule(
        Action.REFUSED,
        f"{_EXTEND_REFUSES}; 0.5.23 accepts it and slices it apart",
        implementations=("fa3",),
        forms=(CONCATENATED,),
        modes=("extend",),
        later=Action.SEPARATE,
    ),
    Rule(
        Action.REFUSED,
        f"{_EXTEND_REFUSES}; 0.5.23 accepts it and concatenates as for decode",
        forms=(CONCATENATED,),
        modes=("extend",),
        later=Action.CONCATENATES,
    ),
    Rule(Action.SEPARATE, "FlashAttention 3 takes q_nope as qv and q_rope as q, apart", implementations=("fa3",)),
    Rule(
        Action.REUSES,
        "cat-skip: q_cat is contiguous and already in the kernel's layout (aiter decode meets it where "
        "prefill runs tilelang)",
        platforms=("hip",),
        implementations=GATED,
        forms=(CONCATENATED,),
        modes=("decode",),
    ),
    Rule(
        Action.CONCATENATES,
        "the gate is `q_all is None or not _is_hip`: what is not HIP concatenates as before, bit for bit",
        platforms=("cuda", "musa"),
        implementations=GATED,
        forms=(CONCATENATED,),
        modes=("decode",),
    ),
    Rule(
        Action.CONCATENATES,
        "the review took the gate back here: flashmla needs CUDA, so on HIP the gate could never act",
        implementations=FLASHMLA,
        forms=(CONCATENATED,),
        modes=("decode",),
    ),
    Rule(Action.CONCATENATES, "a kernel that reads one tensor gets the two parts concatenated", forms=(SPLIT,)),
)


@dataclasses.dataclass(frozen=True)
class CallerRule:
    """One row of the caller's table: the form that reaches the backend."""

    form: str
    reason: str
    platforms: tuple[str, ...] = PLATFORMS
    implementations: tuple[str, ...] = IMPLEMENTATIONS
    modes: tuple[str, ...] = MODES


CALLER_RULES: tuple[CallerRule, ...] = (
    CallerRule(
        CONCATENATED,
        "the fused kernel made q_cat and decode hands it over whole",
        platforms=("hip",),
        implementations=("tilelang",),
        modes=("decode", "idle"),
    ),
    CallerRule(
        SPLIT,
        "prefill slices q_cat, because forward_extend demands q_rope",
        platforms=("hip",),
        implementations=("tilelang",),
        modes=("extend",),
    ),
    CallerRule(SPLIT, "the fused kernel runs for TileLang on gfx95 only; here q_nope and q_pe were never joined"),
)


def backend_key(platform: str, implementation: str, form: str, mode: str) -> str:
    """The name of a backend cell: ``hip/tilelang/concatenated/decode``."""
    return f"{platform}/{implementation}/{form}/{mode}"


def caller_key(platform: str, implementation: str, mode: str) -> str:
    """The name of a caller cell: ``hip/tilelang/decode``."""
    return f"{platform}/{implementation}/{mode}"


def backend_table() -> Mapping[str, Rule]:
    """Every backend cell and the rule that decides it: 3 platforms x 6 implementations x 2 forms x 3 modes."""
    return {backend_key(*cell): next(rule for rule in BACKEND_RULES if rule.covers(*cell)) for cell in backend_cells()}


def caller_table() -> Mapping[str, CallerRule]:
    """Every caller cell and the rule that decides it: 3 platforms x 6 implementations x 3 modes."""
    return {
        caller_key(platform, implementation, mode): next(
            rule
            for rule in CALLER_RULES
            if platform in rule.platforms and implementation in rule.implementations and mode in rule.modes
        )
        for platform, implementation, mode in caller_cells()
    }


def backend_cells() -> Iterator[tuple[str, str, str, str]]:
    """Platform, implementation, form and mode of every backend cell."""
    return itertools.product(PLATFORMS, IMPLEMENTATIONS, FORMS, MODES)


def caller_cells() -> Iterator[tuple[str, str, str]]:
    """Platform, implementation and mode of every caller cell."""
    return itertools.product(PLATFORMS, IMPLEMENTATIONS, MODES)
