"""The order of launches in a block, with servers whose speed is known exactly: what cancels in it and what not."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from validation import e2e
from validation.arms import Arm, Place, Server, ServerChangedError
from validation.budget import costs_of
from validation.client import Job, LoadReport
from validation.e2e import Experiment, Wanted, gpus_of, turns
from validation.e2e_setup import budget_of, declare, dry_run, plan_of
from validation.judging.latency import BlockRatio, measure_blocks
from validation.options import Settings
from validation.profiles import Profile
from validation.records import SCHEMA, Journal, Launch, Record, Request, Run, ScenarioRun, read_run
from validation.same_build import read_same_build

LATENCY = Wanted(tokens=False, accuracy=False, latency=True)
EVERYTHING = Wanted(tokens=True, accuracy=True, latency=True)
LAUNCH_SD = 0.003
"""0.3 % of TPOT, the condition of docs/why-blocks.md."""
BLOCKS = 24


def settings(**given: Any) -> Settings:
    """Two commands that nobody starts; fields of no interest are None."""
    nothing = {field.name: None for field in dataclasses.fields(Settings)}
    usual = {
        "profile": Profile.PR,
        "seed": 7,
        "baseline_cmd": "old {port}",
        "candidate_cmd": "new {port}",
        "baseline_stop_cmd": "",
        "candidate_stop_cmd": "",
        "control_stop_cmd": "",
        "backend": "sglang_native",
        "questions": 4,
        "scenarios": ("rehearsal-c1",),
        "accuracy_scenario": "word-problems",
        "runs": 1,
    }
    return Settings(**{**nothing, **usual, **given})


@dataclasses.dataclass
class Node:
    """Launches servers that exist in arithmetic alone, one after the other, and remembers where."""

    position_effect: float = 0.0
    """How much slower, in log, each launch of a block is than the one before."""
    gain: float = 0.0
    builds: Sequence[Mapping[str, Any]] = ({},)
    """What each launch says of its build and model; the last one from then on."""
    launched: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    log_tpot: float = 0.0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(11)

    def arms_of(self, settings: Settings) -> list[Arm]:
        return [_FakeArm("baseline", self), _FakeArm("candidate", self)]

    def start(self, arm: str, place: Place) -> Server:
        in_block = sum(name.split("-")[0] == place.logdir.name.split("-")[0] for name, _ in self.launched)
        identity = self.builds[min(len(self.launched), len(self.builds) - 1)]
        self.launched.append((place.logdir.name, place.gpus))
        slower = in_block * self.position_effect - (self.gain if arm == "candidate" else 0.0)
        self.log_tpot = math.log(10e6) + float(self._rng.normal(0.0, LAUNCH_SD)) + slower
        return Server("http://127.0.0.1:9", 1.0, identity)

    def run_load(
        self, url: str, backend: Any, jobs: Sequence[Job], width: int, on_request: Callable[[Request], None], **_: Any
    ) -> LoadReport:
        for job in jobs:
            on_request(self._answer(job))
        return LoadReport(len(jobs), 0, 0, {}, 1.0, 0.1, 0.1, 1, 0.0, 0.0, 0.0, 0.0)

    def _answer(self, job: Job) -> Request:
        chunks = tuple(int(i * math.exp(self.log_tpot)) for i in range(1, 9))
        return Request(
            launch_id=job.launch_id,
            arm=job.arm,
            block=job.block,
            run=job.run,
            scenario=job.scenario,
            index=job.index,
            prompt_tokens=8,
            cached_tokens=0,
            output_tokens=8,
            finish_reason="length",
            text="4",
            output_ids=(4,) * 8,
            chunk_ns=chunks,
            chunk_tokens=tuple(range(1, 9)),
            queued_ns=0,
            end_ns=chunks[-1],
            error=None,
        )


@dataclasses.dataclass(frozen=True)
class _FakeArm:
    name: str
    node: Node
    fresh: bool = True

    @contextlib.contextmanager
    def session(self, place: Place, progress: Callable[[str], None]) -> Iterator[Server]:
        yield self.node.start(self.name, place)


def measured(
    folder: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    node: Node,
    given: Settings,
    blocks: int,
    wanted: Wanted = LATENCY,
    done: Sequence[Record] = (),
) -> tuple[Experiment, list[Record]]:
    """``blocks`` blocks on ``node``, whatever the plan's own rule says."""
    monkeypatch.setattr(e2e, "arms_of", node.arms_of)
    monkeypatch.setattr(e2e, "run_load", node.run_load)
    with Journal(folder / "raw" / "main.jsonl") as journal:
        experiment = Experiment(given, plan_of(given), folder, journal, list[str]().append, done)
        records = list(done)
        for number in range(blocks):
            records += experiment.block(number, wanted, records)
        return experiment, records


def block_data(records: Sequence[Record]) -> list[BlockRatio]:
    wanted = [r for r in records if not isinstance(r, Request | ScenarioRun) or r.scenario == "rehearsal-c1"]
    return measure_blocks(wanted)[1]


@pytest.mark.parametrize(
    ("design", "orders"),
    [("pair", {"BC", "CB"}), ("quadruple", {"BCCB", "CBBC"})],
)
def test_both_orders_of_a_block_come_equally_often(
    design: str, orders: set[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, records = measured(tmp_path, monkeypatch, Node(), settings(block_design=design), 10)
    found = collections.Counter(block.order for block in block_data(records))
    assert found == dict.fromkeys(orders, 5)


def test_quadruples_remove_a_position_effect_as_large_as_the_launch_sd(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: each launch of a block is slower than the one before by a whole launch sd; the same launches else."""
    moved = {}
    for design in ("pair", "quadruple"):
        gains = []
        for effect in (0.0, LAUNCH_SD):
            node, folder = Node(position_effect=effect, gain=0.01), tmp_path / f"{design}{effect}"
            _, records = measured(folder, monkeypatch, node, settings(block_design=design), BLOCKS)
            gains.append(np.array([-block.log_ratio for block in block_data(records)]))
        assert gains[1].mean() == pytest.approx(0.01, abs=4 * math.sqrt(2) * LAUNCH_SD / math.sqrt(BLOCKS))
        moved[design] = gains[1] - gains[0]
    # every pair is off by the whole effect, one way or the other; the times below are whole nanoseconds
    assert abs(moved["pair"]) == pytest.approx(np.full(BLOCKS, LAUNCH_SD), abs=1e-6)
    assert moved["quadruple"] == pytest.approx(np.zeros(BLOCKS), abs=1e-6)


def test_a_second_launch_of_a_block_answers_no_questions(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(block_design="quadruple")
    experiment, records = measured(tmp_path, monkeypatch, Node(), given, 1, EVERYTHING)
    asked = {(r.launch_id, r.scenario) for r in records if isinstance(r, ScenarioRun)}
    first = {"word-problems-tokens", "word-problems", "rehearsal-c1"}
    assert asked == {(f"b0-{arm}", name) for arm in ("baseline", "candidate") for name in first} | {
        (f"b0-{arm}-2", "rehearsal-c1") for arm in ("baseline", "candidate")
    }
    assert [r.position for r in records if isinstance(r, Launch)] == [0, 1, 2, 3]
    assert experiment.complete(0, EVERYTHING, records)


def test_without_latency_a_quadruple_plan_launches_pairs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Wanted(tokens=True, accuracy=True, latency=False)
    _, records = measured(tmp_path, monkeypatch, Node(), settings(block_design="quadruple"), 1, wanted)
    assert sum(isinstance(r, Launch) for r in records) == 2


@pytest.mark.parametrize("lost", range(4))
def test_a_quadruple_that_was_cut_off_goes_on_with_the_launch_that_is_missing(
    lost: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(block_design="quadruple")
    _, whole = measured(tmp_path / "whole", monkeypatch, Node(), given, 1)
    name = [r.launch_id for r in whole if isinstance(r, Launch)][lost]
    # killed in the launch: it and what came after it are not there, but its first record
    kept = whole[: next(i for i, r in enumerate(whole) if isinstance(r, Launch) and r.launch_id == name) + 1]
    node = Node()
    experiment, records = measured(tmp_path / "resumed", monkeypatch, node, given, 1, done=kept)
    assert experiment.complete(0, LATENCY, records)
    assert not experiment.complete(0, LATENCY, kept)
    assert len(node.launched) == 4 - lost
    assert node.launched[0][0] == f"{name}-resumed1"
    (block,) = block_data(records)
    assert sorted([*block.baseline_launches, *block.candidate_launches]) == sorted(
        {r.launch_id for r in whole if isinstance(r, Launch)}
    )


def test_gpu_sets_take_turns_in_random_order_and_are_the_same_for_both_arms(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node()
    measured(tmp_path, monkeypatch, node, settings(gpus=("0,1", "2,3", "4,5")), 9)
    of_block = collections.defaultdict(set)
    for name, gpus in node.launched:
        of_block[name.split("-")[0]].add(gpus)
    assert [len(found) for found in of_block.values()] == [1] * 9
    sets = [next(iter(found)) for found in of_block.values()]
    assert collections.Counter(sets) == dict.fromkeys(("0,1", "2,3", "4,5"), 3)
    assert len({tuple(sets[i : i + 3]) for i in (0, 3, 6)}) > 1  # no fixed rotation
    assert sets == [gpus_of(7, number, ("0,1", "2,3", "4,5")) for number in range(9)]
    assert gpus_of(7, 5, ()) == ""


@pytest.mark.parametrize(
    ("builds", "said"),
    [
        ([{}, {}, {"build": {"commit": "b"}}], None),  # of an arm that declared none
        ([{"serves": {"model_path": "m"}}] * 2 + [{"serves": {"model_path": "n"}}], "model_path was 'm' and is 'n'"),
    ],
    ids=["not-declared", "model"],
)
def test_an_arm_that_starts_as_another_model_later_is_refused(
    builds: list[Mapping[str, Any]], said: str | None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(builds=builds)
    if said is None:
        measured(tmp_path, monkeypatch, node, settings(), 2)
        return
    with pytest.raises(ServerChangedError, match=f"block 2, .*: it is another build than before .{said}"):
        measured(tmp_path, monkeypatch, node, settings(), 2)


def test_a_commit_that_moves_during_the_run_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = {"commit": "a", "dirty": False}
    monkeypatch.setattr("validation.e2e_setup._builds", lambda given: {"baseline": declared, "candidate": declared})
    moved = [{"build": {**declared, "dirty": True}}] * 3 + [{"build": {"commit": "b", "dirty": False}}]
    with pytest.raises(
        ServerChangedError, match=r"block 2, .*: it is another build than before \(commit was a and is b"
    ):
        measured(tmp_path, monkeypatch, Node(builds=moved), settings(), 2)


# -- when the planner takes quadruples ---------------------------------------------------------------------------------


def recorded(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, effect: float, blocks: int = 16) -> pathlib.Path:
    """The folder of a same-build run on a node with this position effect."""
    given = settings()
    declared = declare(given)
    with Journal(folder / "raw" / "header.jsonl") as journal:
        journal.append(Run("aa", SCHEMA, "", "rehearsal", ("e2e",), 7, (), declared, {}))
    measured(folder, monkeypatch, Node(position_effect=effect), given, blocks)
    return folder


def test_a_recorded_position_effect_makes_quadruples_of_the_blocks(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shifted = recorded(tmp_path / "shifted", monkeypatch, 1.5 * LAUNCH_SD)
    even = recorded(tmp_path / "even", monkeypatch, 0.0)
    assert plan_of(settings(same_build=shifted)).visits == 2
    assert plan_of(settings(same_build=shifted, block_design="pair")).visits == 1
    assert plan_of(settings(same_build=even)).visits == 1
    assert plan_of(settings()).visits == 1
    assert "quadruple blocks, ABBA or BAAB" in dry_run(settings(same_build=shifted))
    assert "quadruple" not in dry_run(settings(same_build=even))


def test_a_budget_buys_half_as_many_quadruples(tmp_path: pathlib.Path) -> None:
    pairs, quadruples = (
        budget_of(settings(budget_s=4 * 3600.0, scenarios=("1k1k-c4",), block_design=design))
        for design in ("pair", "quadruple")
    )
    assert pairs is not None
    assert quadruples is not None
    assert quadruples.latency.max_blocks == pairs.latency.max_blocks // 2


def test_the_launch_sd_of_a_record_is_found_in_one_place(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planner and the verdict must not rest on two estimates of one thing."""
    folder = recorded(tmp_path / "aa", monkeypatch, 0.0)
    given = settings(same_build=folder)
    plan, data = read_same_build(folder, plan_of(given))
    assert plan.latency.recorded_launch_sd == costs_of(read_run(folder), "aa", ("baseline", "candidate")).launch_sd
    assert plan.latency.recorded_launch_sd is not None
    assert plan.latency.recorded_launch_sd.percent == pytest.approx(100 * LAUNCH_SD, rel=0.35)
    assert data["latency"]["verdict"] == "PASS"


def test_a_quadruple_goes_back_the_way_it_came() -> None:
    for block in range(6):
        names = [name for name, _ in turns(3, block, ["baseline", "candidate"], 2)]
        assert names == names[::-1]
        assert [visit for _, visit in turns(3, block, ["baseline", "candidate"], 2)] == [0, 0, 1, 1]
