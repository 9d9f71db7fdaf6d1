"""The pictures and tables of docs/why-blocks.md, made from baselines/calibration/latency.json.

``python -m tests.calibration.why_blocks_pictures`` rewrites them; a test holds them to the recorded run.
"""

from __future__ import annotations

import html
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
RECORDED = ROOT / "baselines" / "calibration" / "latency.json"
PICTURES = ROOT / "docs" / "pictures"
PAGE = ROOT / "docs" / "why-blocks.md"

INK, FAINT, GOOD, BAD = "#1f2933", "#9aa5b1", "#2f6f9f", "#c8553d"

H200_TPOT_MS: Mapping[str, Sequence[float]] = {
    "cat, server 1": (3.631, 3.638, 3.633, 3.643),
    "cat, server 2": (3.661, 3.661, 3.642, 3.660),
    "skip, server 1": (3.634, 3.643, 3.643, 3.624),
    "skip, server 2": (3.636, 3.643, 3.634, 3.633),
}
"""Measured: SGLang 0.5.12, a reduced GLM-5 on one H200, concurrency 1, four servers timed in turn."""

USUAL = {
    "welch": "Welch's t over requests",
    "mann_whitney": "Mann-Whitney over requests",
    "two_sd": "outside two standard deviations of five runs",
    "asv": "asv's rule (U test, p < 0.002) on ten runs each",
    "fixed_servers": "eight paired runs, two fixed servers",
    "a_first": "eight pairs of fresh launches, A always first",
    "ours": "blocks, sequential t",
}


def svg(width: int, height: int, parts: Sequence[str], title: str) -> str:
    """One picture on a white ground, readable in dark pages too."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img" font-family="sans-serif" font-size="12" fill="{INK}">\n<title>{html.escape(title)}</title>\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def text(x: float, y: float, words: str, anchor: str = "start", colour: str = INK) -> str:
    """One line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{html.escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str = FAINT, dash: str = "") -> str:
    """One straight line."""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashes}/>'


def dot(x: float, y: float, colour: str = GOOD) -> str:
    """One point."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'


def launches() -> str:
    """Measured TPOT of four servers: repetitions agree, launches of one build do not."""
    low, high, left, width = 3.615, 3.67, 130, 470
    parts = [text(left, 20, "TPOT in ms: each dot one repetition, each row one server")]
    for tick in (3.62, 3.63, 3.64, 3.65, 3.66):
        x = left + (tick - low) / (high - low) * width
        parts += [line(x, 35, x, 165, "#e4e7eb"), text(x, 182, f"{tick:.2f}", "middle", FAINT)]
    for row, (name, values) in enumerate(H200_TPOT_MS.items()):
        y = 50 + 32 * row
        colour = BAD if name.startswith("cat") else GOOD
        parts += [text(left - 10, y + 4, name, "end")]
        parts += [dot(left + (v - low) / (high - low) * width, y, colour) for v in values]
    return svg(640, 195, parts, "Two launches of one build differ by half a percent")


def usual_ways(report: Mapping[str, Any]) -> str:
    """How often each way of judging calls a difference between two arms of one build."""
    row = _usual(report, 0.3, 0.0, 0.0)
    heated = _usual(report, 0.3, 0.0, 0.2)
    left, width = 300, 330
    parts = [text(left, 20, "false alarms in %: filled, launch sd 0.3 %; outlined, and the later is 0.2 % slower")]
    for i, (key, name) in enumerate(USUAL.items()):
        y = 36 + 34 * i
        plain, later = row[key]["rate"], heated[key]["rate"]
        colour = GOOD if key == "ours" else BAD
        parts += [
            text(left - 10, y + 16, name, "end"),
            f'<rect x="{left}" y="{y}" width="{plain * width:.1f}" height="12" fill="{colour}"/>',
            f'<rect x="{left}" y="{y + 13}" width="{later * width:.1f}" height="8" fill="none" stroke="{colour}"/>',
            text(left + max(plain, later, 0.055) * width + 6, y + 15, f"{100 * plain:.1f} / {100 * later:.1f}"),
        ]
    bottom = 36 + 34 * len(USUAL)
    x = left + 0.05 * width
    parts += [line(x, 28, x, bottom, INK, "3 3"), text(x, bottom + 14, "5 %", "middle")]
    return svg(790, bottom + 24, parts, "False alarms of the usual ways")


def _usual(report: Mapping[str, Any], launch_sd: float, gain: float, later: float) -> Mapping[str, Any]:
    wanted = (launch_sd, gain, later)
    rows: list[Mapping[str, Any]] = report["usual_ways"]
    return next(r for r in rows if (r["launch_sd"], r["gain"], r["later"]) == wanted)


def sizes(report: Mapping[str, Any]) -> str:
    """Blocks a fixed test needs, the sequential maximum, and what is used on average."""
    rows = report["planning"]
    left, bottom, step, unit = 60, 230, 118, 9.5
    parts = [text(left, 20, "blocks, for 90 % power at a gain of 0.74 %")]
    for tick in (0, 5, 10, 15, 20):
        y = bottom - tick * unit
        parts += [line(left - 5, y, left + 5 * step, y, "#e4e7eb"), text(left - 10, y + 4, str(tick), "end", FAINT)]
    bars = (
        ("fixed_blocks", FAINT, "fixed t test"),
        ("max_blocks", "#d3e3f0", "sequential, at most"),
        ("expected_blocks_at_0.74", "#7fb0d3", "mean if the gain is 0.74 %"),
        ("expected_blocks_at_2", GOOD, "mean if it is 2 %"),
    )
    for i, row in enumerate(rows):
        for j, (key, colour, _) in enumerate(bars):
            height = row[key] * unit
            x = left + 12 + i * step + j * 23
            parts += [
                f'<rect x="{x}" y="{bottom - height:.1f}" width="20" height="{height:.1f}" fill="{colour}"/>',
                text(x + 10, bottom - height - 4, f"{row[key]:.3g}", "middle"),
            ]
        parts.append(text(left + 12 + i * step + 45, bottom + 18, f"launch sd {row['launch_sd']:g} %", "middle"))
    for j, (_, colour, name) in enumerate(bars):
        x = left + j * 165
        parts += [f'<rect x="{x}" y="262" width="12" height="12" fill="{colour}"/>', text(x + 17, 272, name)]
    return svg(700, 285, parts, "Blocks needed and used")


def errors(report: Mapping[str, Any]) -> str:
    """False gains of the sequential plan in every condition, with the limit."""
    rows = report["primary"]
    left, width, most = 250, 380, 0.04
    parts = [text(left, 20, "false gains in %: blue, futility ignored, with upper 95 % limit; grey, as the plan stops")]
    for i, row in enumerate(rows):
        y = 40 + 19 * i
        measured, unstopped = row["false_gain_sequential"], row["false_gain_never_stopping_early"]
        x, limit = (left + unstopped[key] / most * width for key in ("rate", "upper_95"))
        parts += [
            text(left - 10, y + 4, f"{row['name']} ({row['max_blocks']})", "end"),
            line(x, y, limit, y, GOOD),
            dot(x, y),
            dot(left + measured["rate"] / most * width, y, FAINT),
            text(left + width + 8, y + 4, f"{100 * unstopped['rate']:.2f} / {100 * measured['rate']:.2f}"),
        ]
    bottom = 40 + 19 * len(rows)
    for value, name in ((0.025, "nominal 2.5"), (0.035, "limit 3.5")):
        x = left + value / most * width
        parts += [line(x, 28, x, bottom - 8, INK, "3 3"), text(x, bottom + 8, name, "middle")]
    return svg(740, bottom + 18, parts, "False gains, condition by condition")


def pictures(report: Mapping[str, Any]) -> dict[str, str]:
    """File name to SVG text."""
    return {
        "launches.svg": launches(),
        "usual_ways.svg": usual_ways(report),
        "sizes.svg": sizes(report),
        "errors.svg": errors(report),
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def usual_table(report: Mapping[str, Any]) -> str:
    """False alarms of the usual ways in three worlds, and what they find."""
    cases = ((0.0, 0.0, 0.0), (0.3, 0.0, 0.0), (0.3, 0.0, 0.2), (0.3, 0.74, 0.0))
    rows = [[name, *(f"{100 * _usual(report, *c)[key]['rate']:.1f} %" for c in cases)] for key, name in USUAL.items()]
    later = "and the later 0.2 % slower"
    return table(["way of judging", "no launch effect", "launch sd 0.3 %", later, "calls a gain of 0.74 %"], rows)


def sizes_table(report: Mapping[str, Any]) -> str:
    """Blocks needed and used."""
    rows = [
        [
            f"{row['launch_sd']:g} %",
            str(row["fixed_blocks"]),
            str(row["max_blocks"]),
            f"{row['expected_blocks_at_0.74']:.1f}",
            f"{row['expected_blocks_at_2']:.1f}",
            f"{100 * row['expected_blocks_at_2'] / row['fixed_blocks']:.0f} %",
        ]
        for row in report["planning"]
    ]
    head = (
        "launch sd",
        "fixed t test",
        "sequential, at most",
        "mean blocks at 0.74 %",
        "mean blocks at 2 %",
        "of the fixed",
    )
    return table(head, rows)


ERRORS = {
    "false_gain_never_stopping_early": "false gain, futility ignored",
    "false_gain_sequential": "false gain, as the plan stops",
    "false_exclusion_sequential": "useful gain wrongly excluded",
    "false_gain_sign_flip": "sign flip, 8 blocks",
    "false_gain_stein": "false gain, Stein's two stages",
    "family_error_max_t_8_blocks": "any scenario wrongly faster, max-T, 8 blocks",
    "family_error_max_t_10_blocks": "the same, 10 blocks",
    "family_error_holm_8_blocks": "the same, Holm on t, 8 blocks",
    "family_error_after_sequential_stop": "the same, after a sequential stop",
    "false_no_slower": "a scenario slower by the margin called no slower",
    "false_slower": "a scenario at the margin called slower",
    "same_build_alarm": "same-build alarm",
}
LEAST = {
    "power_at_planned_gain": "power at the planner's number, sd known",
    "power_from_recorded": "power, planned from 12 recorded launches",
    "power_stein": "power, Stein's two stages",
}


def worst_table(report: Mapping[str, Any]) -> str:
    """The worst condition of every criterion."""
    measured: dict[str, list[tuple[Mapping[str, Any], str]]] = {}
    for part in ("primary", "family", "planner"):
        for row in report[part]:
            for key, value in row.items():
                if isinstance(value, dict):
                    measured.setdefault(key, []).append((value, row["name"]))
    rows = []
    for key, name in ERRORS.items():
        value, where = max(measured[key], key=lambda pair: pair[0]["upper_95"])
        limit = 1.4 * value["nominal"]
        rate = f"{100 * value['rate']:.2f} %, upper limit {100 * value['upper_95']:.2f} %"
        rows.append([name, f"{100 * limit:.1f} % at most", rate, where])
    for which, name in (("final", "coverage of the interval at the stop"), ("repeated", "of the repeated interval")):
        values = [pair for key in measured if key.startswith(f"coverage_{which}") for pair in measured[key]]
        low, high = (pick(values, key=lambda pair: pair[0]["rate"]) for pick in (min, max))
        asked = "93 to 97 %" if which == "final" else "93 % or more"
        rates = f"{100 * low[0]['rate']:.1f} to {100 * high[0]['rate']:.1f} %"
        rows.append([name, asked, rates, f"{low[1]}; {high[1]}"])
    for key, name in LEAST.items():
        value, where = min(measured[key], key=lambda pair: pair[0]["rate"])
        rows.append([name, "90 % or more", f"{100 * value['rate']:.1f} %", where])
    asked_for = [pair for pair in measured["mean_blocks_at_2_over_fixed"] if pair[0]["asked_for"]]
    value, where = max(asked_for, key=lambda pair: pair[0]["value"])
    saving = "mean blocks over the fixed number, gain 2 %, launch sd of the primary 0.3 % or more"
    rows.append([saving, "60 % at most", f"{100 * value['value']:.0f} %", where])
    return table(["criterion", "asked for", "worst", "where"], rows)


def page(report: Mapping[str, Any], before: str) -> str:
    """The page with its tables made anew between their marks."""
    made = {"usual": usual_table(report), "sizes": sizes_table(report), "worst": worst_table(report)}
    for name, rows in made.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        head, _, rest = before.partition(begin)
        before = f"{head}{begin}\n{rows}\n{end}{rest.partition(end)[2]}"
    return before


def main() -> None:
    """Rewrite the pictures and the tables."""
    report = json.loads(RECORDED.read_text(encoding="utf-8"))
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, drawing in pictures(report).items():
        (PICTURES / name).write_text(drawing, encoding="utf-8")
    PAGE.write_text(page(report, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
