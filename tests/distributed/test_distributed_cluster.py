"""On a local Ray cluster of several nodes: nothing lost, nothing twice, whatever dies."""

from __future__ import annotations

import json
import pathlib
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import ray
from distributed_runs import BLOCKS, command, experiment, places, records_of, settings
from ray.cluster_utils import Cluster as LocalCluster

from validation import distributed
from validation.arms import ArmError
from validation.client import Secret
from validation.distributed import Cluster, Task
from validation.e2e import Experiment, Wanted
from validation.options import OptionError
from validation.records import Note, Record

# the local cluster's own processes, which ray does not wait for
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function Popen.__del__:pytest.PytestUnraisableExceptionWarning",
    "ignore:subprocess .* is still running:ResourceWarning",
)
LABEL = {"MI355X": 8.0}
ANSWERS = Wanted(tokens=True, accuracy=True, latency=False)
NODES = 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without accelerators, and three nodes with eight each; a dead node is noticed within a second or two."""
    fast = {"health_check_period_ms": 300, "health_check_timeout_ms": 300, "health_check_failure_threshold": 3}
    local = LocalCluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "include_dashboard": False,
            "_system_config": {**fast, "health_check_initial_delay_ms": 0},
        },
    )
    for _ in range(NODES):
        local.add_node(num_cpus=1, resources=LABEL)
    ray.init(address=local.address, log_to_driver=False, logging_level="error")
    local.wait_for_nodes()
    yield local
    ray.shutdown()
    local.shutdown()


@pytest.fixture(autouse=True)
def all_nodes(cluster: Any) -> None:
    """Every test begins with three nodes alive."""
    alive = sum(node["Alive"] and "MI355X" in node["Resources"] for node in ray.nodes())
    for _ in range(NODES - alive):
        cluster.add_node(num_cpus=1, resources=LABEL)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Record]:
    """The same plan on this machine, without Ray."""
    folder = tmp_path_factory.mktemp("alone")
    run = experiment(folder, settings())
    run.gather(ANSWERS)
    run.journal.close()
    return records_of(folder)


def notes(records: Sequence[Record], topic: str) -> list[Note]:
    return [r for r in records if isinstance(r, Note) and r.topic == topic]


def gathered(folder: pathlib.Path, run: Experiment, wanted: Wanted = ANSWERS) -> list[Record]:
    try:
        distributed.gather(run, wanted, Cluster(LABEL))
    finally:
        run.journal.close()
    return records_of(folder)


def test_the_cluster_records_what_one_machine_records(
    cluster: Any, alone: Sequence[Record], tmp_path: pathlib.Path
) -> None:
    found = gathered(tmp_path, experiment(tmp_path, settings()))
    assert places(found) == places(alone)
    assert max(places(found).values()) == 1
    assert sorted(note.data["block"] for note in notes(found, "block_host")) == list(range(BLOCKS))


@pytest.mark.parametrize("what", ["worker", "node"])
def test_a_lost_block_is_repeated_as_a_whole_and_counted_once(
    what: str, cluster: Any, alone: Sequence[Record], tmp_path: pathlib.Path
) -> None:
    once = tmp_path / "killed"
    options = settings(candidate_cmd=command("--kill", what, "--once", str(once)))
    told: list[str] = []
    found = gathered(tmp_path, experiment(tmp_path, options, told=told))
    assert once.exists()
    lost = notes(found, "block_lost")
    assert len(lost) == 1
    assert any("lost its worker" in line and "repeated as a whole" in line for line in told)
    repeated = [n.data["attempt"] for n in notes(found, "block_host") if n.data["block"] == lost[0].data["block"]]
    assert repeated == [1]
    assert places(found) == places(alone)
    if what == "node":
        assert sum(node["Alive"] and "MI355X" in node["Resources"] for node in ray.nodes()) == NODES - 1


def test_a_block_that_kills_every_worker_ends_the_run(cluster: Any, tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(distributed, "MOST_LOSSES", 1)
    # the port differs each time, so that every attempt is a first one
    options = settings(runs=1, candidate_cmd=command("--kill", "worker", "--once", str(tmp_path / "{port}")))
    with pytest.raises(ArmError, match="lost 2 workers, the last by WorkerCrashedError"):
        gathered(tmp_path, experiment(tmp_path, options))


def test_a_driver_that_died_goes_on_where_the_journal_ends(
    cluster: Any, alone: Sequence[Record], tmp_path: pathlib.Path
) -> None:
    first = experiment(tmp_path, settings(runs=2))
    half = gathered(tmp_path, first)
    assert 0 < len(places(half)) < len(places(alone))
    whole = gathered(tmp_path, experiment(tmp_path, settings(), done=half))
    assert places(whole) == places(alone)
    again = gathered(tmp_path, experiment(tmp_path, settings(), done=whole))
    assert len(again) == len(whole)


class _StopsAfterTwo(Experiment):
    """As if the latency were decided after the second block."""

    def decided(self, number: int, wanted: Wanted, records: Sequence[Record]) -> bool:
        return number >= 1


def test_the_rule_to_stop_looks_at_blocks_in_order_and_cancels_the_rest(cluster: Any, tmp_path: pathlib.Path) -> None:
    many = settings(runs=12)
    found = gathered(tmp_path, experiment(tmp_path, many, kind=_StopsAfterTwo))
    blocks = {r.data["block"] for r in notes(found, "block_host")}
    assert {0, 1} <= blocks
    assert len(blocks) < 12
    assert max(places(found).values()) == 1


def test_latency_blocks_bring_the_self_test_of_their_own_host(cluster: Any, tmp_path: pathlib.Path) -> None:
    options = settings(runs=1, blocks=2)
    found = gathered(tmp_path, experiment(tmp_path, options), Wanted(tokens=False, accuracy=False, latency=True))
    hosts, tests = notes(found, "block_host"), notes(found, "self_test")
    assert len(hosts) == len(tests) >= 2


def test_an_arm_that_does_not_start_ends_the_run_with_its_reason(cluster: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(
        ArmError, match=r"block \d failed on its host: .*ended with status 1.*out of memory, as ordered"
    ):
        gathered(tmp_path, experiment(tmp_path, settings(candidate_cmd=command("--fail"))))


def test_another_commit_on_a_host_is_refused(cluster: Any, tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(distributed, "suite", lambda: "0.0 0123456789ab")
    with pytest.raises(ArmError, match=r"the suite at .*, the driver at 0\.0 0123456789ab; expected the same commit"):
        gathered(tmp_path, experiment(tmp_path, settings()))


def test_no_node_with_the_resources_is_said_before_anything_starts(cluster: Any, tmp_path: pathlib.Path) -> None:
    run = experiment(tmp_path, settings())
    with pytest.raises(OptionError, match=r"no node of the cluster has \{'H200': 4\}"):
        distributed.gather(run, ANSWERS, Cluster({"H200": 4}))
    run.journal.close()


def test_the_api_key_does_not_travel(cluster: Any, tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    run = experiment(tmp_path, settings(api_key=Secret("s3cret-key")))
    monkeypatch.delenv("VALIDATION_API_KEY", raising=False)
    with pytest.raises(OptionError, match="does not travel to other hosts; set VALIDATION_API_KEY"):
        distributed.gather(run, ANSWERS, Cluster(LABEL))
    monkeypatch.setenv("VALIDATION_API_KEY", "s3cret-key")
    driver = distributed._Driver(ray, run, ANSWERS, Cluster(LABEL))
    sent: list[Task] = []
    driver._remote = type("Remote", (), {"remote": staticmethod(sent.append)})
    driver._submit(0, [])
    assert b"s3cret" not in pickle.dumps(sent)
    assert "s3cret" not in json.dumps([str(task) for task in sent])
    run.journal.close()
