"""Executes an SGLang tree's own dispatch with the leaf kernels observed; prints one JSON line. A process of its own.

Usage: ``python -m validation.dispatch_run SITE BACKEND_FILE CALLER_FILE...``

The functions that decide run unchanged, on CPU tensors. Replaced are the leaves only: ``_forward_<implementation>`` of
the backend, the fused producer and ``attn_mqa`` of the caller, settings, and the platform flags of the module. Every
concatenation is seen by torch's dispatcher, whoever calls it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pathlib
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch

from validation.dispatch_stubs import STUBBED, Stub, stubbed_imports
from validation.judging.dispatch_table import (
    CONCATENATED,
    MODE_PREDICATES,
    SPLIT,
    UNREADABLE,
    Action,
    backend_cells,
    backend_key,
    caller_cells,
    caller_key,
)
from validation.observe import CountOps

TOKENS, HEADS, KV_LORA_RANK, QK_ROPE_HEAD_DIM = 3, 2, 512, 64
"""GLM-5's latent and rotary widths (its published config.json); the counts are arbitrary."""

REFUSALS = (AssertionError, ValueError, NotImplementedError)


class _LeafCalled(Exception):  # noqa: N818 - control flow, no error
    """Ends the function under observation at its leaf: what follows is no part of the dispatch."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__("leaf reached")
        self.arguments = arguments


class _Mode:
    """Stands in for ``ForwardMode``."""

    def __init__(self, mode: str) -> None:
        self._true = MODE_PREDICATES[mode]

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("is_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: name in self._true


def main(arguments: Sequence[str]) -> int:
    """Load, observe every cell, print."""
    site, backend_file, *caller_files = (pathlib.Path(argument) for argument in arguments)
    backend, callers, why = _load(site, backend_file, caller_files)
    cells, forms = read_modules(backend, callers, backend_file.stem.split("_")[0])
    print(json.dumps({"backend": cells, "caller": forms, "why": why}))
    return 0


def read_modules(
    backend: types.ModuleType, callers: Sequence[types.ModuleType], family: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Every backend cell and every caller cell, observed; ``family`` is ``nsa`` or ``dsa``. Changes the modules."""
    with torch.no_grad():
        cells = {backend_key(*cell): _guarded(observe_backend, backend, *cell) for cell in backend_cells()}
        forms = {caller_key(*cell): _guarded(observe_caller, callers, family, *cell) for cell in caller_cells()}
    return cells, forms


def _load(
    site: pathlib.Path, backend_file: pathlib.Path, caller_files: Sequence[pathlib.Path]
) -> tuple[types.ModuleType, list[types.ModuleType], str]:
    """The modules, imported as installed; where that fails, again with their imports stubbed, and why."""
    names = [".".join(path.relative_to(site).with_suffix("").parts) for path in (backend_file, *caller_files)]
    sys.path.insert(0, str(site))
    if torch.version.hip is None:
        # SGLang tries AITER and expects an ImportError where it is absent; AITER without ROCm raises RuntimeError
        sys.modules["aiter"] = None  # type: ignore[assignment]
    try:
        modules = [importlib.import_module(name) for name in names]
        why = ""
    except (Exception, SystemExit) as error:
        why = f"importing it as installed failed: {type(error).__name__}: {error}"[:300]
        for name in [n for n in sys.modules if n.split(".")[0] in STUBBED]:
            del sys.modules[name]
        with stubbed_imports(site, names):
            modules = [importlib.import_module(name) for name in names]
    return modules[0], modules[1:], why


def _guarded(observe: Callable[..., str], modules: Any, *arguments: str) -> str:
    try:
        return observe(modules, *arguments)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        return f"{UNREADABLE}{type(error).__name__}: {error} ({pathlib.Path(frames[-1].filename).name})"[:300]


def observe_backend(module: types.ModuleType, platform: str, implementation: str, form: str, mode: str) -> str:
    """What the backend does in one cell, as an ``Action`` value."""
    _set_platform(module, platform)
    _replace(module, "concat_mla_absorb_q_general", lambda q_nope, q_rope: torch.cat([q_nope, q_rope], dim=-1))
    _replace(module, "envs", Stub(SGLANG_NSA_FUSE_TOPK=Stub(get=lambda: True)))  # the top-k's default path
    cls = _class_with(module, "forward_decode", "forward_extend")
    keep = ("forward", "forward_decode", "forward_extend", "_resolve", "_check")
    backend = _observed(cls, lambda name: name in keep[:3] or name.startswith(keep[3:]), "_forward_")
    backend.__dict__.update(
        use_mha=False, hisparse_coordinator=None, dsa_index_kpool=1, use_fused_topk=True, forward_metadata=Stub()
    )
    for prefix in ("nsa", "dsa"):
        for phase in ("decode", "prefill"):
            backend.__dict__[f"{prefix}_{phase}_impl"] = implementation
    q_cat = torch.arange(TOKENS * HEADS * (KV_LORA_RANK + QK_ROPE_HEAD_DIM), dtype=torch.float32)
    q_cat = q_cat.view(TOKENS, HEADS, -1)
    q_nope, q_rope = q_cat[..., :KV_LORA_RANK].contiguous(), q_cat[..., KV_LORA_RANK:].contiguous()
    q, rope = (q_nope, q_rope) if form == SPLIT else (q_cat, None)
    batch = Stub(forward_mode=_Mode(mode), hisparse_coordinator=None)
    layer = types.SimpleNamespace(
        tp_q_head_num=HEADS,
        tp_k_head_num=1,
        v_head_dim=KV_LORA_RANK,
        head_dim=KV_LORA_RANK + QK_ROPE_HEAD_DIM,
        is_cross_attention=False,
        scaling=1.0,
        logit_cap=0.0,
        layer_id=0,
    )
    topk = torch.zeros((TOKENS, 8), dtype=torch.int32)
    with CountOps(torch.ops.aten.cat.default) as cats:
        try:
            backend.forward(q, None, None, layer, batch, q_rope=rope, topk_indices=topk)
        except _LeafCalled as leaf:
            arguments = leaf.arguments
        except REFUSALS as error:
            if traceback.extract_tb(error.__traceback__)[-1].filename != module.__file__:
                raise
            return Action.REFUSED.value
        else:
            return Action.NO_KERNEL.value
    return _action(arguments, q, rope, q_cat, cats.removed)


def _action(
    arguments: dict[str, Any], q: torch.Tensor, rope: torch.Tensor | None, q_cat: torch.Tensor, cats: int
) -> str:
    """The action that the leaf's arguments prove, or why they prove none."""
    if "q_all" in arguments:
        q_all = arguments["q_all"]
        if q_all.shape != q_cat.shape or not torch.equal(q_all, q_cat):
            return Action.ALTERS.value
        if cats == 0 and q_all.untyped_storage().data_ptr() == q.untyped_storage().data_ptr():
            return Action.REUSES.value
        return Action.CONCATENATES.value if cats == 1 else Action.COPIES.value
    if "q_nope" in arguments and "q_rope" in arguments:
        return Action.SEPARATE.value if cats == 0 else Action.CONCATENATES.value
    if arguments.get("q") is q and arguments.get("q_rope") is rope and cats == 0:
        return Action.DELEGATED.value
    return f"{UNREADABLE}a leaf was called with {', '.join(sorted(arguments))}"


def observe_caller(
    modules: Sequence[types.ModuleType], family: str, platform: str, implementation: str, mode: str
) -> str:
    """The form in which the caller hands the query to its attention layer; ``family`` is ``nsa`` or ``dsa``."""
    rocm = [m for m in modules if platform == "hip" and m.__name__.endswith("_rocm")]
    module = (rocm or modules)[0]
    core = "forward_absorb_rocm_core" if rocm else "forward_absorb_core"
    _set_platform(module, platform)
    q_cat = torch.zeros(TOKENS, HEADS, KV_LORA_RANK + QK_ROPE_HEAD_DIM)
    for name in [n for n in vars(module) if "rope_cat_and_cache" in n] or ["fused_qk_rope_cat_and_cache_mla"]:
        _replace(module, name, lambda *args, **kwargs: (q_cat, None, q_cat[:, :1, KV_LORA_RANK:], None))
    settings = {f"{p}_{phase}_backend": implementation for p in ("nsa", "dsa") for phase in ("decode", "prefill")}
    _replace(module, "get_global_server_args", lambda: types.SimpleNamespace(**settings))
    _replace(module, "get_exec", lambda: types.SimpleNamespace(kernel=types.SimpleNamespace(**settings)))
    cls = _class_with(module, core)
    attention = _observed(cls, lambda name: name == core or name.startswith("_skip_rope"), "")
    attn_mqa = _leaf(lambda q, k, v, forward_batch, **kwargs: None)
    attn_mqa.__dict__.update(layer_id=0, k_scale=None)
    attention.__dict__.update(
        attn_mqa=attn_mqa,
        current_attention_backend=family,
        rotary_emb=types.SimpleNamespace(cos_cache=None, sin_cache=None, is_neox_style=False, cos_sin_cache=None),
        kv_lora_rank=KV_LORA_RANK,
        kv_cache_dtype="auto",
        num_local_heads=HEADS,
        learnable_sink_param=None,
        dcp_size=1,
    )
    given = {
        "q_pe": torch.zeros(TOKENS, HEADS, QK_ROPE_HEAD_DIM),
        "k_pe": torch.zeros(TOKENS, 1, QK_ROPE_HEAD_DIM),
        "q_nope_out": torch.zeros(TOKENS, HEADS, KV_LORA_RANK),
        "k_nope": torch.zeros(TOKENS, 1, KV_LORA_RANK),
        "forward_batch": Stub(forward_mode=_Mode(mode)),
        "zero_allocator": None,
        "positions": torch.arange(TOKENS),
        "topk_indices": torch.zeros((TOKENS, 8), dtype=torch.int32),
        "llama_4_scaling": None,
    }
    try:
        getattr(attention, core)(**given)
    except _LeafCalled as leaf:
        q, q_rope = leaf.arguments["q"], leaf.arguments.get("q_rope")
    else:
        return f"{UNREADABLE}the attention layer was never called"
    if q_rope is None and q.shape == q_cat.shape:
        return CONCATENATED
    if q_rope is not None and q.shape[-1] == KV_LORA_RANK:
        return SPLIT
    return f"{UNREADABLE}q has shape {tuple(q.shape)} and q_rope is {'absent' if q_rope is None else 'given'}"


def _observed(cls: type[Any], keep: Callable[[str], bool], leaf_prefix: str) -> Any:
    """An instance of ``cls`` made without ``__init__``: kept methods run, leaves record, the rest does nothing."""
    overrides: dict[str, Any] = {"__getattr__": lambda self, name: Stub(), "__init__": lambda self: None}
    for name in dir(cls):
        if name.startswith("__") or keep(name) or not callable(inspect.getattr_static(cls, name)):
            continue
        original = inspect.getattr_static(cls, name)
        if leaf_prefix and name.startswith(leaf_prefix) and inspect.isfunction(original):
            overrides[name] = _leaf(original)
        else:
            overrides[name] = lambda *args, **kwargs: Stub()
    observed = type(f"Observed{cls.__name__}", (cls,), overrides)
    observed.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
    return object.__new__(observed)


def _leaf(original: Callable[..., Any]) -> Callable[..., Any]:
    """A recorder with the parameter names of ``original``."""
    signature = inspect.signature(original)

    def record(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind_partial(*args, **kwargs)
        arguments = dict(bound.arguments)
        raise _LeafCalled({**arguments, **arguments.pop("kwargs", {})})

    return record


def _set_platform(module: types.ModuleType, platform: str) -> None:
    for name, value in (
        ("_is_hip", platform == "hip"),
        ("_is_cuda", platform == "cuda"),
        ("_is_musa", platform == "musa"),
        ("_use_aiter", platform == "hip"),
        ("_use_aiter_gfx95", platform == "hip"),
    ):
        _replace(module, name, value)


def _replace(module: types.ModuleType, name: str, value: Any) -> None:
    setattr(module, name, value)


def _class_with(module: types.ModuleType, *methods: str) -> type[Any]:
    for thing in vars(module).values():
        if inspect.isclass(thing) and thing.__module__ == module.__name__ and all(m in vars(thing) for m in methods):
            return thing
    raise LookupError(f"{module.__name__} holds no class that defines {' and '.join(methods)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
