"""Printed decimals as what they are: intervals of the numbers that round to them. Exact arithmetic throughout."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from fractions import Fraction

_FIGURE = re.compile(r"(~?)([+-]?)(\d{1,15})(?:\.(\d{1,15}))?\Z", re.ASCII)


class ClaimError(ValueError):
    """A claims document that cannot be read; one sentence with the file, the field and what was expected."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A closed interval of exact rationals, ``lo <= hi``."""

    lo: Fraction
    hi: Fraction

    @property
    def mid(self) -> Fraction:
        """The middle."""
        return (self.lo + self.hi) / 2

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.lo + other.lo, self.hi + other.hi)

    def __sub__(self, other: Interval) -> Interval:
        return Interval(self.lo - other.hi, self.hi - other.lo)

    def __mul__(self, other: Interval) -> Interval:
        return hull(a * b for a in (self.lo, self.hi) for b in (other.lo, other.hi))

    def __truediv__(self, other: Interval) -> Interval:
        if other.lo <= 0 <= other.hi:
            raise ZeroDivisionError("the divisor's interval holds zero")
        return hull(a / b for a in (self.lo, self.hi) for b in (other.lo, other.hi))

    def __neg__(self) -> Interval:
        return Interval(-self.hi, -self.lo)

    def overlaps(self, other: Interval) -> bool:
        """Whether some number lies in both."""
        return self.lo <= other.hi and other.lo <= self.hi

    def __str__(self) -> str:
        lo, hi = f"{float(self.lo):.5g}", f"{float(self.hi):.5g}"
        return lo if lo == hi else f"{lo} to {hi}"


def exactly(value: int | Fraction) -> Interval:
    """The interval that holds ``value`` alone."""
    return Interval(Fraction(value), Fraction(value))


def hull(values: Iterable[Fraction]) -> Interval:
    """The smallest interval that holds all ``values``; at least one."""
    items = list(values)
    return Interval(min(items), max(items))


def common(intervals: Iterable[Interval]) -> Interval | None:
    """The numbers that lie in every interval, or None."""
    items = list(intervals)
    lo, hi = max(i.lo for i in items), min(i.hi for i in items)
    return Interval(lo, hi) if lo <= hi else None


@dataclasses.dataclass(frozen=True)
class Figure:
    """A decimal as its author printed it, e.g. ``"21.21"``, ``"-2.170"``, ``"~2.6"`` for "about 2.6".

    Raises:
        ClaimError: the text is no plain decimal of at most 15 digits either side of the point.
    """

    text: str

    def __post_init__(self) -> None:
        if not _FIGURE.match(self.text):
            raise ClaimError(f'{self.text[:40]!r} is no plain decimal; expected one such as "21.21", "-2.17" or "~2.6"')

    @property
    def approximate(self) -> bool:
        """Whether the author wrote "about"."""
        return self.text.startswith("~")

    @property
    def value(self) -> Fraction:
        """The printed number itself."""
        return Fraction(self.text.removeprefix("~"))

    @property
    def unit_in_last_place(self) -> Fraction:
        """0.01 for ``"21.21"``, 1 for ``"38000"``: trailing zeros before the point count as known."""
        return Fraction(1, 10 ** len(self.text.partition(".")[2]))

    @property
    def interval(self) -> Interval:
        """Every number that may be printed so: half a last place either side, a whole one for "about".

        Both ends are included, so that no rounding rule for ties is presumed.
        """
        margin = self.unit_in_last_place if self.approximate else self.unit_in_last_place / 2
        return Interval(self.value - margin, self.value + margin)

    @property
    def truncation_interval(self) -> Interval:
        """Every number that is printed so by an author who drops digits instead of rounding."""
        away = self.unit_in_last_place * (-1 if self.text.removeprefix("~").startswith("-") else 1)
        return hull((self.value, self.value + away))

    def __str__(self) -> str:
        return self.text
