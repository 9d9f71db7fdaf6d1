"""Defects of the gates and of the caller, planted in the source of a miniature SGLang and read from it."""

from __future__ import annotations

import pathlib
import tempfile
from functools import partial

from tests.defects.planting import Defect, Outcome, Rewrite
from tests.kernels_dispatch.test_dispatch_readers import EQUIVALENT, GATE, Tree
from validation.dispatch import DispatchReading, Method, find_tree
from validation.dispatch_ast import read_source
from validation.judging.dispatch import judge_dispatch
from validation.records import Note
from validation.verdicts import Verdict


def _read(tree: Tree) -> Outcome:
    with tempfile.TemporaryDirectory() as site:
        found = find_tree(tree.write(pathlib.Path(site)))
        backend, caller = read_source(found.backend, found.callers)
    note = DispatchReading(found.version, found.module, Method.AST, "", backend, caller).to_note()
    return Outcome(judge_dispatch([note]))


def _without_sglang() -> Outcome:
    reading = DispatchReading("none", "", Method.NOT_INSTALLED, "no sglang on the import path", {}, {})
    note: Note = reading.to_note()
    return Outcome(judge_dispatch([note]))


def _gate(name: str, tree: Tree, part: str, verdict: Verdict, reason: str) -> Defect:
    return Defect(name, "gate", partial(_read, tree), f"dispatch.{part}", verdict, reason)


FAIL = Verdict.FAIL
NEVER = "q_rope is not None"
DEFECTS = (
    _gate("gate_applied_on_cuda", Tree(tilelang="q_all is None"), "backend", FAIL, "dispatch_differs"),
    _gate("gate_missing_on_aiter", Tree(aiter=NEVER), "backend", FAIL, "dispatch_differs"),
    _gate("gate_missing_on_tilelang", Tree(tilelang=NEVER), "backend", FAIL, "dispatch_differs"),
    _gate("gate_inverted", Tree(tilelang="q_all is None or _is_hip"), "backend", FAIL, "dispatch_differs"),
    _gate("gates_on_flashmla_as_before_the_review", Tree(flashmla=GATE), "backend", FAIL, "gates_before_review"),
    _gate("gates_on_flashmla_under_the_new_name", Tree(family="dsa", flashmla=GATE), "backend", FAIL,
          "gates_before_review"),
    _gate("no_gate_at_all", Tree(tilelang=NEVER, aiter=NEVER), "backend", FAIL, "optimisation_absent"),
    _gate("caller_never_hands_q_cat_over", Tree(whole_when="False"), "caller", FAIL, "optimisation_absent"),
    _gate("prefill_given_no_q_rope", Tree(whole_when="True"), "caller", FAIL, "dispatch_differs"),
    _gate("idle_left_split", Tree(whole_when="forward_batch.forward_mode.is_decode()"), "caller", FAIL,
          "dispatch_differs"),
    _gate("fused_path_on_cuda", Tree(fused="True"), "caller", FAIL, "dispatch_differs"),
    _gate("gate_behind_an_unknown_switch", Tree(tilelang="envs.RECAT.get() or q_all is None"), "backend",
          Verdict.INCONCLUSIVE, "cells_unreadable"),
    Defect("no_sglang_to_read", "gate", _without_sglang, "dispatch.backend", Verdict.NOT_RUN, "sglang_missing"),
)  # fmt: skip

REWRITES = tuple(Rewrite(name, "gate", partial(_read, tree)) for name, tree in EQUIVALENT.items())
