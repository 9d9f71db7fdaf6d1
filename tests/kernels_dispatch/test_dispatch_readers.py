"""Both readers of an SGLang tree, on miniature trees of our own, one for each thing they must tell apart."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import types

import pytest

from validation.dispatch import DispatchReading, Method, find_tree, read_installed_sglang, read_sglang
from validation.dispatch_ast import read_source
from validation.dispatch_run import read_modules
from validation.judging.dispatch import judge_dispatch, judge_reading
from validation.judging.dispatch_table import UNREADABLE, backend_table, caller_table
from validation.records import from_json, to_json
from validation.verdicts import Finding, Verdict

BASE = """
import torch

class AttentionBackend:
    def forward(self, q, k, v, layer, forward_batch, **kwargs):
        if forward_batch.forward_mode.is_idle():
            return q.new_empty(q.shape[0], 1)
        elif forward_batch.forward_mode.is_decode():
            return self.forward_decode(q, k, v, layer, forward_batch, **kwargs)
        return self.forward_extend(q, k, v, layer, forward_batch, **kwargs)
"""

BACKEND = """
import torch
{imports}

_is_hip = False

def concat_mla_absorb_q_general(a, b):
    return torch.cat([a, b], dim=-1)

class SparseBackend({base}):
    def forward_extend(self, q, k, v, layer, forward_batch, q_rope=None, topk_indices=None):
        impl = self.{family}_prefill_impl
        if impl == "trtllm":
            return self._forward_trtllm(q, k, v, q_rope)
        {extend_guard}
        if q_rope is not None:
            q_nope = q.view(-1, layer.tp_q_head_num, layer.v_head_dim)
            q_all = None
        else:
            q_all = q.contiguous().view(-1, layer.tp_q_head_num, layer.head_dim)
            q_nope, q_rope = q_all[..., : layer.v_head_dim], q_all[..., layer.v_head_dim :]
        if impl == "fa3":
            return self._forward_fa3(q_nope=q_nope, q_rope=q_rope)
        if impl == "aiter" and {extend_aiter}:
            return self._forward_aiter(q_all=q_all)
        q_all = concat_mla_absorb_q_general(q_nope, q_rope)
        return self._forward_any(q_all=q_all)

    def forward_decode(self, q, k, v, layer, forward_batch, q_rope=None, topk_indices=None):
        if self.{family}_decode_impl == "trtllm":
            return self._forward_trtllm(q, k, v, q_rope)
        if k is not None:
            self.pool.write(k)
        if q_rope is not None:
            q_nope = q.view(-1, layer.tp_q_head_num, layer.v_head_dim)
            q_rope = q_rope.view(-1, layer.tp_q_head_num, layer.head_dim - layer.v_head_dim)
            q_all = None
        else:
            q_all = {whole}
            q_nope = q_all[:, :, : layer.v_head_dim]
            q_rope = q_all[:, :, layer.v_head_dim :]
        if self.paged:
            table = self.translate(topk_indices)
        else:
            table = topk_indices
        if self.{family}_decode_impl == "flashmla_sparse":
            if {flashmla}:
                q_all = concat_mla_absorb_q_general(q_nope, q_rope)
            return self._forward_flashmla_sparse(q_all=q_all, table=table)
        elif self.{family}_decode_impl == "flashmla_kv":
            if {flashmla}:
                q_all = concat_mla_absorb_q_general(q_nope, q_rope)
            return self._forward_flashmla_kv(q_all=q_all, table=table)
        elif self.{family}_decode_impl == "tilelang":
            if {tilelang}:
                q_all = {join}
            return self._forward_tilelang(q_all=q_all, table=table)
        elif self.{family}_decode_impl == "fa3":
            return self._forward_fa3(q_nope=q_nope, q_rope=q_rope)
        elif self.{family}_decode_impl == "aiter":
            if {aiter}:
                q_all = torch.cat([q_nope, q_rope], dim=-1)
            return self._forward_aiter(q_all=q_all, table=table)
        else:
            raise ValueError("unsupported")

    def _forward_trtllm(self, q, k, v, q_rope): ...
    def _forward_fa3(self, q_nope, q_rope): ...
    def _forward_any(self, q_all): ...
    def _forward_aiter(self, q_all, table=None): ...
    def _forward_tilelang(self, q_all, table): ...
    def _forward_flashmla_kv(self, q_all, table): ...
    def _forward_flashmla_sparse(self, q_all, table): ...
"""

CALLER = """
_use_aiter_gfx95 = False

class MLAForward:
    def _skip_rope_for_fused(self):
        args = get_global_server_args()
        return {fused} and (args.{family}_decode_backend == "tilelang" or args.{family}_prefill_backend == "tilelang")

    def forward_absorb_core(
        self, q_pe, k_pe, q_nope_out, k_nope, forward_batch, zero_allocator, positions, topk_indices, llama_4_scaling
    ):
        if self._skip_rope_for_fused() and self.rotary_emb is not None:
            q_cat, _, k_new, _ = fused_qk_rope_cat_and_cache_mla(q_nope_out, q_pe)
            if {whole_when}:
                if llama_4_scaling is not None:
                    q_cat[..., : self.kv_lora_rank] *= llama_4_scaling
                out = self.attn_mqa(q_cat, None, None, forward_batch, q_rope=None, k_rope=k_new)
            else:
                q_nope_fused = q_cat[..., : self.kv_lora_rank]
                q_pe_fused = q_cat[..., self.kv_lora_rank :]
                out = self.attn_mqa(q_nope_fused, None, None, forward_batch, q_rope=q_pe_fused, k_rope=k_new)
        else:
            out = self.attn_mqa(q_nope_out, k_nope, k_nope, forward_batch, q_rope=q_pe, k_rope=k_pe)
        return out.view(-1, 1)
"""


@dataclasses.dataclass(frozen=True)
class Tree:
    """A miniature release: the reviewed change, but for what is named."""

    family: str = "nsa"
    version: str = "0.5.12"
    flashmla: str = "q_rope is not None"
    tilelang: str = "q_all is None or not _is_hip"
    aiter: str = "q_all is None or not _is_hip"
    whole: str = "q.contiguous().view(-1, layer.tp_q_head_num, layer.head_dim)"
    join: str = "concat_mla_absorb_q_general(q_nope, q_rope)"
    extend_guard: str = "assert q_rope is not None"
    extend_aiter: str = "False"
    fused: str = "_use_aiter_gfx95"
    whole_when: str = "forward_batch.forward_mode.is_decode_or_idle()"
    imports: str = "from sglang.srt.layers.attention.base_attn_backend import AttentionBackend"
    base: str = "AttentionBackend"

    def write(self, site: pathlib.Path) -> pathlib.Path:
        """Lay the release out under ``site`` as an installed wheel would."""
        fields = dataclasses.asdict(self)
        attention = site / "sglang/srt/layers/attention"
        methods = site / "sglang/srt/models/deepseek_common/attention_forward_methods"
        info = site / f"sglang-{self.version}.dist-info"
        for folder in (attention, methods, info):
            folder.mkdir(parents=True)
        (attention / "base_attn_backend.py").write_text(BASE)
        (attention / f"{self.family}_backend.py").write_text(BACKEND.format(**fields))
        (methods / "forward_mla.py").write_text(CALLER.format(**fields))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {self.version}\n")
        return site


GATE = "q_all is None or not _is_hip"
CASES = {
    "merged": (Tree(), "as_reviewed", "as_reviewed"),
    "merged_under_its_new_name": (Tree(family="dsa"), "as_reviewed", "as_reviewed"),
    "extend_concatenates_on_hip": (Tree(extend_guard="pass"), "dispatch_differs", "as_reviewed"),
    "before_the_change": (
        Tree(tilelang="q_rope is not None", aiter="q_rope is not None", whole_when="False", version="0.5.11"),
        "optimisation_absent",
        "optimisation_absent",
    ),
    "gates_before_the_review": (Tree(flashmla=GATE), "gates_before_review", "as_reviewed"),
    "gates_before_the_review_new_name": (Tree(family="dsa", flashmla=GATE), "gates_before_review", "as_reviewed"),
    "gate_applied_on_cuda": (Tree(tilelang="q_all is None"), "dispatch_differs", "as_reviewed"),
    "gate_missing_on_aiter": (Tree(aiter="q_rope is not None"), "dispatch_differs", "as_reviewed"),
    "gate_missing_on_tilelang": (Tree(tilelang="q_rope is not None"), "dispatch_differs", "as_reviewed"),
    "gate_inverted": (Tree(tilelang="q_all is None or _is_hip"), "dispatch_differs", "as_reviewed"),
    "aiter_prefill_skips_too": (
        Tree(extend_guard="pass", extend_aiter="q_all is not None"),
        "dispatch_differs",
        "as_reviewed",
    ),
    "prefill_given_no_q_rope": (Tree(whole_when="True"), "as_reviewed", "dispatch_differs"),
    "idle_left_split": (Tree(whole_when="forward_batch.forward_mode.is_decode()"), "as_reviewed", "dispatch_differs"),
    "fused_path_on_cuda": (Tree(fused="True"), "as_reviewed", "dispatch_differs"),
}
"""Miniature release, reason of the backend's finding, reason of the caller's."""

EQUIVALENT = {
    "gate_spelled_by_de_morgan": Tree(tilelang="not (q_all is not None and _is_hip)"),
    "gate_with_operands_swapped": Tree(tilelang="not _is_hip or q_all is None", aiter="not _is_hip or q_all is None"),
    "join_by_torch_cat": Tree(join="torch.cat((q_nope, q_rope), -1)"),
    "view_by_reshape": Tree(whole="q.contiguous().reshape(-1, layer.tp_q_head_num, layer.head_dim)"),
    "refusal_by_raise": Tree(extend_guard="if q_rope is None: raise ValueError('q_rope')"),
    "mode_spelled_out": Tree(
        whole_when="forward_batch.forward_mode.is_decode() or forward_batch.forward_mode.is_idle()"
    ),
}
"""Rewrites that change nothing and must not be flagged."""

READERS = ("executed", "ast")


def _load(path: pathlib.Path, name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _read(tree: Tree, site: pathlib.Path, reader: str) -> DispatchReading:
    """Either reading, in this process: the base class is put into the backend's file so that nothing is imported."""
    found = find_tree(tree.write(site))
    if reader == "ast":
        backend, caller = read_source(found.backend, found.callers)
        return DispatchReading(found.version, found.module, Method.AST, "", backend, caller)
    found.backend.write_text(BASE + found.backend.read_text().replace(tree.imports, ""))
    modules = [_load(path, f"miniature_{path.stem}") for path in (found.backend, *found.callers)]
    backend, caller = read_modules(modules[0], modules[1:], tree.family)
    return DispatchReading(found.version, found.module, Method.EXECUTED, "", backend, caller)


def _findings(reading: DispatchReading) -> tuple[Finding, Finding]:
    backend, caller = judge_reading(reading.to_note().data)
    return backend, caller


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", CASES)
def test_reader_tells_this_release_apart(case: str, reader: str, tmp_path: pathlib.Path) -> None:
    tree, backend_reason, caller_reason = CASES[case]
    reading = _read(tree, tmp_path, reader)
    backend, caller = _findings(reading)
    assert not [cell for cell in (*reading.backend.values(), *reading.caller.values()) if cell.startswith(UNREADABLE)]
    assert (backend.reason, caller.reason) == (backend_reason, caller_reason)
    assert (backend.verdict is Verdict.PASS) == (backend_reason == "as_reviewed")
    assert (caller.verdict is Verdict.PASS) == (caller_reason == "as_reviewed")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", EQUIVALENT)
def test_equivalent_rewrite_is_not_flagged(case: str, reader: str, tmp_path: pathlib.Path) -> None:
    assert [finding.verdict for finding in _findings(_read(EQUIVALENT[case], tmp_path, reader))] == [Verdict.PASS] * 2


@pytest.mark.parametrize(
    ("tree", "cell", "action"),
    [
        (Tree(whole="q.clone().view(-1, layer.tp_q_head_num, 576)"), "hip/tilelang/concatenated/decode", "copies"),
        (Tree(join="concat_mla_absorb_q_general(q_rope, q_nope)"), "cuda/tilelang/concatenated/decode", "alters"),
    ],
    ids=["copy_instead_of_view", "rope_before_nope"],
)
def test_execution_sees_what_the_source_reader_cannot(
    tree: Tree, cell: str, action: str, tmp_path: pathlib.Path
) -> None:
    reading = _read(tree, tmp_path, "executed")
    assert reading.backend[cell] == action
    assert _findings(reading)[0].reason == "dispatch_differs"


def test_a_gate_on_an_unknown_condition_is_unreadable_from_source(tmp_path: pathlib.Path) -> None:
    reading = _read(Tree(tilelang="envs.RECAT.get() or q_all is None"), tmp_path, "ast")
    finding = _findings(reading)[0]
    assert reading.backend["hip/tilelang/concatenated/decode"].startswith(UNREADABLE)
    assert (finding.verdict, finding.reason) == (Verdict.INCONCLUSIVE, "cells_unreadable")


def test_a_release_is_executed_in_a_process_of_its_own_and_both_readers_agree(tmp_path: pathlib.Path) -> None:
    reading = read_sglang(Tree().write(tmp_path))
    assert (reading.method, reading.why, reading.version) == (Method.EXECUTED, "", "0.5.12")
    assert not reading.disagreements
    record = from_json(to_json(reading.to_note()))
    assert [finding.verdict for finding in judge_dispatch([record])] == [Verdict.PASS] * 2


def test_a_release_that_cannot_be_imported_is_executed_with_stubs(tmp_path: pathlib.Path) -> None:
    imports = f"import sgl_kernel\nfrom sglang.srt.missing import helper\n{Tree().imports}"
    reading = read_sglang(Tree(imports=imports).write(tmp_path))
    assert reading.method is Method.EXECUTED_WITH_STUBS
    assert "sgl_kernel" in reading.why
    assert [finding.verdict for finding in _findings(reading)] == [Verdict.PASS] * 2


def test_a_release_that_cannot_be_executed_is_read_from_source(tmp_path: pathlib.Path) -> None:
    imports = f"import no_such_distribution\n{Tree().imports}"
    reading = read_sglang(Tree(imports=imports).write(tmp_path))
    assert reading.method is Method.AST
    assert "no_such_distribution" in reading.why
    assert [finding.verdict for finding in _findings(reading)] == [Verdict.PASS] * 2


def test_a_folder_without_sglang_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no SGLang .* expected .*nsa_backend\.py"):
        find_tree(tmp_path)


def test_sglang_missing_is_not_run_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    findings = judge_reading(read_installed_sglang().to_note().data)
    assert [(finding.verdict, finding.reason) for finding in findings] == [(Verdict.NOT_RUN, "sglang_missing")] * 2
    assert "pip install" in findings[0].sentence


def test_every_cell_of_the_table_has_a_reason() -> None:
    assert len(backend_table()) == 3 * 6 * 2 * 3
    assert len(caller_table()) == 3 * 6 * 3
    assert all(rule.reason for rule in backend_table().values())
    assert all(rule.reason for rule in caller_table().values())


def test_no_reading_gives_no_finding() -> None:
    assert judge_dispatch([]) == []


TREES = [pathlib.Path(part) for part in os.environ.get("SGLANG_TREES", "").split(os.pathsep) if part]
"""Folders with unpacked SGLang wheels; real releases are read where the variable names some."""


@pytest.mark.parametrize("site", TREES, ids=lambda path: path.name)
def test_real_release_is_told_apart(site: pathlib.Path) -> None:
    reading = read_sglang(site)
    before = tuple(int(part) for part in reading.version.split(".")[:3]) < (0, 5, 12)
    expected = "optimisation_absent" if before else "as_reviewed"
    assert [finding.reason for finding in _findings(reading)] == [expected] * 2
    assert not reading.disagreements
    assert not [cell for cell in (*reading.backend.values(), *reading.caller.values()) if cell.startswith(UNREADABLE)]
