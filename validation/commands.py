"""The subcommands of ``python -m validation``."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence

from validation import integrity, triage
from validation.judgement import judge_folder
from validation.judging.latency_design import LatencyPlan, LaunchSd
from validation.judging.plan_accuracy import plan_accuracy
from validation.judging.plan_latency import plan_latency
from validation.judging.variance import components
from validation.options import OptionError, seconds_of
from validation.records import Record, RecordError, read_run
from validation.reporting import write_reports
from validation.reporting.escape import terminal

USAGE_ERROR = 4
"""As pytest's own."""


def main(words: Sequence[str]) -> int:
    """Run one subcommand; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m validation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add(
        commands,
        "report",
        "judge a run's raw records again and write its reports",
        _report,
        ("run", "folder of the run"),
    )
    verify = _add(
        commands, "verify", "say what in a run's folder differs from its raw records", _verify, ("run", "folder")
    )
    verify.add_argument("--manifest-sha256", metavar="HEX", help="what the manifest had when the run was signed")
    verify.add_argument("--public-key", type=pathlib.Path, metavar="FILE", help="also check the signature, by minisign")
    sign = _add(commands, "sign", "sign a run's manifest with minisign", _sign, ("run", "folder"))
    sign.add_argument("--key", type=pathlib.Path, required=True, metavar="FILE", help="minisign's secret key")
    _add_plan(commands)
    timeline = _add(commands, "timeline", "draw traces on one time scale", _timeline, ("out", "HTML file to write"))
    timeline.add_argument("--trace", action="append", required=True, metavar="NAME=FILE", help="a trace, with a name")
    _add(commands, "case", "draw the pages of a run's cases", _case, ("run", "folder of the run"))
    past = _add(commands, "history", "a scenario over recorded baselines, with intervals and change points", _history)
    past.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE", help="files under baselines/recorded")
    past.add_argument("--scenario", metavar="NAME", help="one scenario; accuracy is one too")
    past.add_argument("--hardware", metavar="NAME", help="one kind of hardware")
    past.add_argument("--output", type=pathlib.Path, metavar="DIR", help="also write Markdown and SVG there")
    commands.add_parser("triage", help="which evidence touches the changed code", add_help=False)
    if words and words[0] == "triage":
        return triage.main(words[1:])
    arguments = parser.parse_args(words)
    run: Callable[[argparse.Namespace], int] = arguments.run_command
    try:
        return run(arguments)
    except (RecordError, OptionError, integrity.SignatureError, OSError, ValueError) as error:
        print(f"error: {terminal(str(error))}", file=sys.stderr)
        return USAGE_ERROR


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    text: str,
    run: Callable[[argparse.Namespace], int],
    *positional: tuple[str, str],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    for argument, meaning in positional:
        parser.add_argument(argument, type=pathlib.Path, help=meaning)
    parser.set_defaults(run_command=run)
    return parser


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    plan = _add(commands, "plan", "blocks, runs, power and duration before anything is measured", _plan)
    plan.add_argument(
        "--pilot", type=pathlib.Path, metavar="RUN", help="run to take the launch standard deviation from"
    )
    plan.add_argument("--launch-sd", type=float, metavar="PERCENT", help="state it instead")
    plan.add_argument(
        "--gain", type=float, default=LatencyPlan.planned_gain_percent, metavar="PERCENT", help="gain to show"
    )
    plan.add_argument("--block-seconds", type=float, metavar="S", help="duration of one block")
    plan.add_argument("--budget", metavar="TIME", help="time there is, such as 90m")
    plan.add_argument(
        "--discordance", type=float, default=0.02, metavar="SHARE", help="questions that differ between runs"
    )
    plan.add_argument("--questions", type=int, default=1319, metavar="N", help="questions of the accuracy scenario")
    plan.add_argument("--margin", type=float, default=1.0, metavar="POINTS", help="non-inferiority margin")


def _report(arguments: argparse.Namespace) -> int:
    judgement = judge_folder(arguments.run)
    report = write_reports(arguments.run, judgement)
    integrity.write_manifest(arguments.run)
    print(terminal(judgement.headline))
    print(f"report: {report}")
    return judgement.exit_status


def _verify(arguments: argparse.Namespace) -> int:
    differences = integrity.verify(arguments.run, judge_folder, arguments.manifest_sha256)
    if arguments.public_key is not None:
        integrity.check_signature(arguments.run, arguments.public_key)
        print("the signature is good")
    for difference in differences:
        print(terminal(difference))
    print("nothing differs" if not differences else f"{len(differences)} differences")
    return 1 if differences else 0


def _timeline(arguments: argparse.Namespace) -> int:
    from validation.timeline import write_timeline

    print(f"analysis: {write_timeline(arguments.out, arguments.trace)}")
    return 0


def _case(arguments: argparse.Namespace) -> int:
    from validation.case_page import write_case_pages

    pages = write_case_pages(arguments.run)
    integrity.write_manifest(arguments.run)
    print(*pages, sep="\n")
    return 0


def _history(arguments: argparse.Namespace) -> int:
    from validation.history import history, read_files
    from validation.history_plot import to_text, write

    found = history(read_files(arguments.files), arguments.scenario, arguments.hardware)
    print("\n\n".join(to_text(one) for one in found))
    if arguments.output:
        print(f"history: {write(found, arguments.output)}")
    return 0


def _sign(arguments: argparse.Namespace) -> int:
    print(f"signature: {integrity.sign(arguments.run, arguments.key)}")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    launch_sd: LaunchSd | float | None = arguments.launch_sd
    if arguments.pilot is not None:
        launch_sd = pilot_launch_sd(read_run(arguments.pilot), arguments.pilot.name)
    base = dataclasses.replace(LatencyPlan(), planned_gain_percent=arguments.gain)
    budget_s = None if arguments.budget is None else seconds_of(arguments.budget, "--budget")
    print(plan_latency(launch_sd, base, block_s=arguments.block_seconds, budget_s=budget_s))
    accuracy = plan_accuracy(arguments.discordance, questions=arguments.questions, margin_points=arguments.margin)
    print(
        f"Accuracy: {accuracy.runs} runs an arm on {accuracy.questions} questions pass equal arms with power "
        f"{accuracy.power:.2f} at {arguments.margin:g} points and {100 * accuracy.discordance:g} % discordance; "
        f"smallest margin at 90 % power {accuracy.detectable_points:.2f} points."
    )
    return 0


def pilot_launch_sd(records: Sequence[Record], name: str) -> LaunchSd:
    """The launch standard deviation of a run, for planning the next one.

    Raises:
        ValueError: the run has too few launches to tell.
    """
    from validation.e2e_plan import BASELINE, CANDIDATE
    from validation.judging.tpot import measure_runs

    runs = [run for arm in (BASELINE, CANDIDATE) for run in measure_runs(records, arm)]
    found = components(runs)
    if found.launch_sd_percent is None:
        raise ValueError(f"the run {name} has too few launches to estimate their spread; expected at least 2 an arm")
    return LaunchSd(found.launch_sd_percent, len({run.launch_id for run in runs}), name)
