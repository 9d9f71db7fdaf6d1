"""The pytest plugin: options, markers, the run folder, and the exit status that the findings decide.

Only tests that carry a tier's marker (``kernel``, ``e2e``, ``trace``, ``claims``) make a run; the suite's own tests
pass through untouched. torch is not imported here, so that a worker can choose its GPU first.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import pytest

from validation import gpus
from validation.options import SETTINGS, OptionError, Settings, add_options, read_settings
from validation.profiles import EXIT_FAIL, EXIT_PASS, EXIT_UNDECIDED
from validation.records import Journal
from validation.reporting.escape import terminal
from validation.runs import RUN, ActiveRun, disk_trouble
from validation.verdicts import Evidence, Finding, Tier

MARKERS = {
    Tier.KERNEL: "kernel evidence: bits, layout, aliasing, launches",
    Tier.E2E: "accuracy and latency over a live server (--server-url, --baseline-cmd, or the embedded engine)",
    Tier.TRACE: "profiler traces: the removed kernel is gone, nothing else changed",
    Tier.CLAIMS: "an author's own table, re-derived; reported, does not gate",
}
_ALONE = ("e2e", "trace", "kernel_bench")
"""Tiers that measure time or a whole node, and so refuse to share it with xdist workers."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Every option of the suite; see ``validation.options``."""
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Check the options, register the markers, and give an xdist worker its GPU."""
    for tier, text in MARKERS.items():
        config.addinivalue_line("markers", f"{tier.value}: {text}")
    config.addinivalue_line("markers", "kernel_bench: kernel timing on a GPU; never part of a verdict")
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        gpus.choose_for_worker(str(worker["workerid"]))
    try:
        settings = read_settings(config)
    except OptionError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[SETTINGS] = settings
    _refuse_reruns(config)
    _refuse_workers(config)
    if not gpus.count():
        # interpreting is decided when Triton is imported, so before anything imports it
        os.environ.setdefault("TRITON_INTERPRET", "1")


def _refuse_reruns(config: pytest.Config) -> None:
    if getattr(config.option, "reruns", None):
        raise pytest.UsageError(
            f"--reruns {config.option.reruns} was given; evidence is never retried until it is green, drop the option"
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the browser and benchmark tiers out unless they are asked for by name."""
    expression = config.option.markexpr or ""
    if "kernel_bench" not in expression:
        unwanted = [item for item in items if item.get_closest_marker("kernel_bench")]
        if unwanted:
            config.hook.pytest_deselected(items=unwanted)
            items[:] = [item for item in items if not item.get_closest_marker("kernel_bench")]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Open the run folder where a tier's tests were selected."""
    config = session.config
    if session.testsfailed or config.option.collectonly or config.stash.get(RUN, None) is not None:
        return
    evidence = [item for item in session.items if not item.get_closest_marker("kernel_bench")]
    tiers = tuple(tier for tier in Tier if any(item.get_closest_marker(tier.value) for item in evidence))
    if tiers and config.stash[SETTINGS].dry_run:
        _tell_plan(session, tiers)
    elif tiers or len(evidence) < len(session.items):
        # a benchmark alone has a journal and demands nothing
        try:
            config.stash[RUN] = ActiveRun.open(config, config.stash[SETTINGS], tiers)
        except OptionError as error:
            raise pytest.UsageError(str(error)) from None


def _tell_plan(session: pytest.Session, tiers: Sequence[Tier]) -> NoReturn:
    """Print what would be measured, and leave before anything starts or a folder is made."""
    settings = session.config.stash[SETTINGS]
    lines = [f"dry run: {len(session.items)} tests of {', '.join(tier.value for tier in tiers)}; nothing is measured"]
    if Tier.E2E in tiers:
        from validation.e2e_setup import dry_run

        try:
            lines += dry_run(settings).splitlines()
        except OptionError as error:
            raise pytest.UsageError(str(error)) from None
    write = _writer(session.config)
    for line in lines:
        write(line)
    pytest.exit("dry run: nothing was measured", returncode=0)


def _refuse_workers(config: pytest.Config) -> None:
    """Tiers that measure a whole node must not share it; asked of the options, because workers collect too late."""
    if not getattr(config.option, "numprocesses", None) or hasattr(config, "workerinput"):
        return
    if config.stash[SETTINGS].dry_run:
        raise pytest.UsageError(
            f"-n {config.option.numprocesses} with --dry-run was given; expected -n 0 to print a plan"
        )
    expression = config.option.markexpr or ""
    named = [name for name in _ALONE if re.search(rf"(?<!not )\b{name}\b", expression)]
    if not expression and any("scenarios" in str(argument) for argument in config.args):
        named = list(_ALONE[:2])
    if named:
        raise pytest.UsageError(
            f"-n {config.option.numprocesses} was given for {' and '.join(named)}, which measure a whole node; "
            "expected -n 0, or -m kernel"
        )


class _Xdist:
    """Hooks that exist only where pytest-xdist is installed."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell each worker the one run folder that they share."""
        settings = node.config.stash[SETTINGS]
        node.workerinput["run_dir"] = str(settings.run_folder())


def pytest_plugin_registered(plugin: object, manager: pytest.PytestPluginManager) -> None:
    """Add the xdist hooks beside xdist itself."""
    if manager.has_plugin("xdist") and not manager.has_plugin("validation-xdist"):
        manager.register(_Xdist(), "validation-xdist")


@pytest.fixture(scope="session")
def active_run(request: pytest.FixtureRequest) -> ActiveRun:
    """The run that this session's evidence belongs to."""
    return request.config.stash[RUN]


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Settings:
    """The options, checked."""
    return request.config.stash[SETTINGS]


@pytest.fixture(scope="session")
def journal(request: pytest.FixtureRequest) -> Iterator[Journal]:
    """The raw-record file of this process."""
    run = request.config.stash[RUN]
    yield run.journal
    run.journal.sync()


@pytest.fixture(scope="session")
def e2e_findings(
    request: pytest.FixtureRequest, active_run: ActiveRun, settings: Settings
) -> Callable[[Evidence], list[Finding]]:
    """Gather the end-to-end evidence that the selected tests need, once, and judge it by kind."""
    from validation.e2e_tier import gather

    selected = {item.name.removeprefix("test_") for item in request.session.items if item.get_closest_marker("e2e")}
    judgement = gather(active_run, settings, selected, _progress(request.config))
    return lambda evidence: [finding for finding in judgement.findings if finding.evidence is evidence]


def _progress(config: pytest.Config) -> Callable[[str], None]:
    """Writes progress; quiet in CI, where nobody watches."""
    return (lambda line: None) if os.environ.get("CI") else _writer(config)


def _writer(config: pytest.Config) -> Callable[[str], None]:
    """Writes one line past pytest's capturing."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None:
        return lambda line: None

    def write(line: str) -> None:
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            reporter.ensure_newline()
            reporter.write_line(terminal(line))
            reporter.flush()

    return write


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Judge what was gathered, write the reports, and let the findings decide the exit status."""
    config = session.config
    if hasattr(config, "workerinput"):
        run = config.stash.get(RUN, None)
        if run is not None:
            run.journal.close()
        return
    run = config.stash.get(RUN, None) or ActiveRun.of_workers(config)
    if run is None or exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED):
        return
    config.stash[RUN] = run
    try:
        judgement = run.finish(interrupted=exitstatus == pytest.ExitCode.INTERRUPTED)
    except OSError as error:
        trouble = disk_trouble(run.folder, error)
        if not trouble:
            raise
        if exitstatus != pytest.ExitCode.INTERRUPTED:
            _progress(config)(trouble)
        session.exitstatus = pytest.ExitCode.INTERRUPTED
        return
    if exitstatus == pytest.ExitCode.INTERRUPTED:
        return
    if not judgement.tiers:
        return
    status = judgement.exit_status
    if status == EXIT_PASS and exitstatus == pytest.ExitCode.TESTS_FAILED:
        status = EXIT_UNDECIDED  # a test failed that no finding speaks of, such as a server that did not stop
    session.exitstatus = EXIT_FAIL if run.own_test_failures else status


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Count failures of tests that gather no evidence: those keep pytest's own exit status 1."""
    outcome: Any = yield
    report = outcome.get_result()
    run = item.config.stash.get(RUN, None)
    if run is not None and report.failed and not any(item.get_closest_marker(tier.value) for tier in Tier):
        run.own_test_failures += 1


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The findings, the headline and the path of the report."""
    run = config.stash.get(RUN, None)
    if run is None or run.judgement is None:
        return
    terminalreporter.section("findings")
    for line in run.summary_lines():
        terminalreporter.write_line(line)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What a reader of a log wants to know first."""
    settings = config.stash.get(SETTINGS, None)
    return [] if settings is None else [f"validation: profile {settings.profile.value}, seed {settings.seed}"]
