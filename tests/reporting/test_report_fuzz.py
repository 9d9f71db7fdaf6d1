"""The fuzz script in small, and a planted defect that it must find."""

from __future__ import annotations

import fuzz_untrusted
import pytest

from validation.reporting import escape


def test_no_reader_faults_on_a_small_run() -> None:
    tallies = fuzz_untrusted.fuzz(3000, seed=20260504)
    assert {name: tally.faults for name, tally in tallies.items() if tally.faults} == {}
    assert sum(tally.inputs for tally in tallies.values()) >= 3000


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("markdown", lambda text, limit=300: escape.one_line(text, limit)),
        ("markdown_code", lambda text, limit=300: f"`{escape.one_line(text, limit)}`"),
        ("one_line", lambda text, limit=300: text[:limit]),
    ],
)
def test_a_broken_escaper_is_found(monkeypatch: pytest.MonkeyPatch, name: str, broken: object) -> None:
    monkeypatch.setattr(escape, name, broken)
    tallies = fuzz_untrusted.fuzz(2000, seed=1, only="escape")
    assert any(tally.faults for tally in tallies.values())


def test_the_same_seed_gives_the_same_inputs() -> None:
    first, again = (fuzz_untrusted.fuzz(300, seed=5, only="records") for _ in range(2))
    assert first["records"].refused == again["records"].refused
