"""Release sign-off over several hosts: each block is one Ray task on a host of its own, and one journal keeps them all.

A worker measures a whole block as a single machine would (``Experiment.block``) and sends its records back as lines.
They enter the journal when the block is complete or not at all, so a block whose worker is lost is repeated as a whole
and counted once. Needs the extra ``ray``, and the same commit of this suite on every host.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from validation.arms import STOP_TIMEOUT_S, ArmError
from validation.client import Secret
from validation.e2e import Experiment, Wanted
from validation.e2e_plan import CONTROL, E2EPlan
from validation.options import API_KEY_VARIABLE, OptionError, Settings
from validation.provenance import provenance
from validation.records import Journal, Note, Question, Record, from_json, to_json
from validation.scenario import AccuracyScenario, scenario_named

MOST_LOSSES = 3
"""Workers one block may lose; the one after that ends the run, for it is the block that kills them."""
NODE_PATIENCE_S = 600.0
"""How long a run waits for a host to come back when none is left: a reboot of a GPU server."""
POLL_S = 5.0
_RESOURCE = re.compile(r"([A-Za-z][A-Za-z0-9_.:-]*)=(\d+(?:\.\d+)?)\Z")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The hosts that blocks run on.

    Raises:
        ValueError: no resource is named, so that two blocks could share a host.
    """

    resources: Mapping[str, float]
    """What one block takes, and all that a host has, such as ``{"MI355X": 8}``: a host measures one block at a time."""
    address: str = "auto"
    """Of the head node; ``auto`` finds the cluster that this machine belongs to."""

    def __post_init__(self) -> None:
        if not self.resources or any(amount <= 0 for amount in self.resources.values()):
            raise ValueError(
                f'resources {dict(self.resources)} were given; expected what one host has: {{"MI355X": 8}}'
            )


def resources_of(text: str, option: str) -> dict[str, float]:
    """``MI355X=8`` as a mapping, several separated by commas; raises ``OptionError`` where it is none."""
    matches = [_RESOURCE.match(part.strip()) for part in text.split(",")]
    found = {match[1]: float(match[2]) for match in matches if match}
    if len(found) < len(matches) or not all(found.values()):
        raise OptionError(f"{option} {text} names no resources; expected what one host has, such as MI355X=8")
    return found


@dataclasses.dataclass(frozen=True)
class Task:
    """All that a worker needs to measure one block, or the control. It holds no secret."""

    settings: Settings
    plan: E2EPlan
    run_id: str
    wanted: Wanted
    number: int | None
    """None: the control."""
    attempt: int
    before: tuple[str, ...]
    """What a resumed run already holds of this block, as lines."""
    suite: str
    """The driver's version and commit of this suite."""

    @property
    def label(self) -> str:
        """For people."""
        return "the control" if self.number is None else f"block {self.number + 1}"


def gather(experiment: Experiment, wanted: Wanted, cluster: Cluster) -> None:
    """``Experiment.gather`` over the hosts of ``cluster``: the same blocks, the same rule to stop, the same records.

    Blocks end in any order; the rule looks at them in their own order, and at no block before all earlier ones are in.

    Raises:
        OptionError: ray is missing, the arms cannot be started on another host, or no host has the resources.
        ArmError: a block failed, lost more than ``MOST_LOSSES`` workers, or no host is left.
    """
    settings = experiment.settings
    if settings.form not in ("commands", "embedded"):
        raise OptionError("--ray with a server's URL was given; expected --candidate-cmd and --baseline-cmd to start")
    if settings.api_key and not os.environ.get(API_KEY_VARIABLE):
        raise OptionError(f"--api-key does not travel to other hosts; set {API_KEY_VARIABLE} on each of them, and here")
    with _connected(cluster) as ray:
        if not _offered(ray, cluster.resources):
            raise OptionError(
                f"no node of the cluster has {dict(cluster.resources)}; expected one started with "
                f"ray start --resources='{json.dumps(dict(cluster.resources))}'"
            )
        with contextlib.closing(_Driver(ray, experiment, wanted, cluster)) as driver:
            driver.run()


class _Driver:
    """Keeps the tasks that run, the blocks that are in, and the one journal."""

    def __init__(self, ray: Any, experiment: Experiment, wanted: Wanted, cluster: Cluster) -> None:
        self._ray, self._experiment, self._wanted, self._resources = ray, experiment, wanted, cluster.resources
        self._remote = ray.remote(num_cpus=1, max_retries=0, resources=dict(cluster.resources))(measure)
        self._pending: dict[Any, Task] = {}
        self._losses: collections.Counter[int | None] = collections.Counter()
        self._suite = suite()

    def run(self) -> None:
        """Submit every block that is missing, and take them as they come."""
        experiment, done = self._experiment, list(self._experiment.done)
        numbers = range(experiment.most_blocks(self._wanted))
        arrived: dict[int, list[Record]] = {n: [] for n in numbers if experiment.complete(n, self._wanted, done)}
        records, looked = done, 0
        while looked in arrived and not experiment.decided(looked, self._wanted, records):
            looked += 1
        if looked not in arrived:
            for number in numbers:
                if number not in arrived:
                    self._submit(number, [r for r in done if getattr(r, "block", None) == number])
        if self._wanted.tokens and CONTROL in experiment.plan.arms:
            self._submit(None, [r for r in done if getattr(r, "arm", None) == CONTROL])
        while self._pending:
            for task, found in self._finished():
                if task.number is None:
                    continue
                arrived[task.number] = found
                while looked in arrived:
                    records += arrived[looked]
                    if experiment.decided(looked, self._wanted, records):
                        self._cancel(blocks_only=True)
                        looked = len(numbers)
                    looked += 1

    def _submit(self, number: int | None, done: Sequence[Record]) -> None:
        settings = dataclasses.replace(self._experiment.settings, api_key=None)
        before = [*done, *(r for r in self._experiment.done if isinstance(r, Question))]
        task = Task(
            settings=settings,
            plan=self._experiment.plan,
            run_id=self._experiment.folder.name,
            wanted=self._wanted,
            number=number,
            attempt=self._losses[number],
            before=tuple(_lines(before)),
            suite=self._suite,
        )
        self._pending[self._remote.remote(task)] = task

    def _finished(self) -> Iterator[tuple[Task, list[Record]]]:
        """The tasks that ended now, journalled; a lost one is submitted again."""
        self._wait()
        ready, _ = self._ray.wait(list(self._pending), timeout=0)
        for reference in ready:
            task = self._pending.pop(reference)
            lines = self._result(reference, task)
            if lines is not None:
                yield task, self._write(from_json(json.loads(line)) for line in lines)

    def _wait(self) -> None:
        since = time.monotonic()
        while not self._ray.wait(list(self._pending), timeout=POLL_S)[0]:
            if _offered(self._ray, self._resources):
                since = time.monotonic()
            elif time.monotonic() - since > NODE_PATIENCE_S:
                raise ArmError(
                    f"no node with {dict(self._resources)} came back within {NODE_PATIENCE_S:.0f} s; start one and "
                    "go on with --resume"
                )

    def _result(self, reference: Any, task: Task) -> list[str] | None:
        errors = self._ray.exceptions
        try:
            lines: list[str] = self._ray.get(reference)
        except errors.RayTaskError as error:
            raise ArmError(f"{task.label} failed on its host: {error.cause}") from error
        except errors.RayError as error:
            self._losses[task.number] += 1
            why = type(error).__name__
            if self._losses[task.number] > MOST_LOSSES:
                raise ArmError(
                    f"{task.label} lost {MOST_LOSSES + 1} workers, the last by {why}; see ray's logs"
                ) from error
            sentence = f"{task.label} lost its worker ({why}) and is repeated as a whole"
            self._experiment.progress(sentence)
            self._write([Note("block_lost", sentence, {"block": task.number, "attempt": task.attempt, "error": why})])
            self._submit(task.number, [from_json(json.loads(line)) for line in task.before])
            return None
        self._experiment.progress(f"{task.label}: {len(lines)} records")
        return lines

    def _write(self, records: Iterable[Record]) -> list[Record]:
        written = list(records)
        for record in written:
            self._experiment.journal.append(record)
        self._experiment.journal.sync()
        return written

    def _cancel(self, blocks_only: bool = False) -> None:
        """Interrupt what runs, and wait until its servers are stopped: their memory belongs to the next run."""
        unwanted = [ref for ref, task in self._pending.items() if not blocks_only or task.number is not None]
        for reference in unwanted:
            self._ray.cancel(reference)
            del self._pending[reference]
        if unwanted:
            self._ray.wait(unwanted, num_returns=len(unwanted), timeout=2 * STOP_TIMEOUT_S)

    def close(self) -> None:
        """Leave no task behind."""
        self._cancel()


def measure(task: Task) -> list[str]:
    """On a worker: measure one block and return its records as lines, after a note of where they were measured.

    Raises:
        ArmError: a server does not start, answer or stop, or this host has another commit or other questions.
    """
    host, here = socket.gethostname(), provenance()
    if suite() != task.suite:
        raise ArmError(f"{host} has the suite at {suite()}, the driver at {task.suite}; expected the same commit")
    key = os.environ.get(API_KEY_VARIABLE)
    settings = dataclasses.replace(task.settings, api_key=Secret(key) if key else None)
    _check_questions(settings, task.plan, host)
    name = f"{task.run_id}-{'control' if task.number is None else task.number}-{task.attempt}-"
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"validation-{name}"))
    path = folder / "block.jsonl"
    before = [from_json(json.loads(line)) for line in task.before]
    with Journal(path) as journal:
        where = {"block": task.number, "attempt": task.attempt, "host": host, "logs": str(folder), "provenance": here}
        journal.append(Note("block_host", f"{task.label} was measured on {host}", where))
        experiment = Experiment(settings, task.plan, folder, journal, _print)
        if task.number is None:
            experiment.control(task.wanted, before)
        else:
            if task.wanted.latency:
                experiment.self_test()
            experiment.block(task.number, task.wanted, before)
    return path.read_text("utf-8").splitlines()


def suite() -> str:
    """Version and commit of this suite, as far as known."""
    here = provenance()
    return " ".join(
        [str(here["validation"]), str(here.get("commit", ""))[:12], *(["changed"] if "dirty" in here else [])]
    )


def _check_questions(settings: Settings, plan: E2EPlan, host: str) -> None:
    scenario = scenario_named(plan.accuracy_scenario, AccuracyScenario)
    _, _, digest = scenario.questions_of(settings.gsm8k, plan.questions)
    if digest != plan.questions_sha256:
        raise ArmError(
            f"{host} has other questions for {scenario.name} than the driver; expected the same --gsm8k file"
        )


def _print(line: str) -> None:
    print(line, flush=True)  # ray shows it at the driver, with the worker's address


def _lines(records: Iterable[Record]) -> Iterator[str]:
    for record in records:
        yield json.dumps(to_json(record), allow_nan=False)


@contextlib.contextmanager
def _connected(cluster: Cluster) -> Iterator[Any]:
    """The module ray, connected to the cluster; a connection that was there before stays."""
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise OptionError(
            "--ray needs the package ray; install it with pip install 'serving-validation[ray]'"
        ) from None
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=cluster.address, logging_level="warning")
        except ConnectionError as error:
            raise OptionError(
                f"--ray {cluster.address}: no cluster answers ({error}); start one with ray start"
            ) from None
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _offered(ray: Any, resources: Mapping[str, float]) -> bool:
    """Whether a living node has the resources, free or taken."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(all(has.get(name, 0) >= amount for name, amount in resources.items()) for has in nodes)
