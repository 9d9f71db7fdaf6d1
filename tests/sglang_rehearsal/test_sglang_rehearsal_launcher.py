"""The launcher and its hook, on a toy tree that has SGLang's names: no GPU, no SGLang."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from validation.sglang_rehearsal import __main__ as launcher
from validation.sglang_rehearsal import releases
from validation.sglang_rehearsal.settings import MARK, VARIABLE, Rehearsal

FORWARD_MLA = """
    _is_cuda = {cuda}

    class Arguments:
        nsa_decode_backend = nsa_prefill_backend = "{backend}"

    def get_global_server_args():
        return Arguments()

    class DeepseekMLAForwardMixin:
        def forward_absorb_prepare(self):
            return 1

        def forward_absorb_core(self):
            return fused_qk_rope_cat_and_cache_mla

        def _skip_rope_for_nsa_tilelang_fused(self):
            return False
"""
BACKEND = """
    _is_hip = False

    def concat_mla_absorb_q_general(q_nope, q_rope):
        return "sglang"

    class NativeSparseAttnBackend:
        def forward_decode(self):
            # a comment
            return _is_hip
"""
WEIGHTS = """
    def initialize_dummy_weights(model):
        '''A docstring.'''
        return "sglang"
"""
AITER = """
    def fused_qk_rope_cat_and_cache_mla(
        q_nope, q_pe, k_nope, k_pe, kv_cache, slot_mapping, pos, cos, sin, k_scale, is_neox
    ):
        return "aiter"
"""
ASK = """
    import json, multiprocessing, sys

    def look(queue):
        import sglang.srt.layers.attention.nsa_backend as backend
        import sglang.srt.model_loader.weight_utils as weights
        import sglang.srt.models.deepseek_common.attention_forward_methods.forward_mla as mla

        class Rotary:
            cos_cache = sin_cache = None

        attention = mla.DeepseekMLAForwardMixin()
        attention.current_attention_backend, attention.rotary_emb = "nsa", Rotary()
        try:
            fused_path = attention._skip_rope_for_nsa_tilelang_fused()
        except RuntimeError as error:
            fused_path = str(error)
        queue.put({
            "skips": backend.NativeSparseAttnBackend().forward_decode(),
            "concat": backend.concat_mla_absorb_q_general.__module__,
            "dummy": weights.initialize_dummy_weights.__module__,
            "fused": getattr(vars(mla).get("fused_qk_rope_cat_and_cache_mla"), "__qualname__", None),
            "fused_path": fused_path,
            "aiter_left": [name for name in sys.modules if name.split(".")[0] == "aiter"],
            "chained": getattr(sys, "chained", None),
            "path": sys.path,
        })

    if __name__ == "__main__":
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        child = context.Process(target=look, args=(queue,))
        child.start()
        print(json.dumps(queue.get(timeout=30)))
        child.join()
"""


def toy_tree(folder: pathlib.Path, *, cuda: bool = True, backend: str = "tilelang") -> pathlib.Path:
    """A folder with toy packages ``sglang`` and ``aiter`` and a ``sitecustomize`` of its own."""
    files = {
        "sglang/srt/models/deepseek_common/attention_forward_methods/forward_mla.py": FORWARD_MLA.format(
            cuda=cuda, backend=backend
        ),
        "sglang/srt/layers/attention/nsa_backend.py": BACKEND,
        "sglang/srt/model_loader/weight_utils.py": WEIGHTS,
        "aiter/ops/triton/fused_kv_cache.py": AITER,
        "aiter/__init__.py": "    raise ImportError('needs ROCm')",
        "sitecustomize.py": "    import sys; sys.chained = True",
        "ask.py": ASK,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    return folder


def seen(rehearsal: Rehearsal | None, tree: pathlib.Path) -> tuple[dict[str, object], str]:
    """What a spawned process of a process with the hook sees, and its standard error."""
    inherited = {**os.environ, "PYTHONPATH": str(tree)}
    variables = launcher.environment(rehearsal, inherited) if rehearsal else inherited
    result = subprocess.run(
        [sys.executable, str(tree / "ask.py")],
        env=variables,
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr


def test_skip_in_a_spawned_process(tmp_path: pathlib.Path) -> None:
    saw, log = seen(Rehearsal("skip", sane_dummy=True), toy_tree(tmp_path))
    assert saw["skips"] is True
    assert saw["fused"] == "fused_qk_rope_cat_and_cache_mla"
    assert saw["fused_path"] is True
    assert saw["dummy"] == "validation.sglang_rehearsal.patches"
    assert saw["concat"] == "sglang.srt.layers.attention.nsa_backend"
    assert saw["chained"] is True
    assert saw["aiter_left"] == []
    assert log.count(f"[{MARK}]") == 3
    assert str(pathlib.Path(launcher.__file__).parents[2]) not in saw["path"]  # type: ignore[operator]


def test_cat_differs_from_skip_in_the_concatenation_alone(tmp_path: pathlib.Path) -> None:
    tree = toy_tree(tmp_path)
    cat, skip = seen(Rehearsal("cat"), tree)[0], seen(Rehearsal("skip"), tree)[0]
    assert {name for name in cat if cat[name] != skip[name]} == {"skips"}


def test_stock_and_no_rehearsal_change_nothing(tmp_path: pathlib.Path) -> None:
    tree = toy_tree(tmp_path)
    for rehearsal in (Rehearsal("stock"), None):
        saw, _ = seen(rehearsal, tree)
        assert (saw["skips"], saw["fused"], saw["fused_path"]) == (False, None, False)
        assert saw["dummy"] == "sglang.srt.model_loader.weight_utils"


def test_concat_and_plant(tmp_path: pathlib.Path) -> None:
    saw, _ = seen(Rehearsal("cat", "torch", "stale-q"), toy_tree(tmp_path))
    assert saw["concat"] == "validation.sglang_rehearsal.patches"
    assert saw["fused"] == "_stale_q.<locals>.stale"


def test_another_decode_backend_is_an_error_and_no_silent_stock_path(tmp_path: pathlib.Path) -> None:
    saw, _ = seen(Rehearsal("skip"), toy_tree(tmp_path, backend="fa3"))
    assert "give --attention-backend nsa --nsa-decode-backend tilelang" in str(saw["fused_path"])


def test_without_cuda_the_server_does_not_start(tmp_path: pathlib.Path) -> None:
    tree = toy_tree(tmp_path, cuda=False)
    variables = launcher.environment(Rehearsal("cat"), {**os.environ, "PYTHONPATH": str(tree)})
    module = "sglang.srt.models.deepseek_common.attention_forward_methods.forward_mla"
    result = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "expected an NVIDIA GPU" in result.stderr


def test_arguments_behind_the_dashes_are_sglangs() -> None:
    rehearsal, server = launcher.parse(
        ["--query-path", "skip", "--plant", "broken-rope", "--", "--port", "1", "--tp", "2"]
    )
    assert rehearsal == Rehearsal("skip", plant="broken-rope")
    assert server == ["--port", "1", "--tp", "2"]
    assert launcher.command(rehearsal, server)[-2:] == ["--weight-version", rehearsal.label]
    assert rehearsal.label.startswith("rehearsal on CUDA; query path skip")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--query-path", "fast"], "invalid choice"),
        ([], "--query-path"),
        (["--query-path", "stock", "--plant", "stale-q"], "does not run the fused kernel"),
        (["--query-path", "cat", "--", "--weight-version=7"], "--weight-version was given"),
    ],
)
def test_wrong_arguments_end_with_a_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        launcher.parse(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_settings_travel_in_one_variable() -> None:
    rehearsal = Rehearsal("cat", "torch", "off-by-one-slot", True)
    assert Rehearsal.from_environment(rehearsal.to_environment()) == rehearsal
    assert Rehearsal.from_environment({}) is None
    assert list(rehearsal.to_environment()) == [VARIABLE]


def test_environment_keeps_what_was_on_the_path() -> None:
    variables = launcher.environment(Rehearsal("cat"), {"PYTHONPATH": "/a", "HOME": "/h"})
    assert variables["PYTHONPATH"] == f"{launcher.HOOK}{os.pathsep}/a"
    assert variables["HOME"] == "/h"


def test_missing_sglang_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert launcher.main(["--query-path", "skip"]) == 2
    assert capsys.readouterr().err == (
        "sglang_rehearsal: sglang is not installed; install a known release: pip install sglang==0.5.12\n"
    )


@pytest.mark.parametrize("version", ["0.5.11", "0.5.14"])
def test_other_releases_are_refused(version: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(releases.UnknownReleaseError, match=rf"sglang {version} is installed.*sglang==0\.5\.12"):
        releases.check(toy_tree(tmp_path) / "sglang", version)


def test_changed_sources_of_a_known_release_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(releases.UnknownReleaseError, match="differs from that release in srt/models"):
        releases.check(toy_tree(tmp_path) / "sglang", "0.5.12")


def test_fingerprints_follow_the_code_and_not_its_comments(tmp_path: pathlib.Path) -> None:
    package = toy_tree(tmp_path) / "sglang"
    before = releases.fingerprints(package)
    assert set(before) == set(releases.PATCHED)
    path = package / "srt/layers/attention/nsa_backend.py"
    source = path.read_text()
    path.write_text("\n" + source.replace("# a comment", "# another\n"))
    assert releases.fingerprints(package) == before
    path.write_text(source.replace("return _is_hip", "return not _is_hip"))
    changed = [name for name, digest in releases.fingerprints(package).items() if digest != before[name]]
    assert changed == ["srt/layers/attention/nsa_backend.py:NativeSparseAttnBackend.forward_decode"]
    weights = package / "srt/model_loader/weight_utils.py"
    weights.write_text(weights.read_text().replace("A docstring.", "Another."))
    assert (
        releases.fingerprints(package)["srt/model_loader/weight_utils.py:initialize_dummy_weights"]
        == (before["srt/model_loader/weight_utils.py:initialize_dummy_weights"])
    )


def test_every_known_release_tells_every_patched_function() -> None:
    assert all(set(release.fingerprints) == set(releases.PATCHED) for release in releases.KNOWN)
