"""What an arm is: a git worktree with its environment, or an image by its digest.

A name can move: a tag gets another image, a branch another commit, a worktree another change. So what a name stands for
is read when the run is declared and again at every start of the arm.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import subprocess
from collections.abc import Mapping
from typing import Any

from validation.provenance import PACKAGES

TIMEOUT_S = 60.0
"""For git over a large tree on a network disk."""
_DIGEST = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}\Z")
_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")
"""A hook sets these, and git would read that repository instead."""
_VERSIONS = """
import importlib.metadata, json, platform, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps({"python": platform.python_version(), "versions": found}))
"""


@dataclasses.dataclass(frozen=True)
class Build:
    """What the user says that an arm is; nothing said: whatever its command starts.

    Raises:
        ValueError: an image is named by anything but its digest, or a folder is no worktree or no environment.
    """

    worktree: pathlib.Path | None = None
    """Folder in a git checkout; the arm's command runs there."""
    environment: pathlib.Path | None = None
    """Virtual environment whose programs come first; without one, ``.venv`` of the worktree where it is there."""
    image: str = ""
    """``NAME@sha256:DIGEST``, for ``{image}`` in the command."""

    def __post_init__(self) -> None:
        if self.image and not _DIGEST.match(self.image):
            raise ValueError(
                f"image {self.image} can become another one under the same name; expected NAME@sha256: and 64 hex "
                "digits, as `docker image inspect --format '{{index .RepoDigests 0}}' NAME` prints it"
            )
        if self.worktree is not None:
            _git(self.worktree, "rev-parse", "--verify", "HEAD")
        environment = self.programs
        if environment is not None and not (environment / "bin" / "python").exists():
            raise ValueError(f"{environment} holds no bin/python; expected the folder of a virtual environment")

    @property
    def programs(self) -> pathlib.Path | None:
        """The environment in use."""
        if self.environment is None and self.worktree is not None and (self.worktree / ".venv").is_dir():
            return self.worktree / ".venv"
        return self.environment

    def variables(self) -> dict[str, str] | None:
        """The environment variables of the arm's commands; None where they are this process's own."""
        if self.programs is None:
            return None
        folder = str(self.programs.absolute())  # not resolved: the environment may be a link that is its identity
        path = os.pathsep.join([os.path.join(folder, "bin"), os.environ.get("PATH", os.defpath)])
        own = {key: value for key, value in os.environ.items() if key != "PYTHONHOME"}
        return {**own, "PATH": path, "VIRTUAL_ENV": folder}

    def identity(self) -> dict[str, Any]:
        """What the build is now, as JSON data: commit, changes, Python and package versions, image; {} for none said.

        Raises:
            ValueError: the worktree or the environment cannot be read.
        """
        found: dict[str, Any] = {}
        if self.worktree is not None:
            changes = self._git_changes()
            found = {
                "worktree": self.worktree.resolve().name,
                "commit": _git(self.worktree, "rev-parse", "HEAD").decode().strip(),
                "dirty": bool(changes or self._git_status()),
                **({"changes_sha256": hashlib.sha256(changes).hexdigest()} if changes else {}),
            }
        if self.programs is not None:
            found |= _versions(self.programs, self.worktree)
        return {**found, "image": self.image} if self.image else found

    def _git_changes(self) -> bytes:
        """The difference of the tracked files from the commit."""
        return b"" if self.worktree is None else _git(self.worktree, "diff", "--binary", "--no-ext-diff", "HEAD")

    def _git_status(self) -> bytes:
        """Changed and untracked files; an environment inside the worktree is none of its sources."""
        if self.worktree is None:
            return b""
        top = pathlib.Path(os.fsdecode(_git(self.worktree, "rev-parse", "--show-toplevel").rstrip(b"\n"))).resolve()
        inside = self.programs is not None and self.programs.resolve().is_relative_to(top)
        leave_out = [f":(top,exclude){self.programs.resolve().relative_to(top)}"] if self.programs and inside else []
        return _git(top, "status", "--porcelain", "--", ".", *leave_out)


def differs(declared: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How a build became another one since it was declared, in words; empty where it did not.

    New untracked files are no change: servers write some.
    """
    keys = [key for key in dict.fromkeys([*declared, *now]) if key not in ("dirty", "worktree")]
    return ", ".join(
        f"{key} was {declared.get(key)} and is {now.get(key)}" for key in keys if declared.get(key) != now.get(key)
    )


def is_one_build(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two identities are known and equal, whatever folder each lies in."""
    known = [{key: value for key, value in build.items() if key != "worktree"} for build in (one, other)]
    return known[0] == known[1] and bool(known[0].keys() & {"commit", "image"})


def said(identity: Mapping[str, Any]) -> str:
    """An identity in a few words, for people; empty for none."""
    parts = []
    if "commit" in identity:
        changed = "changes_sha256" in identity or identity.get("dirty")
        parts.append(f"commit {identity['commit'][:12]}" + (" with uncommitted changes" if changed else ""))
    if "image" in identity:
        parts.append(f"image {identity['image']}")
    parts += [f"{name} {version}" for name, version in identity.get("versions", {}).items()]
    return ", ".join(parts)


def _versions(environment: pathlib.Path, folder: pathlib.Path | None) -> dict[str, Any]:
    """Asked of the environment's own Python, in the folder that the arm runs in: it sees what the arm will see."""
    python = environment.absolute() / "bin" / "python"
    words = [str(python), "-c", _VERSIONS, *PACKAGES]
    try:
        result = subprocess.run(words, cwd=folder, capture_output=True, timeout=TIMEOUT_S, check=True)
        found: dict[str, Any] = json.loads(result.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ValueError(f"{python} does not tell its versions ({error}); expected a working Python") from None
    return found


def _git(folder: pathlib.Path, *arguments: str) -> bytes:
    """What git prints about ``folder``, whatever repository the environment points at; it takes no lock there."""
    variables = {key: value for key, value in os.environ.items() if key not in _ELSEWHERE}
    words = ["git", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(
            words, capture_output=True, timeout=TIMEOUT_S, check=True, env={**variables, "GIT_OPTIONAL_LOCKS": "0"}
        )
    except subprocess.CalledProcessError as error:
        said_by_git = os.fsdecode(error.stderr).strip().splitlines() or [f"git ended with status {error.returncode}"]
        raise ValueError(f"{folder} is no git worktree with a commit ({said_by_git[0]}); expected one") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise ValueError(f"git cannot be asked about {folder} ({error}); expected git on the PATH") from None
    return result.stdout
