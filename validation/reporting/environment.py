"""Where the arms' environments differ, and what they have in common, from what each launch says of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from validation.e2e_plan import CONTROL
from validation.judgement import Judgement
from validation.records import Launch
from validation.reporting.values import MAX_ROWS, Table, flattened, is_list


@dataclasses.dataclass(frozen=True)
class Difference:
    """One key of the arms' identities whose values are not the same in every arm."""

    key: str
    values: Mapping[str, tuple[str, ...]]
    """Arm to the values that its launches gave, in order of first appearance; empty where none gave the key."""
    kind: str
    """``claimed``, ``unclaimed``, or ``varies``: another value at each launch of every arm, such as a port."""


def differences(judgement: Judgement) -> tuple[Difference, ...]:
    """Where the arms' environments differ, from ``Launch.identity``; the claimed differences first."""
    by_arm = _identities(judgement)
    if len(by_arm) < 2:
        return ()
    claimed = _claimed_keys(judgement)
    found = []
    for key in dict.fromkeys(key for launches in by_arm.values() for identity in launches for key in identity):
        values = {
            arm: tuple(dict.fromkeys(identity[key] for identity in launches if key in identity))
            for arm, launches in by_arm.items()
        }
        # An arm in which only some launches give the key is as different as one that gives another value.
        partial = {arm: sum(key in i for i in launches) < len(launches) for arm, launches in by_arm.items()}
        if len({(frozenset(values[arm]), partial[arm]) for arm in by_arm}) == 1:
            continue
        if any(_is_claimed(key, c) for c in claimed):
            kind = "claimed"
        elif all(len(values[arm]) == len(by_arm[arm]) > 1 for arm in by_arm):
            kind = "varies"
        else:
            kind = "unclaimed"
        found.append(Difference(key, values, kind))
    order = ("claimed", "unclaimed", "varies")
    return tuple(sorted(found, key=lambda d: order.index(d.kind)))


def shared_identity(judgement: Judgement) -> Table:
    """What every launch of the compared arms says of itself in the same words."""
    identities = [identity for launches in _identities(judgement).values() for identity in launches]
    first = identities[0] if identities else {}
    rows = [(key, value) for key, value in first.items() if all(i.get(key) == value for i in identities)]
    return Table("The same in every launch", ("key", "value"), tuple(rows[:MAX_ROWS]), max(0, len(rows) - MAX_ROWS))


def arms(launches: Sequence[Launch]) -> tuple[str, ...]:
    """The compared arms in order of appearance."""
    return tuple(dict.fromkeys(launch.arm for launch in launches if launch.arm != CONTROL))


def _identities(judgement: Judgement) -> dict[str, list[Mapping[str, str]]]:
    """Arm to the flattened identity of each of its launches. The planted break is no arm of the comparison."""
    by_arm: dict[str, list[Mapping[str, str]]] = {}
    for launch in judgement.launches:
        if launch.arm != CONTROL:
            # where its log lies says nothing of a build
            said = {key: value for key, value in launch.identity.items() if key != "log"}
            by_arm.setdefault(launch.arm, []).append(dict(flattened(said)))
    return by_arm


def _is_claimed(key: str, claimed: str) -> bool:
    """Whether the flattened ``key`` is ``claimed`` or lies in it, wherever in the identity that stands."""
    return f".{claimed}." in f".{key}.".replace("[", ".[")


def _claimed_keys(judgement: Judgement) -> tuple[str, ...]:
    claimed = judgement.run.declared.get("claimed_difference", ())
    if isinstance(claimed, str):
        return (claimed,)
    return tuple(str(key) for key in claimed) if is_list(claimed) else ()
