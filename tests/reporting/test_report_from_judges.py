"""Reports of what the real judges say: the keys that the plots read are the keys that the judges write."""

from __future__ import annotations

import dataclasses
import random

import pytest
from report_examples import judgement

from validation.judging.accuracy import judge_accuracy
from validation.judging.accuracy_arms import AccuracyPlan
from validation.judging.latency import judge_latency
from validation.judging.latency_design import LatencyPlan
from validation.judging.tokens import TokensPlan, judge_tokens
from validation.judging.tpot import BlockRatio
from validation.records import Question, Request
from validation.reporting import contents, plots, series, to_html, to_markdown
from validation.verdicts import Finding

SCENARIOS = ("8k1k-c4", "8k1k-c16", "1k1k-c4", "1k1k-c64")


def latency_findings(blocks: int = 6) -> list[Finding]:
    draw = random.Random(20260504)
    ratios = [
        BlockRatio(
            block, scenario, draw.gauss(-0.012, 0.002), "BC" if block % 2 else "CB", (f"b{block}",), (f"c{block}",)
        )
        for block in range(blocks)
        for scenario in SCENARIOS
    ]
    return judge_latency(ratios, LatencyPlan(scenarios=SCENARIOS))


def answer(arm: str, launch: int, index: int, text: str, scenario: str = "word-problems") -> Request:
    return Request(
        launch_id=f"{arm}{launch}",
        arm=arm,
        block=launch,
        run=0,
        scenario=scenario,
        index=index,
        prompt_tokens=10,
        cached_tokens=0,
        output_tokens=3,
        finish_reason="stop",
        text=text,
        output_ids=None,
        chunk_ns=(1, 2, 3),
        chunk_tokens=(1, 2, 3),
        queued_ns=0,
        end_ns=4,
        error=None,
    )


def accuracy_findings() -> list[Finding]:
    draw = random.Random(7)
    questions = [Question("word-problems", i, f"How many? {i}", f"Question: how many? {i}", str(i)) for i in range(120)]
    requests = [
        answer(arm, launch, q.index, q.gold if draw.random() < 0.93 else "0 <b>apples</b>")
        for arm in ("cat", "skip")
        for launch in range(3)
        for q in questions
    ]
    plan = AccuracyPlan("word-problems", "skip", "cat", "exact", runs=3, margin_points=3.0)
    return judge_accuracy(requests, questions, plan, {"exact": lambda text, gold: text == gold})


def tokens_findings() -> list[Finding]:
    requests = [
        answer(arm, launch, i, f"{i} apples") for arm in ("cat", "control") for launch in range(2) for i in range(4)
    ]
    requests += [
        answer("skip", launch, i, f"{i} pears" if i == 2 else f"{i} apples") for launch in range(2) for i in range(4)
    ]
    return judge_tokens(requests, TokensPlan("cat", "skip"))


@pytest.fixture(scope="module")
def findings() -> list[Finding]:
    return [*latency_findings(), *accuracy_findings(), *tokens_findings()]


def test_latency_forest_has_every_scenario_and_the_primary(findings: list[Finding]) -> None:
    forest = next(series.latency_forests(judgement(*findings)))
    assert [row.label for row in forest.rows] == [*SCENARIOS, "all scenarios"]
    assert forest.limit == -0.5
    for row in forest.rows:
        assert row.lower is not None
        assert row.upper is not None
        assert row.detectable is not None
        assert row.lower < row.estimate < row.upper
        assert row.estimate < 0, "a faster candidate lies left of zero"


def test_blocks_are_drawn_in_order_with_their_arms(findings: list[Finding]) -> None:
    (blocks,) = series.latency_blocks(judgement(*findings))
    assert [order for _, order in blocks.changes] == ["CB", "BC"] * 3


def test_accuracy_is_drawn_against_its_margin(findings: list[Finding]) -> None:
    j = judgement(*findings)
    forest = series.accuracy_forest(j)
    assert forest is not None
    assert forest.limit == -3.0
    (runs,) = series.accuracy_runs(j)
    assert {label for label, _ in runs.groups} >= {"cat", "skip"}
    assert runs.floor == pytest.approx(sum(runs.groups[0][1]) / len(runs.groups[0][1]) - 3.0)


def test_every_differing_prompt_is_listed_with_its_first_difference(findings: list[Finding]) -> None:
    (texts,) = contents.discordant_texts(judgement(*findings))["tokens"]
    assert texts.label == "scenario word-problems, prompt 2"
    assert texts.facts == "unit character; position 2; reference a; candidate p"
    html = to_html(judgement(*findings))
    assert html.count("Where the arms' texts differ") == 2
    assert texts.facts in html


def test_texts_are_quoted_where_the_judge_gives_them() -> None:
    (found,) = tokens_findings()
    item = {**found.numbers["first_divergences"][0], "prompt_text": "How many?", "reference_text": "2 <i>apples"}
    given = dataclasses.replace(found, numbers={**found.numbers, "first_divergences": [item]})
    html = to_html(judgement(given))
    assert "<pre>How many?</pre>" in html
    assert "<pre>2 &lt;i&gt;apples</pre>" in html


def test_page_and_comment_hold_the_plots_and_the_numbers(findings: list[Finding]) -> None:
    j = judgement(*findings)
    html = to_html(j)
    assert html.count("<svg") == len(plots.figures(j)) == 4
    assert all(scenario in html and scenario in to_markdown(j) for scenario in SCENARIOS)


def test_absolute_saving_is_drawn_where_the_judge_gives_it() -> None:
    primary, *rest = latency_findings()
    numbers = dict(primary.numbers)
    numbers["constant_saving_ms"] = 0.46
    numbers["scenarios"] = {
        name: {
            **values,
            "concurrency": int(name.rpartition("c")[2]),
            "baseline_tpot_ms": 20.0,
            "candidate_tpot_ms": 19.5,
        }
        for name, values in primary.numbers["scenarios"].items()
    }
    given = Finding(
        primary.name,
        primary.evidence,
        primary.verdict,
        primary.reason,
        primary.sentence,
        4,
        numbers,
        primary.detectable,
    )
    (savings,) = series.latency_savings(judgement(given, *rest))
    assert [point.saving_ms for point in savings.points] == [0.5] * 4
    assert savings.constant_ms == 0.46
    assert "constant 0.46 ms" in plots.savings_plot(savings)
    assert list(series.latency_savings(judgement(primary))) == []
