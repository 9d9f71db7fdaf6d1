"""The claim audit on the seed's document, on six made tables (three doctored), and on hostile input."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation.judging.claims import (
    ClaimError,
    Claims,
    MetricTable,
    Row,
    audit,
    claims_from_json,
    claims_from_table,
    facts_from_json,
)
from validation.judging.claims_changes import CONVENTION_WORDS, row_change
from validation.judging.claims_figures import Figure
from validation.judging.claims_reading import MAX_CHARACTERS
from validation.verdicts import AuditResult

HERE = pathlib.Path(__file__).parent
SEED = HERE.parents[1] / "baselines" / "seed_pr24125"
TABLES = sorted((HERE / "tables").glob("*.json"))


@pytest.fixture(scope="module")
def seed() -> dict[str, AuditResult]:
    claims = claims_from_json((SEED / "claims.json").read_text("utf-8"), "claims.json")
    facts = facts_from_json((SEED / "model_facts.json").read_text("utf-8"), "model_facts.json")
    return {result.name: result for result in audit(claims, facts)}


def shown(results: list[AuditResult]) -> dict[str, str]:
    return {result.name: f"{result.verdict.value} {result.reason}" for result in results}


def document(tables: tuple[MetricTable, ...] = (), statements: list[dict[str, Any]] | None = None) -> Claims:
    """A document of plain tables and raw statements, through the reader."""
    data = {
        "schema": 1,
        "title": "made",
        "source": "made",
        "tables": [
            {
                "name": table.name,
                "metric": table.metric,
                "unit": table.unit,
                "better": table.better,
                "change": table.change,
                "rows": [
                    {
                        "name": row.name,
                        "baseline": row.baseline and row.baseline.text,
                        "candidate": row.candidate and row.candidate.text,
                        "change": row.change and row.change.text,
                    }
                    for row in table.rows
                ],
            }
            for table in tables
        ],
        "statements": statements or [],
    }
    return claims_from_json(json.dumps(data))


def table_of(
    *rows: tuple[str, str, str], better: Any = "lower", change: Any = "signed", unit: str = "ms"
) -> MetricTable:
    made = tuple(Row(f"r{i}", Figure(b), Figure(c), Figure(d) if d else None) for i, (b, c, d) in enumerate(rows))
    return MetricTable("t", "metric", unit, better, made, change)


# The seed


def test_seed_says_what_the_facts_list(seed: dict[str, AuditResult]) -> None:
    verdicts = {name: result.verdict.value for name, result in seed.items() if ".change." not in name}
    assert verdicts == {
        "strict_improvement": "CONSISTENT",
        "saving_per_layer": "INCONSISTENT",
        "constant_saving": "UNSUPPORTED",
        "gain_decays_with_batch_size": "CONSISTENT",
        "gain_largest_at_small_batch_short_prompt": "CONSISTENT",
        "throughput_same_percentage": "UNSUPPORTED",
        "launches_per_step": "INCONSISTENT",
        "gsm8k.counts": "CONSISTENT",
        "gsm8k.range": "INCONSISTENT",
        "gsm8k.runs": "UNSUPPORTED",
        "gsm8k.sampling": "UNSUPPORTED",
        "layout_bit_exact_within_noise": "INCONSISTENT",
        "layout_saving_per_block": "CONSISTENT",
        "layout_call_sites": "CONSISTENT",
        "dual_stream_stall_share": "CONSISTENT",
        "repeated.GSM8K accuracy, candidate": "INCONSISTENT",
    }


def test_seed_ten_relative_changes_hold(seed: dict[str, AuditResult]) -> None:
    changes = [result for name, result in seed.items() if name.startswith("tpot.change.")]
    assert [result.reason for result in changes] == ["within_rounding"] * 10


def test_seed_saving_per_layer_is_2_1_to_2_5_times_the_claim(seed: dict[str, AuditResult]) -> None:
    numbers = seed["saving_per_layer"].numbers
    assert numbers["claimed_per_step"] == pytest.approx(0.2028)
    assert numbers["measured_per_step"] == pytest.approx([0.42, 0.50])
    assert numbers["measured_per_layer"] == pytest.approx([5.385, 6.410], abs=1e-3)
    assert "2.1 to 2.5 times" in seed["saving_per_layer"].sentence


def test_seed_constant_saving_needs_noise(seed: dict[str, AuditResult]) -> None:
    result = seed["constant_saving"]
    assert result.numbers["chi_square"] == pytest.approx(240.6, abs=0.05)
    assert result.numbers["degrees_of_freedom"] == 9
    assert result.numbers["noise_percent_needed"] == pytest.approx(0.0333, abs=1e-4)
    assert "at least 0.033 % of TPOT" in result.sentence


def test_seed_launches_count_five_steps(seed: dict[str, AuditResult]) -> None:
    assert "390 = 78 x 5" in seed["launches_per_step"].sentence
    assert seed["launches_per_step"].numbers["steps_implied"] == 5


def test_seed_accuracy_is_inconclusive_by_sampling(seed: dict[str, AuditResult]) -> None:
    numbers = seed["gsm8k.sampling"].numbers
    assert numbers["standard_error"] == pytest.approx(0.0063, abs=5e-5)
    assert numbers["difference_interval"][0] < 0 < numbers["difference_interval"][1]


def test_seed_sentences_show_the_figures_they_judge(seed: dict[str, AuditResult]) -> None:
    for name, words in {
        "gsm8k.range": ("0.942", "0.946", "0.953"),
        "layout_bit_exact_within_noise": ("~4",),
        "repeated.GSM8K accuracy, candidate": ("0.941", "0.942"),
        "throughput_same_percentage": ("2.51 %", "2.45 %"),
    }.items():
        assert all(word in seed[name].sentence for word in words), seed[name].sentence


def test_seed_without_model_facts_cannot_be_counted_by_layer() -> None:
    results = shown(audit(claims_from_json((SEED / "claims.json").read_text("utf-8"))))
    assert results["saving_per_layer"] == results["launches_per_step"] == "UNSUPPORTED no_layer_count"


# Six made tables


def test_there_are_six_made_tables_three_of_them_doctored() -> None:
    assert [path.stem.partition("_")[0] for path in TABLES] == ["doctored"] * 3 + ["honest"] * 3


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_made_table_gets_its_verdicts(path: pathlib.Path) -> None:
    made = json.loads(path.read_text("utf-8"))
    facts = facts_from_json(json.dumps(made["facts"])) if made["facts"] else None
    results = shown(audit(claims_from_json(json.dumps(made["claims"]), path.name), facts))
    assert results == made["expected"]
    assert ("INCONSISTENT" in " ".join(results.values())) == path.stem.startswith("doctored")


# Rounding and conventions


@pytest.mark.parametrize(
    ("text", "lo", "hi"),
    [("21.21", 21.205, 21.215), ("-2.0", -2.05, -1.95), ("3", 2.5, 3.5), ("~2.6", 2.5, 2.7), ("0.00", -0.005, 0.005)],
)
def test_figure_stands_for_what_rounds_to_it(text: str, lo: float, hi: float) -> None:
    interval = Figure(text).interval
    assert [float(interval.lo), float(interval.hi)] == pytest.approx([lo, hi])


@pytest.mark.parametrize("text", ["", "1e3", "1,000", ".5", "5.", "nan", "--1", "1" * 16, "\u0661", "1 ", "0x1", "~"])
def test_figure_refuses_what_is_no_plain_decimal(text: str) -> None:
    with pytest.raises(ClaimError, match="expected one such as"):
        Figure(text)


@pytest.mark.parametrize(
    ("change", "better", "stated"),
    [
        ("signed", "lower", "-20.0"),
        ("reduction", "lower", "20.0"),
        ("improvement", "lower", "20.0"),
        ("improvement", "higher", "-20.0"),
        ("speedup_percent", "lower", "25.0"),
        ("speedup_percent", "higher", "-20.0"),
        ("speedup_ratio", "lower", "1.25"),
        ("speedup_ratio", "higher", "0.80"),
        ("difference", "lower", "-20.0"),
        ("absolute_gain", "lower", "20.0"),
        ("absolute_gain", "higher", "-20.0"),
    ],
)
def test_each_convention_accepts_its_own_and_refuses_a_neighbour(change: Any, better: Any, stated: str) -> None:
    table = table_of(("100.00", "80.00", stated), better=better, change=change)
    assert shown(audit(document((table,)))) == {"t.change.r0": "CONSISTENT within_rounding"}
    off = f"{float(stated) + 0.2:.2f}"
    assert (
        audit(document((table_of(("100.00", "80.00", off), better=better, change=change),)))[0].verdict
        == "INCONSISTENT"
    )


@given(
    baseline=st.decimals("0.1", "9999", places=4),
    candidate=st.decimals("0.1", "9999", places=4),
    places=st.integers(0, 3),
    claimed_places=st.integers(0, 3),
    convention=st.sampled_from(["signed", "reduction", "improvement"]),
    better=st.sampled_from(["lower", "higher"]),
)
def test_an_honest_author_is_never_called_inconsistent(
    baseline: Any, candidate: Any, places: int, claimed_places: int, convention: Any, better: Any
) -> None:
    change = 100 * (candidate - baseline) / baseline
    if convention == "reduction" or (convention == "improvement" and better == "lower"):
        change = -change
    row = (f"{baseline:.{places}f}", f"{candidate:.{places}f}", f"{change:.{claimed_places}f}")
    result = audit(document((table_of(row, better=better, change=convention),)))[0]
    assert result.verdict != "INCONSISTENT", result.sentence


def test_every_convention_is_explained_and_derivable() -> None:
    table = table_of(("10.0", "9.0", ""))
    assert all(row_change(table, table.rows[0], convention) is not None for convention in CONVENTION_WORDS)


# Single checks


@pytest.mark.parametrize(
    ("statistic", "value", "reason"),
    [
        ("mean_change", "-15.0", "within_rounding"),
        ("change_of_means", "-18.3", "within_rounding"),
        ("average_change", "-18.3", "within_rounding"),
        ("geometric_mean_change", "-15.1", "within_rounding"),
        ("geometric_mean_change", "-18.3", "another_statistic"),
        ("min_change", "-20.0", "within_rounding"),
        ("max_change", "-20.0", "another_statistic"),
        ("mean_baseline", "60.00", "within_rounding"),
        ("mean_candidate", "49.00", "within_rounding"),
        ("geometric_mean_baseline", "44.7", "within_rounding"),
        ("geometric_mean_candidate", "38.0", "within_rounding"),
        ("mean_gain", "11.0", "within_rounding"),
        ("mean_change", "-99", "outside_rounding"),
    ],
)
def test_aggregates(statistic: str, value: str, reason: str) -> None:
    table = table_of(("20.00", "18.00", "-10.0"), ("100.00", "80.00", "-20.0"))
    claim = {"kind": "aggregate", "name": "a", "table": "t", "statistic": statistic, "value": value}
    assert audit(document((table,), [claim]))[-1].reason == reason


def test_an_average_over_rows_that_are_not_shown_is_unsupported() -> None:
    table = MetricTable(
        "t", "m", "ms", "lower", (Row("a", Figure("10.0"), Figure("9.0")), Row("b", Figure("9.0"), None))
    )
    claim = {"kind": "aggregate", "name": "a", "table": "t", "statistic": "mean_change", "value": "-30"}
    assert shown(audit(document((table,), [claim]))) == {"a": "UNSUPPORTED rows_missing"}


def test_noise_needed_reconciles_the_table_exactly() -> None:
    """With the condition's noise shown, a constant holds; with a tenth less it does not."""
    claims = json.loads((SEED / "claims.json").read_text("utf-8"))
    for noise, reason in (("0.034", "shown_noise_suffices"), ("0.030", "shown_noise_too_small")):
        claims["statements"] = [{"kind": "constant_saving", "name": "c", "table": "tpot", "noise_percent": noise}]
        assert audit(claims_from_json(json.dumps(claims)))[-1].reason == reason


def test_no_noise_reconciles_rows_that_start_at_zero() -> None:
    table = table_of(("0.00", "1.00", ""), ("0.00", "2.00", ""))
    claim = {"kind": "constant_saving", "name": "c", "table": "t"}
    assert shown(audit(document((table,), [claim]))) == {"c": "INCONSISTENT no_noise_suffices"}


# Reading


def changed(**fields: Any) -> str:
    data = {"schema": 1, "title": "t", "source": "s", "tables": [], "statements": []}
    return json.dumps({**data, **fields})


TABLE = {"name": "t", "metric": "m", "unit": "ms", "better": "lower", "rows": []}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "f.json is a list, expected an object"),
        ("{", "f.json is no JSON document"),
        ("[" * 100_000, "f.json is no JSON document"),
        ('{"schema": 1, "schema": 1}', "f.json: the key 'schema' stands twice"),
        (changed(schema=2), "f.json: schema is 2, expected 1"),
        (changed(extra=1), "f.json: extra is unknown, expected one of"),
        ('{"schema": 1, "title": "t"}', "f.json: source is missing"),
        (changed(title=1), "f.json: title is 1, expected a printable line"),
        (changed(title="a\u202eb"), "expected a printable line"),
        (changed(title="x" * 301), "expected a printable line of at most 300"),
        (
            changed(tables=[{**TABLE, "better": "faster"}]),
            r"tables\[0\].better is 'faster', expected one of lower, higher",
        ),
        (
            changed(tables=[{**TABLE, "rows": [{"name": "a", "baseline": 21.2, "candidate": None}]}]),
            r"tables\[0\].rows\[0\].baseline is 21.2, expected a decimal in quotes",
        ),
        (
            changed(tables=[{**TABLE, "rows": [{"name": "a", "baseline": "1e5", "candidate": None}]}]),
            r"tables\[0\].rows\[0\].baseline: '1e5' is no plain decimal",
        ),
        (changed(tables=[{**TABLE, "rows": [{}] * 1001}]), "holds 1001 items, expected at most 1000"),
        (changed(tables=[TABLE, TABLE]), "tables hold the name 't' twice"),
        (changed(statements=[{"kind": "praise"}]), r"statements\[0\].kind is 'praise', expected one of accuracy"),
        (changed(statements=["fast"]), r"statements\[0\].kind is null, expected one of"),
        (
            changed(statements=[{"kind": "constant_saving", "name": "c", "table": "x"}]),
            r"statements\[0\].table is 'x', expected one of",
        ),
        (
            changed(
                statements=[
                    {"kind": "kernel_count", "name": "k", "kernel": "k", "before": True, "after": 0, "per": "step"}
                ]
            ),
            r"statements\[0\].before is True, expected an integer",
        ),
        (
            changed(
                statements=[
                    {
                        "kind": "kernel_count",
                        "name": "k",
                        "kernel": "k",
                        "before": 1,
                        "after": 0,
                        "per": "step",
                        "layers": 0,
                    }
                ]
            ),
            r"statements\[0\].layers is 0, expected at least 1",
        ),
        (" " * (MAX_CHARACTERS + 1), "expected at most 1000000"),
    ],
    ids=range(21),
)
def test_json_errors_name_file_field_and_expectation(text: str, message: str) -> None:
    with pytest.raises(ClaimError, match=message) as error:
        claims_from_json(text, "f.json")
    assert str(error.value).startswith("f.json")
    assert "\n" not in str(error.value)


def test_a_fact_without_source_is_refused() -> None:
    with pytest.raises(ClaimError, match="no source"):
        facts_from_json('{"schema": 1, "model": "m", "facts": [{"name": "layers", "value": 78, "source": ""}]}')


MARKDOWN = """Before the table | after

| Scenario | Before | After | TPOT Δ |
|:---|---:|---:|---:|
| **8k1k conc4** | 21.21 ms | 20.76 ms | \u22122.17% |
| 8k1k conc8 | 25.28 ms | 24.82 ms | ↓1.82% |
| 1k1k conc4 | 18.79 ms | n/a | - |
| Average | 23.245 ms | 22.790 ms | -2.0% |

Afterwards
"""


def test_markdown_table_keeps_decimals_and_reads_units() -> None:
    claims = claims_from_table(MARKDOWN)
    table = claims.tables[0]
    assert (table.unit, table.better, table.change, table.metric) == ("ms", "lower", "signed", "TPOT")
    first = Row("8k1k conc4", Figure("21.21"), Figure("20.76"), Figure("-2.17"), "8k1k", Figure("4"))
    assert table.rows[0] == first
    assert table.rows[1].change == Figure("-1.82")
    assert (table.rows[2].candidate, table.rows[2].change) == (None, None)
    assert {name: verdict.split()[0] for name, verdict in shown(audit(claims)).items()} == {
        "table.change.8k1k conc4": "CONSISTENT",
        "table.change.8k1k conc8": "CONSISTENT",
        "table.average1.change": "CONSISTENT",
        "table.average1.baseline": "UNSUPPORTED",
        "table.average1.candidate": "CONSISTENT",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "c,baseline_tpot_ms,candidate_tpot_ms,claimed_change_percent\n4,21.21,20.76,-2.17\n",
            ("ms", "lower", "signed"),
        ),
        ("bs;old (tok/s);new (tok/s);gain\n1;1000;1,100;10%\n", ("tok/s", "higher", "improvement")),
        ("bs\tbefore\tafter\tspeedup\n1\t12.1 µs\t11.0 µs\t1.10x\n", ("us", "lower", "speedup_ratio")),
        ("bs,before (us),after (us),saved (us)\n1,12.1,11.0,1.1\n", ("us", "lower", "absolute_gain")),
        ("bs,before (us),after (us),reduction %\n1,10.0,9.0,↓10\n", ("us", "lower", "reduction")),
        ("task,before,after,accuracy diff\nGSM8K,95.1%,94.2%,-0.9 pp\n", ("%", "higher", "difference")),
    ],
    ids=["csv", "semicolons", "tsv", "absolute", "arrow", "points"],
)
def test_table_unit_direction_and_convention(text: str, expected: tuple[str, str, str]) -> None:
    claims = claims_from_table(text)
    table = claims.tables[0]
    assert (table.unit, table.better, table.change) == expected
    assert [result.reason for result in audit(claims)] == ["within_rounding"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no table"),
        ("a,b\n1,2\n", "has 0 columns for the baseline"),
        ("before,after,new\n1,2,3\n", "has 2 columns for the candidate"),
        ("n,before,after\n1,2\n", "row 1 has 2 cells, expected 3"),
        ("n,before,after\n1,2 ms,fast\n", "row 1, column 'after' is 'fast', expected a number"),
        ("n,before,after\n1,2 ms,3 us\n", "row 1 has values in ms and us, expected one unit"),
        ("n,before,after\n1,2,3\n", "state better"),
        ("n;before ms;after ms\n1;2,5;3\n", "is '2,5', expected a number"),
        ('n,before,after\n"1,2,3\n', "is no CSV table"),
    ],
)
def test_table_errors_say_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(ClaimError, match=message):
        claims_from_table(text, "table")


def test_rows_of_different_metrics_become_a_table_for_each_unit() -> None:
    text = """| Metric | Before | After | Improvement |
|---|---|---|---|
| Mean TPOT | 21.21 ms | 20.76 ms | 2.1% |
| P99 TTFT | 0.80 ms | 0.84 ms | 5% |
| Output throughput | 1000 tok/s | 1021 tok/s | 2.1% |
"""
    claims = claims_from_table(text)
    assert [(table.name, table.better) for table in claims.tables] == [("table.ms", "lower"), ("table.tok/s", "higher")]
    assert shown(audit(claims)) == {
        "table.ms.change.Mean TPOT": "CONSISTENT within_rounding",
        "table.ms.change.P99 TTFT": "INCONSISTENT sign_flipped",
        "table.tok/s.change.Output throughput": "CONSISTENT within_rounding",
    }


def test_table_roles_can_be_named() -> None:
    text = "n,w/o patch,w/ patch\n1,10.0 ms,9.0 ms\n"
    claims = claims_from_table(text, columns={"baseline": "w/o patch", "candidate": "w/ patch"})
    assert claims.tables[0].rows[0].candidate == Figure("9.0")


CELL = st.one_of(
    st.sampled_from(
        ["1.0 ms", "0", "-3", "2 us", "1,000", "n/a", "↓2%", "1.05x", "~3.1%", "", "Average", "c4", "\u22121"]
    ),
    st.text(max_size=12),
)


@settings(max_examples=150)
@given(st.text(max_size=300) | st.text(alphabet="|-:,;\t\n\"'\\ 0123456789.%beforatncd", max_size=300))
def test_any_text_is_a_table_or_a_claim_error(text: str) -> None:
    read_and_audit(text)


@settings(max_examples=200)
@given(st.lists(st.tuples(CELL, CELL, CELL, CELL), min_size=1, max_size=6), st.sampled_from(["|", ","]))
def test_any_cells_are_a_table_or_a_claim_error(rows: list[tuple[str, ...]], mark: str) -> None:
    lines = ["scenario|before (ms)|after|change", "---|---|---|---", *("|".join(row) for row in rows)]
    text = "\n".join(lines) if mark == "|" else "\n".join(lines[:1] + lines[2:]).replace("|", ",")
    read_and_audit(text)


def read_and_audit(text: str) -> None:
    try:
        claims = claims_from_table(text, better="lower")
    except ClaimError:
        return
    json.dumps([result.to_json() for result in audit(claims)], allow_nan=False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["1.0", "t", "ms"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
MADE = [json.loads(path.read_text("utf-8"))["claims"] for path in TABLES]


@settings(max_examples=300)
@given(st.sampled_from(MADE), st.data())
def test_a_damaged_document_is_read_or_a_claim_error(made: dict[str, Any], data: st.DataObject) -> None:
    """Replace one value anywhere in a good document by anything JSON can hold."""
    damaged = json.loads(json.dumps(made))
    at: Any = damaged
    while True:
        key = data.draw(st.sampled_from(list(at) if isinstance(at, dict) else list(range(len(at)))))
        if not isinstance(at[key], (dict, list)) or not at[key] or data.draw(st.integers(0, 4)) == 0:
            at[key] = data.draw(JSON)
            break
        at = at[key]
    try:
        claims = claims_from_json(json.dumps(damaged))
    except ClaimError:
        return
    json.dumps([result.to_json() for result in audit(claims)], allow_nan=False)
