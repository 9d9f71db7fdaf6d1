"""The run of one pytest session: its folder, its journal, and what was declared before anything was measured."""

from __future__ import annotations

import dataclasses
import datetime
import errno
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from validation.client.redaction import Secret
from validation.integrity import write_manifest
from validation.judgement import Judgement, judge_folder
from validation.kernel_case import declared_cells
from validation.options import SETTINGS, OptionError, Settings
from validation.provenance import provenance
from validation.records import SCHEMA, Journal, Note, RecordError, Run, read_run
from validation.reporting import write_reports
from validation.reporting.escape import terminal
from validation.verdicts import Tier

DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


@dataclasses.dataclass
class ActiveRun:
    """The run that is being gathered. Mutable only in what the session learns: own failures and the judgement."""

    folder: pathlib.Path
    journal: Journal
    own_test_failures: int = 0
    judgement: Judgement | None = None
    report: pathlib.Path | None = None
    manifest_sha256: str = ""

    @staticmethod
    def open(config: pytest.Config, settings: Settings, tiers: Sequence[Tier]) -> ActiveRun:
        """Create or go on with the run folder, and write down what is declared.

        Raises:
            pytest.UsageError: the folder already holds another run.
        """
        worker = getattr(config, "workerinput", None)
        folder = pathlib.Path(worker["run_dir"]) if worker else settings.run_folder()
        part = str(worker["workerid"]) if worker else "main"
        if worker is None and settings.resume is None and (folder / "raw").exists():
            raise pytest.UsageError(
                f"--run-dir {folder} already holds a run; give another folder, or --resume {folder}"
            )
        declared = _header(settings, tiers, folder)  # first: an option that does not fit leaves no folder behind
        if settings.resume is not None:
            _refuse_another(folder, declared)
        try:
            journal = Journal(folder / "raw" / f"{part}.jsonl")
            if settings.resume is not None:
                journal.append(
                    Note("resumed", "the run was interrupted and resumed; finished requests were not repeated")
                )
            elif worker is None or part == "gw0":
                journal.append(declared)
            journal.sync()
        except OSError as error:
            raise pytest.UsageError(
                f"--run-dir {folder} cannot be written ({error.strerror}); expected a folder on a disk with room"
            ) from None
        return ActiveRun(folder, journal)

    @staticmethod
    def of_workers(config: pytest.Config) -> ActiveRun | None:
        """The run that xdist's workers gathered, where they gathered one."""
        folder = config.stash[SETTINGS].run_folder() if config.stash.get(SETTINGS, None) else None
        if folder is None or not list((folder / "raw").glob("gw*.jsonl")):
            return None
        return ActiveRun(folder, Journal(folder / "raw" / "main.jsonl"))

    def finish(self, interrupted: bool) -> Judgement:
        """Close the journal, judge the records, and write the reports beside them.

        Raises:
            OSError: the disk is full; see ``disk_trouble``.
        """
        if interrupted:
            self.journal.append(
                Note("interrupted", "the run was interrupted; what is missing is NOT_RUN or INCONCLUSIVE")
            )
        self.journal.close()
        self.judgement = judge_folder(self.folder)
        self.report = write_reports(self.folder, self.judgement)
        self.manifest_sha256 = write_manifest(self.folder)
        return self.judgement

    def summary_lines(self) -> list[str]:
        """The findings, the headline and where the report lies."""
        judgement = self.judgement
        if judgement is None:
            return []
        lines = [f"{f.verdict.value:<14} {f.name}: {terminal(f.sentence)}" for f in judgement.findings]
        lines += [f"{a.verdict.value:<14} {a.name}: {terminal(a.sentence)}" for a in judgement.audits]
        headline = ["", terminal(judgement.headline)] if judgement.tiers else []
        return [*lines, *headline, f"report: {self.report}"]


def header(folder: pathlib.Path) -> Run:
    """What the run in ``folder`` declared before it started; raises ``RecordError`` where nothing says."""
    for record in read_run(folder):
        if isinstance(record, Run):
            return record
    raise RecordError(f"{folder} holds no run header; expected the folder of a run")


def disk_trouble(folder: pathlib.Path, error: OSError) -> str:
    """One sentence where ``error`` says that nothing more can be written to ``folder``; empty for any other."""
    if error.errno not in DISK_ERRORS:
        return ""
    return (
        f"the run folder {folder} cannot be written any more ({error.strerror}); everything before is kept, "
        f"make room and go on with --resume {folder}"
    )


def _refuse_another(folder: pathlib.Path, wanted: Run) -> None:
    """Raise ``OptionError`` unless the run in ``folder`` was started with what these options declare."""
    try:
        found = header(folder)
    except RecordError as error:
        raise OptionError(f"--resume {folder}: {error}") from None
    for field in ("schema", "profile", "tiers", "seed"):
        if getattr(found, field) != getattr(wanted, field):
            raise OptionError(
                f"--resume {folder} was started with {field} {getattr(found, field)}, these options say "
                f"{getattr(wanted, field)}; expected the options it was started with"
            )
    declared = json.loads(json.dumps(wanted.declared))
    for key in sorted(declared.keys() | found.declared.keys()):
        left, right = found.declared.get(key), declared.get(key)
        if left != right:
            inner = [k for k in left if left[k] != right.get(k)] if isinstance(left, dict) and right else []
            raise OptionError(
                f"--resume {folder} was started with another {' '.join([key, *inner[:1]])} than these options give; "
                "expected the options it was started with"
            )


def _header(settings: Settings, tiers: Sequence[Tier], folder: pathlib.Path) -> Run:
    declared: dict[str, Any] = {"form": settings.form}
    if Tier.KERNEL in tiers:
        declared["kernel_matrix"] = settings.matrix
        declared["kernel_cells"] = declared_cells(settings.matrix)
    if Tier.E2E in tiers:
        from validation.e2e_setup import declare

        declared.update(declare(settings))
    now = datetime.datetime.now(datetime.timezone.utc)
    return Run(
        run_id=folder.name,
        schema=SCHEMA,
        started_utc=now.isoformat(timespec="seconds"),
        profile=settings.profile.value,
        tiers=tuple(tier.value for tier in tiers),
        seed=settings.seed,
        command=tuple(_without_secrets(sys.argv, settings.api_key)),
        declared=declared,
        provenance=provenance(),
    )


def _without_secrets(words: Sequence[str], key: Secret | None) -> list[str]:
    """The command line, its program's folder and every API key left out, wherever it stands."""
    clean: list[str] = []
    for word in words:
        if clean and clean[-1] == "--api-key":
            clean.append("***")
        elif word.startswith("--api-key="):
            clean.append("--api-key=***")
        else:
            clean.append(key.redact(word) if key else word)
    if clean:
        # `python -m pytest` shows as the path of its __main__
        name = os.path.basename(clean[0])
        clean[0] = "pytest" if name == "__main__.py" else name
    return clean


RUN: pytest.StashKey[ActiveRun] = pytest.StashKey()
