"""Whether a run folder is what was measured: SHA-256 of every file and raw record, and findings recomputed from them.

A digest shows a change; it does not show who made it, for whoever edits a record can edit the manifest too. Two things
outside the folder do: the manifest's own SHA-256, which ``write_manifest`` returns (a pull request comment or a release
note keeps it), and a signature. Signatures are minisign's (https://jedisct1.github.io/minisign/): one small maintained
program, packaged by distributions, Ed25519, and it works on a machine without a network, where sigstore needs an
identity provider and a transparency log at the moment of signing.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from validation.judgement import Judgement
from validation.reporting.escape import terminal
from validation.reporting.findings_json import to_findings_json
from validation.reporting.write import RENDERERS, write_atomically

SCHEMA = 1
MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.minisig"
MAX_MANIFEST_BYTES = 1 << 30
"""A manifest has 67 bytes a raw record, so this allows 16 million records; anything larger is not read."""
RELATIVE_TOLERANCE = 1e-9
"""How far a recomputed float may lie from the written one: another machine's libm moves the last digits."""
MAX_LISTED = 20
"""Changed records named for one file; the rest is counted."""


class IntegrityError(ValueError):
    """A raw record is not what it was when the manifest was written."""


class SignatureError(RuntimeError):
    """The manifest cannot be signed, or its signature cannot be checked."""


def write_manifest(folder: pathlib.Path) -> str:
    """Write ``manifest.json``, the SHA-256 of every file and raw record of the run; return the manifest's own.

    Write it last: a file that changes afterwards is a difference. Over an earlier manifest, records may have been added
    and reports made again.

    Raises:
        IntegrityError: the earlier manifest names a raw record that is gone or was changed.
    """
    files = {name: _described(path) for name, path in _files(folder)}
    for name, entry in _earlier(folder).items():
        if name.startswith("raw/") and not _grown(entry, files.get(name)):
            raise IntegrityError(
                f"{terminal(name)} is not what the manifest says, and raw records are only ever added; "
                f"see `python -m validation verify`, and remove {MANIFEST} if the change is meant"
            )
    data = (json.dumps({"schema": SCHEMA, "files": files}, indent=0, sort_keys=True) + "\n").encode()
    write_atomically(folder / MANIFEST, data)
    return hashlib.sha256(data).hexdigest()


def _earlier(folder: pathlib.Path) -> dict[str, Any]:
    """The entries of the manifest that is there; empty where there is none that can be read."""
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return files if isinstance(files, dict) else {}


def _grown(before: Any, after: dict[str, Any] | None) -> bool:
    """Whether a raw file is as it was, or has records added at its end."""
    if after is None or not isinstance(before, dict):
        return False
    old, new = before.get("records"), after.get("records")
    if isinstance(old, list) and isinstance(new, list):
        return bool(new[: len(old)] == old)
    return bool(after["sha256"] == before.get("sha256"))


def verify(
    folder: pathlib.Path, judge: Callable[[pathlib.Path], Judgement], manifest_sha256: str | None = None
) -> list[str]:
    """What differs between the folder, its manifest, and what ``judge`` makes of the raw records; a sentence each.

    ``manifest_sha256`` is the digest that ``write_manifest`` returned, kept elsewhere. An empty list: nothing differs.
    """
    found = list(_against_manifest(folder, manifest_sha256))
    try:
        judgement = judge(folder)
    except Exception as error:  # records that were touched may break a judge anywhere
        return [
            *found,
            f"the findings cannot be recomputed from the raw records: {type(error).__name__}: {terminal(str(error))}",
        ]
    differing = list(_against_findings(folder, judgement))
    return [*found, *differing, *_against_reports(folder, judgement, findings_differ=bool(differing))]


def _against_manifest(folder: pathlib.Path, manifest_sha256: str | None) -> Iterator[str]:
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        yield f"{MANIFEST} is missing: nothing shows that the raw records are the ones that were measured"
        return
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        yield f"{MANIFEST} has {path.stat().st_size} bytes; expected at most {MAX_MANIFEST_BYTES}"
        return
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if manifest_sha256 is not None and digest != manifest_sha256.strip().lower():
        yield f"{MANIFEST} was changed: its SHA-256 is {digest}, expected {terminal(manifest_sha256)}"
    try:
        manifest = json.loads(data)
        expected = manifest["files"]
        if manifest["schema"] != SCHEMA or not isinstance(expected, dict):
            raise ValueError("another schema")
    except (ValueError, KeyError, TypeError, RecursionError):
        yield f"{MANIFEST} was changed: it is not a manifest of schema {SCHEMA}"
        return
    present = dict(_files(folder))
    for name in sorted(expected.keys() | present.keys()):
        if name not in present:
            yield f"{terminal(name)} is missing: the manifest names it"
        elif name not in expected:
            yield f"{terminal(name)} was added: the manifest does not name it"
        else:
            yield from _against_entry(name, _described(present[name]), expected[name])


def _against_entry(name: str, actual: dict[str, Any], entry: Any) -> Iterator[str]:
    name = terminal(name)
    if not isinstance(entry, dict) or "sha256" not in entry:
        yield f"{MANIFEST} was changed: its entry of {name} is no digest"
        return
    if actual == entry:
        return
    before, after = entry.get("records"), actual.get("records")
    if actual["sha256"] == entry["sha256"]:
        yield f"{MANIFEST} was changed: its entry of {name} contradicts itself"
    elif not isinstance(before, list) or not isinstance(after, list):
        said = terminal(str(entry["sha256"]))
        yield f"{name} was changed: its SHA-256 is {actual['sha256']}, the manifest says {said}"
    else:
        lines = [number for number, (old, new) in enumerate(zip(before, after, strict=False), 1) if old != new]
        if lines:
            more = f" and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else ""
            yield f"{name} was changed: record {', '.join(map(str, lines[:MAX_LISTED]))}{more} is not what was measured"
        if len(before) != len(after):
            yield f"{name} was changed: it has {len(after)} records, the manifest says {len(before)}"
        if not lines and len(before) == len(after):
            yield f"{name} was changed, and the manifest too: the records agree with it and the file does not"


def _against_findings(folder: pathlib.Path, judgement: Judgement) -> Iterator[str]:
    path = folder / "findings.json"
    if path.is_symlink() or not path.is_file():
        yield "findings.json is missing"
        return
    try:
        written = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        yield "findings.json is not JSON; recompute it with `python -m validation report`"
        return
    recomputed = to_findings_json(judgement)
    if isinstance(written, dict):
        written, recomputed = _by_name(written), _by_name(recomputed)
    yield from (f"findings.json: {sentence}" for sentence in _differing(written, recomputed, ""))


def _by_name(document: dict[str, Any]) -> dict[str, Any]:
    """The findings keyed by name where that loses none, so that a difference is told by name and not by position."""
    keyed = dict(document)
    for key in ("findings", "audits"):
        items = document.get(key)
        if isinstance(items, list) and all(isinstance(i, dict) and isinstance(i.get("name"), str) for i in items):
            named = {item["name"]: item for item in items}
            if len(named) == len(items):
                keyed[key] = named
    return keyed


def _differing(written: Any, recomputed: Any, where: str) -> Iterator[str]:
    """A sentence for each leaf of JSON data that is not the same in both."""
    label = terminal(where) or "the document"
    if isinstance(written, dict) and isinstance(recomputed, dict):
        for key in [*recomputed, *(key for key in written if key not in recomputed)]:
            inner = f"{where}.{key}" if where else str(key)
            if key not in written:
                yield f"{terminal(inner)} is missing; recomputed, it is {_short(recomputed[key])}"
            elif key not in recomputed:
                yield f"{terminal(inner)} is {_short(written[key])}; recomputed, there is no such value"
            else:
                yield from _differing(written[key], recomputed[key], inner)
    elif isinstance(written, list) and isinstance(recomputed, list) and len(written) == len(recomputed):
        for index, (left, right) in enumerate(zip(written, recomputed, strict=True)):
            yield from _differing(left, right, f"{where}[{index}]")
    elif not _same(written, recomputed):
        yield f"{label} is {_short(written)}; recomputed, it is {_short(recomputed)}"


def _same(written: Any, recomputed: Any) -> bool:
    if isinstance(written, bool) or isinstance(recomputed, bool):
        return written is recomputed
    if isinstance(written, (int, float)) and isinstance(recomputed, (int, float)):
        return abs(written - recomputed) <= RELATIVE_TOLERANCE * max(abs(written), abs(recomputed))
    return type(written) is type(recomputed) and bool(written == recomputed)


def _short(value: Any) -> str:
    return terminal(json.dumps(value, ensure_ascii=False), 120)


def _against_reports(folder: pathlib.Path, judgement: Judgement, *, findings_differ: bool) -> Iterator[str]:
    """Reports that are not the ones this judgement gives. Where the findings differ, they differ with them."""
    for name, render in RENDERERS.items():
        if name == "findings.json":
            continue
        path = folder / name
        if path.is_symlink() or not path.is_file():
            yield f"{name} is missing; write it again with `python -m validation report`"
        elif not findings_differ and path.read_bytes() != render(judgement).encode():
            yield f"{name} is not what the raw records give; write it again with `python -m validation report`"


def _files(folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    """Every regular file of the run by its path inside the folder; a link is never followed."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name in (MANIFEST, SIGNATURE) or path.is_symlink() or not path.is_file():
            continue
        yield name, path


def _described(path: pathlib.Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, and of each line of a raw record file."""
    whole = hashlib.sha256()
    records: list[str] | None = [] if path.suffix == ".jsonl" else None
    with path.open("rb") as file:
        for chunk in file if records is not None else iter(lambda: file.read(1 << 20), b""):
            whole.update(chunk)
            if records is not None:
                records.append(hashlib.sha256(chunk).hexdigest())
    entry: dict[str, Any] = {"sha256": whole.hexdigest(), "bytes": path.stat().st_size}
    return entry if records is None else {**entry, "records": records}


def sign(folder: pathlib.Path, secret_key: pathlib.Path) -> pathlib.Path:
    """Sign the manifest with minisign and ``secret_key`` (it asks for the key's password); the signature's path.

    Raises:
        SignatureError: minisign is not installed, there is no manifest, or it refused.
    """
    if not (folder / MANIFEST).is_file():
        raise SignatureError(f"{folder} holds no {MANIFEST}; expected a finished run")
    _minisign("-S", "-s", str(secret_key), "-m", str(folder / MANIFEST), "-x", str(folder / SIGNATURE))
    return folder / SIGNATURE


def check_signature(folder: pathlib.Path, public_key: pathlib.Path) -> None:
    """Check the manifest's signature with minisign and ``public_key``.

    Raises:
        SignatureError: minisign is not installed, there is no signature, or it does not fit the manifest and the key.
    """
    if not (folder / SIGNATURE).is_file():
        raise SignatureError(f"{folder} holds no {SIGNATURE}; expected a signed run")
    _minisign("-V", "-p", str(public_key), "-m", str(folder / MANIFEST), "-x", str(folder / SIGNATURE))


def _minisign(*arguments: str) -> None:
    program = shutil.which("minisign")
    if program is None:
        raise SignatureError(
            "minisign is not installed; install it (`apt-get install minisign`) or leave the run unsigned"
        )
    done = subprocess.run([program, *arguments], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it gave no reason"]
        raise SignatureError(f"minisign refused: {terminal(said[-1])}")
