"""The patches: SGLang's HIP-only fused query path on CUDA, planted defects, dummy weights on which attention matters.

Loaded inside SGLang's processes by ``hook/sitecustomize.py``; at import it needs nothing but the standard library.
``_is_hip`` and ``_use_aiter_gfx95`` are not flipped globally, which breaks SGLang on CUDA: each patch changes the one
module it names, after that module has run.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import sys
import types
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from validation.aiter_tree import FUNCTION, aiter_modules, find_aiter
from validation.sglang_rehearsal.settings import MARK, Rehearsal

FORWARD_MLA = "sglang.srt.models.deepseek_common.attention_forward_methods.forward_mla"
BACKEND = "sglang.srt.layers.attention.nsa_backend"
WEIGHTS = "sglang.srt.model_loader.weight_utils"

STALE_ROWS = 256
"""``stale-q`` keeps one query a shape: decode batches are this small, prefill batches are not."""


class RehearsalError(RuntimeError):
    """A patch that cannot do its work; a server without it must not answer."""


Patch = Callable[[types.ModuleType, Rehearsal], None]


def patched_spec(
    name: str, path: Sequence[str] | None, target: types.ModuleType | None
) -> importlib.machinery.ModuleSpec | None:
    """The ordinary spec of module ``name`` with its patch after its code; None where nothing is to be patched."""
    rehearsal = Rehearsal.from_environment(os.environ)
    patch = PATCHES.get(name)
    if rehearsal is None or patch is None:
        return None
    spec = importlib.machinery.PathFinder.find_spec(name, path, target)
    if spec is None or spec.loader is None:
        return None
    run = spec.loader.exec_module

    def run_and_patch(module: types.ModuleType) -> None:
        run(module)
        patch(module, rehearsal)
        print(f"[{MARK}] {rehearsal.label}: patched {name} in process {os.getpid()}", file=sys.stderr, flush=True)

    vars(spec.loader)["exec_module"] = run_and_patch
    return spec


def patch_forward_mla(module: types.ModuleType, rehearsal: Rehearsal) -> None:
    """Give the MLA forward AITER's fused kernel (rotate, concatenate, write the cache), as it has on gfx95."""
    if rehearsal.query_path == "stock":
        return
    names = vars(module)
    if not names["_is_cuda"]:
        raise RehearsalError(
            f"query path {rehearsal.query_path} was asked for where SGLang sees no CUDA device; expected an NVIDIA "
            "GPU (on ROCm the path is SGLang's own, start sglang.launch_server itself)"
        )
    tree = find_aiter()
    with aiter_modules(tree, on_rocm=False):
        fused = getattr(importlib.import_module(tree.module), FUNCTION)
    names["fused_qk_rope_cat_and_cache_mla"] = planted(fused, rehearsal.plant)

    def fused_path(attention: Any) -> bool:
        arguments = names["get_global_server_args"]()
        chosen = (attention.current_attention_backend, arguments.nsa_decode_backend, arguments.nsa_prefill_backend)
        if chosen != ("nsa", "tilelang", "tilelang"):
            raise RehearsalError(
                f"attention, decode and prefill backends are {chosen}; expected nsa, tilelang and tilelang, give "
                "--attention-backend nsa --nsa-decode-backend tilelang --nsa-prefill-backend tilelang"
            )
        if attention.rotary_emb is None:
            raise RehearsalError("the model has no rotary embedding; expected a GLM-5 or DeepSeek-V3.2 geometry")
        split_rotary_cache(attention.rotary_emb)
        return True

    _replace(names["DeepseekMLAForwardMixin"], "_skip_rope_for_nsa_tilelang_fused", fused_path)


def split_rotary_cache(rotary_emb: Any) -> None:
    """``cos_cache`` and ``sin_cache``, each (positions, rope / 2), which SGLang makes on ROCm alone."""
    if not hasattr(rotary_emb, "cos_cache"):
        cos, sin = rotary_emb.cos_sin_cache.chunk(2, dim=-1)
        rotary_emb.cos_cache, rotary_emb.sin_cache = cos.contiguous(), sin.contiguous()


def patch_backend(module: types.ModuleType, rehearsal: Rehearsal) -> None:
    """Let the decode step skip the concatenation; which function concatenates is the same in every arm."""
    names = vars(module)
    for needed in ("_is_hip", "concat_mla_absorb_q_general"):
        if needed not in names:
            raise RehearsalError(f"{module.__name__} has no {needed}; expected the sources of a known release")
    if rehearsal.query_path == "skip":
        # read at run time only by the backend's buffers and by the test whether to concatenate
        names["_is_hip"] = True
    if rehearsal.concat == "torch":
        torch = importlib.import_module("torch")

        def concatenate(q_nope: Any, q_rope: Any) -> Any:
            return torch.cat([q_nope, q_rope], dim=-1)

        names["concat_mla_absorb_q_general"] = concatenate


def patch_weights(module: types.ModuleType, rehearsal: Rehearsal) -> None:
    """Replace the dummy weights: SGLang draws norms from +-0.001 too, so attention never reaches the logits."""
    if rehearsal.sane_dummy:
        _replace(module, "initialize_dummy_weights", sane_dummy_weights)


def sane_dummy_weights(model: Any, low: float = 0.0, high: float = 0.0, seed: int = 1234) -> None:
    """Norms 1, biases 0, projections uniform with variance 1 / fan-in; each parameter's seed follows from its name.

    Query and output projections are three times as wide: attention then is sharp enough that a break of it moves the
    argmax of the logits. ``low`` and ``high`` are SGLang's and not used.
    """
    torch = importlib.import_module("torch")
    for name, parameter in model.state_dict().items():
        if not torch.is_floating_point(parameter):
            continue
        if parameter.dim() < 2:
            parameter.fill_(0.0 if "bias" in name else 1.0)
            continue
        generator = torch.Generator(device=parameter.device)
        generator.manual_seed(seed + zlib.crc32(name.encode()))
        width = 3.0 if "q_b_proj" in name or "o_proj" in name else 1.0
        bound = width * (3.0 / parameter.shape[-1]) ** 0.5
        parameter.uniform_(-bound, bound, generator=generator)


def planted(fused: Callable[..., Any], plant: str | None) -> Callable[..., Any]:
    """``fused`` with one defect of the catalogue, or as it is."""
    return PLANTED[plant](fused) if plant else fused


def _broken_rope(fused: Callable[..., Any]) -> Callable[..., Any]:
    """The query's rotary part stays un-rotated."""

    def broken(q_nope: Any, q_pe: Any, *rest: Any, **options: Any) -> Any:
        result = fused(q_nope, q_pe, *rest, **options)
        result[0][..., q_nope.shape[-1] :] = q_pe
        return result

    return broken


def _stale_q(fused: Callable[..., Any]) -> Callable[..., Any]:
    """Attention gets the query of the call before: another layer's, or another step's."""
    kept: dict[tuple[Any, ...], Any] = {}

    def stale(*arguments: Any, **options: Any) -> Any:
        result = fused(*arguments, **options)
        query = result[0]
        if query.shape[0] > STALE_ROWS:
            return result
        # kept for good: a captured graph goes on reading and writing this memory
        last = kept.setdefault((tuple(query.shape), query.dtype), query.clone())
        before = last.clone()
        last.copy_(query)
        return (before, *result[1:])

    return stale


def _off_by_one_slot(fused: Callable[..., Any]) -> Callable[..., Any]:
    """Keys go to the cache slot after their own."""

    def shifted(
        q_nope: Any, q_pe: Any, k_nope: Any, k_pe: Any, kv_cache: Any, slots: Any, *rest: Any, **options: Any
    ) -> Any:
        wrong = (slots + 1).clamp_max(kv_cache.shape[0] - 1)
        return fused(q_nope, q_pe, k_nope, k_pe, kv_cache, wrong, *rest, **options)

    return shifted


def _replace(owner: Any, name: str, value: Any) -> None:
    if not hasattr(owner, name):
        raise RehearsalError(f"{owner.__name__} has no {name}; expected the sources of a known release")
    setattr(owner, name, value)


PATCHES: dict[str, Patch] = {FORWARD_MLA: patch_forward_mla, BACKEND: patch_backend, WEIGHTS: patch_weights}
PLANTED = {"broken-rope": _broken_rope, "stale-q": _stale_q, "off-by-one-slot": _off_by_one_slot}
