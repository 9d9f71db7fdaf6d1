"""What can be checked of distributed runs without Ray."""

from __future__ import annotations

import builtins
import pathlib
from typing import Any

import pytest
from distributed_runs import experiment, settings

from validation import distributed
from validation.distributed import Cluster, resources_of
from validation.e2e import Wanted
from validation.options import OptionError

ALL = Wanted(tokens=True, accuracy=True, latency=True)


def test_resources_are_read_from_the_command_line() -> None:
    assert resources_of("MI355X=8", "--ray-resources") == {"MI355X": 8.0}
    assert resources_of("GPU=4, H200=4", "--ray-resources") == {"GPU": 4.0, "H200": 4.0}


@pytest.mark.parametrize("text", ["", "MI355X", "MI355X=", "MI355X=eight", "=8", "MI355X=0", "MI355X=8;H200=1"])
def test_bad_resources_are_one_sentence(text: str) -> None:
    with pytest.raises(OptionError, match=r"--ray-resources .* names no resources; expected"):
        resources_of(text, "--ray-resources")


@pytest.mark.parametrize("resources", [{}, {"MI355X": 0.0}], ids=["none", "zero"])
def test_a_block_owns_its_host(resources: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected what one host has"):
        Cluster(resources)


def test_given_urls_cannot_be_started_on_another_host(tmp_path: pathlib.Path) -> None:
    run = experiment(
        tmp_path, settings(candidate_cmd=None, baseline_cmd=None, server_url="http://a", baseline_url="http://b")
    )
    with pytest.raises(OptionError, match="expected --candidate-cmd and --baseline-cmd"):
        distributed.gather(run, ALL, Cluster({"MI355X": 8}))
    run.journal.close()


def test_a_missing_package_is_named_with_its_install_command(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    real = builtins.__import__

    def without_ray(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "ray":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    run = experiment(tmp_path, settings())
    with pytest.raises(OptionError, match=r"pip install 'serving-validation\[ray\]'"):
        distributed.gather(run, ALL, Cluster({"MI355X": 8}))
    run.journal.close()
