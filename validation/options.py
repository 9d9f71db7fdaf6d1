"""The command line: every option, checked once, as one frozen ``Settings``."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest

from validation.arms import READY_TIMEOUT_S, check_template, check_url
from validation.builds import Build
from validation.client.redaction import Secret
from validation.discovery import ROOT
from validation.profiles import Profile

API_KEY_VARIABLE = "VALIDATION_API_KEY"
BASELINES_VARIABLE = "VALIDATION_BASELINES"
GSM8K_VARIABLE = "GSM8K_PATH"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}\Z")


class OptionError(ValueError):
    """An option that cannot be used; the message names it, its value and what was expected."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the user asked for. ``None`` means: not given."""

    profile: Profile
    seed: int
    matrix: str
    run_dir: pathlib.Path | None
    server_url: str | None
    baseline_url: str | None
    baseline: str | None
    record: str | None
    baseline_cmd: str | None
    candidate_cmd: str | None
    baseline_stop_cmd: str
    candidate_stop_cmd: str
    control_cmd: str | None
    control_stop_cmd: str
    baseline_build: Build | None
    candidate_build: Build | None
    """Of the control too, which is the candidate with a planted break."""
    ready_timeout_s: float | None
    backend: str
    accuracy_floor: float | None
    gsm8k: pathlib.Path | None
    questions: int | None
    scenarios: tuple[str, ...]
    accuracy_scenario: str | None
    blocks: int | None
    block_design: str | None
    """``pair`` or ``quadruple``."""
    runs: int
    budget_s: float | None
    gpus: tuple[str, ...]
    """Sets of devices, which blocks take turns with."""
    resume: pathlib.Path | None
    same_build: pathlib.Path | None
    ray: str | None
    ray_resources: str | None
    dry_run: bool
    collect_trace: bool
    baseline_trace: tuple[pathlib.Path, ...]
    candidate_trace: tuple[pathlib.Path, ...]
    claims: tuple[pathlib.Path, ...]
    baselines: pathlib.Path
    """Folder of recorded baselines."""
    api_key: Secret | None = None

    @property
    def form(self) -> str:
        """``embedded``, ``single`` (one given server), ``urls`` or ``commands``."""
        if self.candidate_cmd:
            return "commands"
        if self.server_url:
            return "urls" if self.baseline_url else "single"
        return "embedded"

    def run_folder(self) -> pathlib.Path:
        """The folder of this run; chosen once a process."""
        return self.resume or self.run_dir or _default_folder()


SETTINGS: pytest.StashKey[Settings] = pytest.StashKey()


@functools.cache
def _default_folder() -> pathlib.Path:
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    return pathlib.Path("runs") / f"{stamp}-{os.getpid()}"


def add_options(parser: pytest.Parser) -> None:
    """Declare every option in one group."""
    group = parser.getgroup("validation", "validation of a serving optimisation")
    add = group.addoption
    add(
        "--gate",
        choices=[p.value for p in Profile],
        help="verdict profile (default: rehearsal on the embedded engine, else pr)",
    )
    add("--run-dir", metavar="DIR", help="folder of raw records and reports (default: runs/<time>)")
    add("--suite-seed", type=int, default=20240, metavar="N", help="seed of block order and prompts")
    add("--kernel-matrix", choices=["default", "full"], default="default", help="how many kernel cells")
    add("--server-url", metavar="URL", help="the server to measure (the candidate)")
    add("--baseline-url", metavar="URL", help="a second server to compare --server-url with")
    add("--baseline", metavar="NAME", help="recorded baseline to compare --server-url with")
    add("--record", metavar="NAME", help="record what was measured as a baseline of this name")
    add(
        "--baselines",
        metavar="DIR",
        help=f"folder of recorded baselines (default: {BASELINES_VARIABLE}, else baselines/recorded of the checkout)",
    )
    add(
        "--baseline-cmd",
        metavar="CMD",
        help="command that starts the baseline; {port} {gpus} {logdir} {image} are filled in",
    )
    add("--candidate-cmd", metavar="CMD", help="command that starts the candidate")
    add("--baseline-stop-cmd", metavar="CMD", default="", help="run before the baseline's process group is ended")
    add("--candidate-stop-cmd", metavar="CMD", default="", help="run before the candidate's process group is ended")
    add(
        "--control-cmd", metavar="CMD", help="command that starts a build with a planted break: the sensitivity control"
    )
    add("--control-stop-cmd", metavar="CMD", default="", help="run before the control's process group is ended")
    for arm in ("baseline", "candidate"):
        add(
            f"--{arm}-worktree",
            metavar="DIR",
            help=f"git worktree that the {arm} is: its commands run there; commit and changes are recorded",
        )
        add(
            f"--{arm}-env",
            metavar="DIR",
            help=f"virtual environment whose bin comes first on the {arm}'s PATH (default: .venv of its worktree, "
            "where there is one)",
        )
        add(
            f"--{arm}-image",
            metavar="REF",
            help=f"image that the {arm} is, NAME@sha256:DIGEST: what {{image}} in its commands becomes",
        )
    add(
        "--ready-timeout",
        metavar="TIME",
        help=f"how long a started server may take until it answers, such as 20m (default: {READY_TIMEOUT_S / 60:.0f}m; "
        "the embedded engine: 2m)",
    )
    add("--backend", default="sglang_native", metavar="NAME", help="file under scenarios/backends")
    add("--accuracy-floor", metavar="SHARE", help="lowest accuracy to accept of a single server, 0 to 1")
    add("--gsm8k", metavar="PATH", help="GSM8K as JSONL, or the folder that holds test.jsonl and train.jsonl")
    add("--questions", type=int, metavar="N", help="how many questions (default: as the profile plans)")
    add("--scenario", action="append", default=[], metavar="NAME", help="latency scenario (repeatable)")
    add(
        "--accuracy-scenario",
        metavar="NAME",
        help="which questions (default: gsm8k; word-problems on the embedded engine)",
    )
    add("--blocks", type=int, metavar="N", help="blocks of fresh launches")
    add(
        "--block-design",
        choices=["pair", "quadruple"],
        help="launches of a block: AB or BA; or ABBA or BAAB, twice as long, in which drift and position cancel "
        "(default: pair, unless the run of --same-build shows a position effect)",
    )
    add("--accuracy-runs", type=int, default=1, metavar="K", help="accuracy runs an arm and block")
    add("--budget", metavar="TIME", help="time to spend, such as 90m; the planner chooses scenarios and blocks")
    add(
        "--gpus",
        action="append",
        default=[],
        metavar="LIST",
        help="what {gpus} becomes, such as 0,1 (repeatable: the blocks take turns with the sets in random order, and "
        "both arms of a block run on the same)",
    )
    add("--resume", metavar="RUN", help="go on with a run folder; finished requests are not repeated")
    add("--ray", metavar="ADDRESS", help="run blocks as tasks of this Ray cluster (extra `ray`)")
    add("--ray-resources", metavar="LABELS", help="what a block needs there, such as MI355X=8")
    add("--same-build", metavar="RUN", help="recorded run whose two arms are one build (A/A), for plan and verdict")
    add("--dry-run", action="store_true", help="print servers, scenarios, blocks, duration and power; measure nothing")
    add("--profile", action="store_true", help="also ask the server for profiler traces")
    add("--baseline-trace", action="append", default=[], metavar="FILE", help="trace of the baseline, one a rank")
    add("--candidate-trace", action="append", default=[], metavar="FILE", help="trace of the candidate, one a rank")
    add(
        "--claims", action="append", default=[], metavar="FILE", help="an author's claims as JSON (default: the seed's)"
    )
    add("--api-key", metavar="KEY", help=f"bearer token of the servers (better: the variable {API_KEY_VARIABLE})")


def read_settings(config: pytest.Config) -> Settings:
    """The options of this session, checked.

    Raises:
        OptionError: one of them cannot be used, or two contradict each other.
    """
    get = config.getoption
    embedded = not (get("--server-url") or get("--candidate-cmd"))
    settings = Settings(
        profile=Profile(get("--gate") or (Profile.REHEARSAL if embedded else Profile.PR)),
        seed=get("--suite-seed"),
        matrix=get("--kernel-matrix"),
        run_dir=_path(get("--run-dir")),
        server_url=_url(get("--server-url"), "--server-url"),
        baseline_url=_url(get("--baseline-url"), "--baseline-url"),
        baseline=_name(get("--baseline"), "--baseline"),
        record=_name(get("--record"), "--record"),
        baseline_cmd=_template(get("--baseline-cmd"), "--baseline-cmd"),
        candidate_cmd=_template(get("--candidate-cmd"), "--candidate-cmd"),
        baseline_stop_cmd=_template(get("--baseline-stop-cmd"), "--baseline-stop-cmd") or "",
        candidate_stop_cmd=_template(get("--candidate-stop-cmd"), "--candidate-stop-cmd") or "",
        control_cmd=_template(get("--control-cmd"), "--control-cmd"),
        control_stop_cmd=_template(get("--control-stop-cmd"), "--control-stop-cmd") or "",
        baseline_build=_build(get, "baseline"),
        candidate_build=_build(get, "candidate"),
        ready_timeout_s=_duration(get("--ready-timeout"), "--ready-timeout"),
        backend=_leaf("scenarios/backends", get("--backend"), "--backend"),
        accuracy_floor=_share(get("--accuracy-floor")),
        gsm8k=_existing(get("--gsm8k") or os.environ.get(GSM8K_VARIABLE), "--gsm8k"),
        questions=_positive(get("--questions"), "--questions"),
        scenarios=tuple(get("--scenario")),
        accuracy_scenario=get("--accuracy-scenario"),
        blocks=_positive(get("--blocks"), "--blocks"),
        block_design=get("--block-design"),
        runs=_positive(get("--accuracy-runs"), "--accuracy-runs") or 1,
        budget_s=_duration(get("--budget"), "--budget"),
        gpus=tuple(get("--gpus")),
        resume=_existing(get("--resume"), "--resume"),
        ray=get("--ray"),
        ray_resources=get("--ray-resources"),
        same_build=_existing(get("--same-build"), "--same-build"),
        dry_run=get("--dry-run"),
        collect_trace=get("--profile"),
        baseline_trace=_files(get("--baseline-trace"), "--baseline-trace"),
        candidate_trace=_files(get("--candidate-trace"), "--candidate-trace"),
        claims=_files(get("--claims"), "--claims"),
        baselines=_path(get("--baselines") or os.environ.get(BASELINES_VARIABLE)) or ROOT / "baselines" / "recorded",
        api_key=_secret(get("--api-key") or os.environ.get(API_KEY_VARIABLE)),
    )
    _refuse_contradictions(settings)
    return settings


def _refuse_contradictions(settings: Settings) -> None:
    contradictions = (
        (settings.server_url and settings.candidate_cmd, "--server-url and --candidate-cmd", "one of them"),
        (settings.baseline_url and settings.baseline_cmd, "--baseline-url and --baseline-cmd", "one of them"),
        (settings.baseline_url and settings.baseline, "--baseline-url and --baseline", "a live or a recorded baseline"),
        (settings.baseline_url and not settings.server_url, "--baseline-url without --server-url", "both"),
        (settings.baseline_cmd and not settings.candidate_cmd, "--baseline-cmd without --candidate-cmd", "both"),
        (settings.candidate_cmd and not settings.baseline_cmd, "--candidate-cmd without --baseline-cmd", "both"),
        (settings.control_cmd and not settings.candidate_cmd, "--control-cmd without --candidate-cmd", "both"),
        (
            (settings.baseline_build or settings.candidate_build) and not settings.candidate_cmd,
            "a worktree, an environment or an image without commands",
            "--baseline-cmd and --candidate-cmd",
        ),
        *(
            (("{image}" in (command or "")) != bool(build and build.image), f"{said} alone", "both")
            for said, command, build in (
                ("one of --baseline-image and {image}", settings.baseline_cmd, settings.baseline_build),
                ("one of --candidate-image and {image}", settings.candidate_cmd, settings.candidate_build),
            )
        ),
        (
            "{image}" in (settings.control_cmd or "")
            and not (settings.candidate_build and settings.candidate_build.image),
            "{image} in --control-cmd without --candidate-image",
            "both",
        ),
        (
            settings.block_design == "quadruple" and settings.form in ("single", "urls"),
            "--block-design=quadruple with a server's URL",
            "commands: a given server is launched once, whatever the order",
        ),
        (settings.ready_timeout_s and settings.server_url, "--ready-timeout with a server's URL", "a server that runs"),
        (settings.baseline and not settings.server_url, "--baseline without --server-url", "the server to compare"),
        (bool(settings.baseline_trace) != bool(settings.candidate_trace), "one trace option alone", "both traces"),
        (
            settings.accuracy_floor is not None and settings.form != "single",
            "--accuracy-floor with two arms",
            "a single --server-url: two arms are compared with each other",
        ),
        (bool(settings.ray) != bool(settings.ray_resources), "one of --ray and --ray-resources alone", "both"),
        (settings.resume and settings.run_dir, "--resume and --run-dir", "one of them"),
        (
            settings.profile is not Profile.REHEARSAL and settings.form == "embedded" and settings.budget_s is not None,
            "--budget without a server",
            "--server-url or --candidate-cmd",
        ),
    )
    for bad, given, expected in contradictions:
        if bad:
            raise OptionError(f"{given} was given; expected {expected}")


def _path(value: str | None) -> pathlib.Path | None:
    return pathlib.Path(value) if value else None


def _url(value: str | None, option: str) -> str | None:
    try:
        return check_url(value, option) if value is not None else None
    except ValueError as error:
        raise OptionError(str(error)) from None


def _secret(value: str | None) -> Secret | None:
    try:
        return Secret(value) if value else None
    except ValueError as error:
        raise OptionError(f"--api-key: {error}") from None


def _template(value: str | None, option: str) -> str | None:
    if value:
        try:
            check_template(value, option)
        except ValueError as error:
            raise OptionError(str(error)) from None
    return value


def _name(value: str | None, option: str) -> str | None:
    if value is not None and not _NAME.match(value):
        raise OptionError(f"{option} {value!r} is no name; expected letters, digits, '.', '_' and '-' alone")
    return value


def _leaf(folder: str, value: str, option: str) -> str:
    known = sorted(path.stem for path in (ROOT / folder).glob("*.py") if not path.stem.startswith("_"))
    if value not in known:
        raise OptionError(f"{option} {value} is unknown; expected one of {', '.join(known)}")
    return value


def _share(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not 0.0 < share < 1.0:
        raise OptionError(f"--accuracy-floor {value} is no share; expected a number between 0 and 1, such as 0.93")
    return share


def _positive(value: int | None, option: str) -> int | None:
    if value is not None and value < 1:
        raise OptionError(f"{option} {value} was given; expected a whole number of at least 1")
    return value


def seconds_of(value: str, option: str) -> float:
    """A duration such as ``90m`` in seconds; raises ``OptionError`` where it is none."""
    match = _DURATION.match(value.strip())
    if match is None or float(match[1]) <= 0:
        raise OptionError(f"{option} {value} is no duration; expected a number with s, m or h, such as 90m")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _duration(value: str | None, option: str) -> float | None:
    return seconds_of(value, option) if value else None


def _build(get: Callable[[str], Any], arm: str) -> Build | None:
    fields: dict[str, tuple[str, Callable[[str], Any]]] = {
        "worktree": ("worktree", _path),
        "env": ("environment", _path),
        "image": ("image", str),
    }
    given: dict[str, Any] = {}
    for option, (field, kind) in fields.items():
        if get(f"--{arm}-{option}"):
            given[field] = kind(get(f"--{arm}-{option}"))
            try:
                Build(**{field: given[field]})
            except ValueError as error:
                raise OptionError(f"--{arm}-{option}: {error}") from None
    return Build(**given) if given else None


def _existing(value: str | None, option: str) -> pathlib.Path | None:
    if value is None:
        return None
    path = pathlib.Path(value)
    if not path.exists():
        raise OptionError(f"{option} {value} does not exist; expected an existing file or folder")
    return path


def _files(values: list[Any], option: str) -> tuple[pathlib.Path, ...]:
    paths = tuple(pathlib.Path(value) for value in values)
    for path in paths:
        if not path.is_file():
            raise OptionError(f"{option} {path} is no file; expected an existing one")
    return paths
