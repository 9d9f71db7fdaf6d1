"""``python -m validation.sglang_rehearsal --query-path stock|cat|skip [...] -- <sglang.launch_server arguments>``."""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence

from validation.sglang_rehearsal.releases import UnknownReleaseError, installed_release
from validation.sglang_rehearsal.settings import CONCATS, MARK, PLANTS, QUERY_PATHS, Rehearsal

HOOK = pathlib.Path(__file__).resolve().parent / "hook"
_ASK_HOOK = "import sys; sys.exit(not any(getattr(f, '__module__', '') == 'sitecustomize' for f in sys.meta_path))"


def parse(arguments: Sequence[str]) -> tuple[Rehearsal, list[str]]:
    """The rehearsal, and SGLang's own arguments behind ``--``. Exits with a sentence on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m validation.sglang_rehearsal",
        description="Start the installed SGLang with its HIP-only fused query path enabled on CUDA: a rehearsal.",
        epilog="Everything behind -- goes to sglang.launch_server.",
    )
    add = parser.add_argument
    add("--query-path", required=True, choices=QUERY_PATHS, help="stock: CUDA's own; cat, skip: the fused kernel's")
    add("--concat", default="sglang", choices=CONCATS, help="SGLang's kernel, or torch.cat as on ROCm")
    add("--plant", choices=PLANTS, help="a planted defect: what a check must catch")
    add("--sane-dummy", action="store_true", help="with --load-format dummy: weights on which attention matters")
    add("server", nargs="*", metavar="-- ARGUMENT", help="of sglang.launch_server")
    given = parser.parse_args(arguments)
    try:
        rehearsal = Rehearsal(given.query_path, given.concat, given.plant, given.sane_dummy)
    except ValueError as error:
        parser.error(str(error))
    if any(argument.split("=")[0] == "--weight-version" for argument in given.server):
        parser.error(f"--weight-version was given; it carries the mark '{MARK}', drop it")
    return rehearsal, given.server


def environment(rehearsal: Rehearsal, inherited: Mapping[str, str]) -> dict[str, str]:
    """``inherited`` with the hook's folder first on PYTHONPATH and the rehearsal in its variable."""
    path = os.pathsep.join(filter(None, (str(HOOK), inherited.get("PYTHONPATH", ""))))
    # PYTHONSAFEPATH: the current folder may be the suite's, whose kernels folder is no module of SGLang's
    return {**inherited, **rehearsal.to_environment(), "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def command(rehearsal: Rehearsal, server: Sequence[str]) -> list[str]:
    """The command line of the server; its ``weight_version`` marks every answer and ``/get_server_info``."""
    return [sys.executable, "-m", "sglang.launch_server", *server, "--weight-version", rehearsal.label]


def main(arguments: Sequence[str]) -> int:
    """Become the server; returns only where it cannot be started."""
    rehearsal, server = parse(arguments)
    try:
        release = installed_release()
    except UnknownReleaseError as error:
        print(f"sglang_rehearsal: {error}", file=sys.stderr)
        return 2
    variables = environment(rehearsal, os.environ)
    if subprocess.run([sys.executable, "-c", _ASK_HOOK], env=variables, check=False).returncode:
        print(
            f"sglang_rehearsal: {sys.executable} does not run {HOOK / 'sitecustomize.py'} at its start; expected a "
            "Python that reads PYTHONPATH (no -I, -E or -S)",
            file=sys.stderr,
        )
        return 2
    print(f"[{MARK}] sglang {release.version} ({release.status}): {rehearsal.label}", file=sys.stderr, flush=True)
    os.execve(sys.executable, command(rehearsal, server), variables)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
