"""Reads which dispatch an installed SGLang has: by executing its own functions, else from its source.

Executing means: the tree's own ``forward``, ``forward_decode``, ``forward_extend`` and ``forward_absorb_core`` run on
CPU tensors with only the leaf kernels observed, in a process of its own. Nothing is imported into this process.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib.metadata
import importlib.util
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from validation.discovery import ROOT
from validation.dispatch_ast import read_source
from validation.judging.dispatch import TOPIC
from validation.judging.dispatch_table import UNREADABLE
from validation.records import Note

EXECUTE_TIMEOUT_S = 240
"""Importing a whole SGLang with a GPU takes tens of seconds on a cold page cache."""


class Method(str, enum.Enum):
    """How a tree was read, the strongest first."""

    EXECUTED = "execution"
    """Its modules were imported as installed, its functions ran."""
    EXECUTED_WITH_STUBS = "execution with stubbed imports"
    """Its functions ran; whatever their modules import was stood in for, because importing it failed."""
    AST = "its syntax tree"
    """Its source was walked with known conditions decided and unknown ones followed both ways."""
    NOT_INSTALLED = "not_installed"


@dataclasses.dataclass(frozen=True)
class SglangTree:
    """Where a release lies: the folder that holds ``sglang/``, and the two files that decide the dispatch."""

    site: pathlib.Path
    version: str
    backend: pathlib.Path
    """``nsa_backend.py``, renamed ``dsa_backend.py`` in later releases."""
    callers: tuple[pathlib.Path, ...]
    """``forward_mla.py``, and ``forward_mla_rocm.py`` where ROCm has its own."""

    @property
    def module(self) -> str:
        """``nsa_backend`` or ``dsa_backend``."""
        return self.backend.stem


@dataclasses.dataclass(frozen=True)
class DispatchReading:
    """What one SGLang tree does in every cell of ``validation.judging.dispatch_table``."""

    version: str
    module: str
    method: Method
    why: str
    """Why no stronger method was used; empty where the strongest was."""
    backend: Mapping[str, str]
    """Cell to the ``Action`` value, or ``unreadable: ...``."""
    caller: Mapping[str, str]
    """Cell to ``split`` or ``concatenated``, or ``unreadable: ...``."""
    disagreements: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Cells that the syntax tree decides otherwise than the execution did."""

    def to_note(self, topic: str = TOPIC) -> Note:
        """The reading as a raw record; only the topic ``dispatch`` is judged."""
        data = {**dataclasses.asdict(self), "method": self.method.value}
        sentence = f"dispatch of SGLang {self.version}, module {self.module or 'none'}, read by {self.method.value}"
        return Note(topic, sentence, data)


def read_installed_sglang() -> DispatchReading:
    """The reading of the SGLang that this interpreter would import; ``NOT_INSTALLED`` where there is none."""
    spec = importlib.util.find_spec("sglang")
    locations = list(spec.submodule_search_locations or ()) if spec is not None else []
    for location in locations:
        if (pathlib.Path(location) / "srt").is_dir():
            return read_sglang(pathlib.Path(location).parent)
    return DispatchReading("none", "", Method.NOT_INSTALLED, "no sglang on the import path", {}, {})


def read_sglang(site: pathlib.Path) -> DispatchReading:
    """The reading of the release in ``site``, the folder that holds ``sglang/`` (an unpacked wheel will do).

    Raises:
        FileNotFoundError: the folder holds no ``sglang/srt/layers/attention/{dsa,nsa}_backend.py`` or no caller.
    """
    tree = find_tree(site)
    static_backend, static_caller = read_source(tree.backend, tree.callers)
    executed = execute(tree)
    if "error" in executed:
        return DispatchReading(tree.version, tree.module, Method.AST, executed["error"], static_backend, static_caller)
    backend, caller = executed["backend"], executed["caller"]
    method = Method.EXECUTED_WITH_STUBS if executed["why"] else Method.EXECUTED
    static, run = {**static_backend, **static_caller}, {**backend, **caller}
    disagreements = {
        key: f"the syntax tree says {static[key]}, execution says {run[key]}"
        for key in run
        if static[key] != run[key] and not static[key].startswith(UNREADABLE)
    }
    return DispatchReading(tree.version, tree.module, method, executed["why"], backend, caller, disagreements)


def find_tree(site: pathlib.Path) -> SglangTree:
    """The files that decide the dispatch of the release in ``site``.

    Raises:
        FileNotFoundError: one of them is not there.
    """
    attention = site / "sglang/srt/layers/attention"
    backends = [attention / f"{name}_backend.py" for name in ("dsa", "nsa")]
    backend = next((path for path in backends if path.is_file() and "def forward_decode" in path.read_text()), None)
    methods = site / "sglang/srt/models/deepseek_common/attention_forward_methods"
    callers = tuple(p for name in ("forward_mla", "forward_mla_rocm") if (p := methods / f"{name}.py").is_file())
    if backend is None or not callers:
        raise FileNotFoundError(
            f"{site} holds no SGLang with a sparse MLA backend; expected {backends[0]} or {backends[1].name}, and "
            f"{methods / 'forward_mla.py'}: give the folder that holds sglang/, of release 0.5.11 or later"
        )
    return SglangTree(site, _version(site), backend, callers)


def execute(tree: SglangTree) -> dict[str, Any]:
    """Runs the tree's functions in a process of its own: ``backend``, ``caller`` and ``why``, or ``error``."""
    command = [sys.executable, "-m", "validation.dispatch_run", str(tree.site), str(tree.backend)]
    command += [str(path) for path in tree.callers]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=EXECUTE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"executing it took more than {EXECUTE_TIMEOUT_S} s"}
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"error": f"executing it ended with status {done.returncode}: {last:.300}"}
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def _version(site: pathlib.Path) -> str:
    for distribution in importlib.metadata.distributions(path=[str(site)]):
        if (distribution.metadata["Name"] or "").lower() == "sglang":
            return distribution.version
    return "of unknown version"
