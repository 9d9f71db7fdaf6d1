"""Decides the dispatch table from the source of an SGLang tree, without importing it.

A small abstract interpreter: what the table knows (platform flags, implementation, form, mode, absent arguments) has
its value, everything else is unknown. A known condition takes one branch; an unknown one is followed both ways, and
where the two ways disagree about a cell, the cell is unreadable rather than guessed.
"""

from __future__ import annotations

import ast
import enum
import pathlib
from collections.abc import Iterable, Mapping, Sequence

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


class _Tag(enum.Enum):
    """A value that is known by what it is, not by what it holds. None of them is Python's None."""

    UNKNOWN = enum.auto()
    """May be anything, None included."""
    OBJECT = enum.auto()
    WHOLE = enum.auto()
    """The caller's query tensor, or a zero-copy view of it."""
    PART = enum.auto()
    """A slice of a query, or a query of the split form."""
    FRESH = enum.auto()
    """The result of a concatenation."""


_Value = _Tag | str | bool | int | None
_Env = dict[str, _Value]

_CORES = ("forward_absorb_rocm_core", "forward_absorb_core")
_VIEWS = ("contiguous", "view", "reshape")


class _Walk:
    """One function (and those it calls on ``self``) followed for one cell."""

    def __init__(
        self, methods: Mapping[str, ast.FunctionDef], platform: str, implementation: str, mode: str, family: str
    ) -> None:
        self._methods = methods
        self._implementation = implementation
        self._mode = mode
        self._family = family
        self._flags = {
            "_is_hip": platform == "hip",
            "_is_cuda": platform == "cuda",
            "_is_musa": platform == "musa",
            "_use_aiter": platform == "hip",
            "_use_aiter_gfx95": platform == "hip",
        }
        self.outcomes: set[str] = set()
        self._uncertain = 0
        self._returned: list[_Value] = []

    def call(self, name: str, arguments: _Env) -> None:
        """Follow the method ``name``; parameters that are not in ``arguments`` are None by default, else unknown."""
        function = self._methods[name]
        parameters = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        defaults = function.args.defaults
        env: _Env = {parameter.arg: _Tag.UNKNOWN for parameter in parameters}
        positional = [*function.args.posonlyargs, *function.args.args]
        for parameter, default in zip(positional[len(positional) - len(defaults) :], defaults, strict=True):
            env[parameter.arg] = self._value(default, {})
        self._block(function.body, {**env, **arguments})

    def _block(self, statements: Iterable[ast.stmt], env: _Env) -> bool:
        """Run statements on ``env``; True where the block cannot fall through."""
        return any(self._statement(statement, env) for statement in statements)

    def _statement(self, node: ast.stmt, env: _Env) -> bool:
        if isinstance(node, ast.Return):
            return self._return(node.value, env)
        if isinstance(node, ast.If):
            return self._if(node, env)
        if isinstance(node, ast.Assert):
            return self._value_is(node.test, env, False) and self._refuse()
        if isinstance(node, ast.Raise):
            return self._refuse()
        if isinstance(node, ast.With | ast.Try):
            return self._block(node.body, env)
        if isinstance(node, ast.For | ast.While):
            self._branches([(node.body, dict(env)), ([], dict(env))], env)
            return False
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr) and isinstance(node.value, ast.Call):
            name = _self_method(node.value)
            if name.startswith("attn_mqa"):
                self._hand_over(node.value, env)
                return True
        if isinstance(node, ast.Assign):
            self._assign(node.targets[0], node.value, env)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._assign(node.target, node.value, env)
        return False

    def _if(self, node: ast.If, env: _Env) -> bool:
        test = self._truth(self._value(node.test, env))
        if test is not None:
            return self._block(node.body if test else node.orelse, env)
        return self._branches([(node.body, dict(env)), (node.orelse, dict(env))], env)

    def _branches(self, branches: Sequence[tuple[Sequence[ast.stmt], _Env]], env: _Env) -> bool:
        """Follow each branch on its own copy; ``env`` keeps what all that fall through agree on."""
        self._uncertain += 1
        open_ends = [copy for body, copy in branches if not self._block(body, copy)]
        self._uncertain -= 1
        if not open_ends:
            return True
        for name in {key for copy in open_ends for key in copy}:
            values = [copy.get(name, _Tag.UNKNOWN) for copy in open_ends]
            env[name] = values[0] if all(value is values[0] or value == values[0] for value in values) else _Tag.UNKNOWN
        return False

    def _refuse(self) -> bool:
        if not self._uncertain:
            self.outcomes.add(Action.REFUSED.value)
        return True

    def _return(self, node: ast.expr | None, env: _Env) -> bool:
        name = _self_method(node) if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Call) and name in ("forward_decode", "forward_extend"):
            self.call(name, {key: env[key] for key in ("q", "k", "v", "q_rope", "topk_indices")})
        elif isinstance(node, ast.Call) and name.startswith("_forward_"):
            self.outcomes.add(self._leaf(node, env))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "new_empty":
            self.outcomes.add(Action.NO_KERNEL.value)
        else:
            self._returned.append(_Tag.UNKNOWN if node is None else self._value(node, env))
        return True

    def _leaf(self, node: ast.Call, env: _Env) -> str:
        given = {keyword.arg: self._value(keyword.value, env) for keyword in node.keywords}
        if "q_all" in given:
            actions = {_Tag.FRESH: Action.CONCATENATES, _Tag.WHOLE: Action.REUSES}
            q_all = given["q_all"]
            action = actions.get(q_all) if isinstance(q_all, _Tag) else None
            return action.value if action else f"{UNREADABLE}q_all at line {node.lineno} is not decided"
        if {"q_nope", "q_rope"} <= given.keys():
            return Action.SEPARATE.value
        if node.args and isinstance(node.args[0], ast.Name) and node.args[0].id == "q":
            return Action.DELEGATED.value
        return f"{UNREADABLE}the call at line {node.lineno} takes no query by a known name"

    def _hand_over(self, node: ast.Call, env: _Env) -> None:
        """The caller's end: the form in which the attention layer gets the query."""
        q = self._value(node.args[0], env) if node.args else _Tag.UNKNOWN
        rope = next((self._value(keyword.value, env) for keyword in node.keywords if keyword.arg == "q_rope"), None)
        if q is _Tag.WHOLE and rope is None:
            self.outcomes.add(CONCATENATED)
        elif q is _Tag.PART and rope not in (None, _Tag.UNKNOWN):
            self.outcomes.add(SPLIT)
        else:
            self.outcomes.add(f"{UNREADABLE}the query handed over at line {node.lineno} is not decided")

    def _assign(self, target: ast.expr, node: ast.expr, env: _Env) -> None:
        if isinstance(target, ast.Name):
            env[target.id] = self._value(node, env)
        elif isinstance(target, ast.Tuple):
            fused = isinstance(node, ast.Call) and "rope_cat_and_cache" in ast.unparse(node.func)
            for index, element in enumerate(target.elts):
                if isinstance(element, ast.Name):
                    env[element.id] = (_Tag.OBJECT if index else _Tag.WHOLE) if fused else _Tag.UNKNOWN

    def _value_is(self, node: ast.expr, env: _Env, wanted: bool) -> bool:
        return self._truth(self._value(node, env)) is wanted

    @staticmethod
    def _truth(value: _Value) -> bool | None:
        return None if isinstance(value, _Tag) else bool(value)

    def _value(self, node: ast.expr, env: _Env) -> _Value:
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str | bool | int) or node.value is None else _Tag.OBJECT
        if isinstance(node, ast.Name):
            return env[node.id] if node.id in env else self._flags.get(node.id, _Tag.UNKNOWN)
        if isinstance(node, ast.Attribute):
            return self._attribute(node.attr)
        if isinstance(node, ast.Subscript):
            return _Tag.PART if self._value(node.value, env) in (_Tag.WHOLE, _Tag.PART) else _Tag.UNKNOWN
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            truth = self._truth(self._value(node.operand, env))
            return _Tag.UNKNOWN if truth is None else not truth
        if isinstance(node, ast.BoolOp):
            return self._bool_op(node, env)
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return self._compare(node, env)
        if isinstance(node, ast.IfExp):
            test = self._truth(self._value(node.test, env))
            return _Tag.UNKNOWN if test is None else self._value(node.body if test else node.orelse, env)
        return self._call_value(node, env) if isinstance(node, ast.Call) else _Tag.UNKNOWN

    def _attribute(self, name: str) -> _Value:
        if name.endswith(("_decode_impl", "_prefill_impl", "_decode_backend", "_prefill_backend")):
            return self._implementation
        known: dict[str, _Value] = {
            "current_attention_backend": self._family,
            "use_mha": False,
            "hisparse_coordinator": None,
            "rotary_emb": _Tag.OBJECT,
        }
        return known.get(name, _Tag.UNKNOWN)

    def _bool_op(self, node: ast.BoolOp, env: _Env) -> _Value:
        deciding = isinstance(node.op, ast.Or)
        truths = [self._truth(self._value(operand, env)) for operand in node.values]
        if deciding in truths:
            return deciding
        return _Tag.UNKNOWN if None in truths else not deciding

    def _compare(self, node: ast.Compare, env: _Env) -> _Value:
        left, operator, right = self._value(node.left, env), node.ops[0], node.comparators[0]
        if isinstance(operator, ast.In | ast.NotIn) and isinstance(left, str):
            if isinstance(right, ast.Tuple | ast.List | ast.Set):
                inside = left in [self._value(element, env) for element in right.elts]
            elif isinstance(right, ast.Name) and right.id.endswith("_ATTENTION_BACKENDS"):
                inside = left == self._family
            else:
                return _Tag.UNKNOWN
            return inside is isinstance(operator, ast.In)
        other = self._value(right, env)
        if isinstance(operator, ast.Is | ast.IsNot) and other is None and left is not _Tag.UNKNOWN:
            return (left is None) is isinstance(operator, ast.Is)
        if isinstance(operator, ast.Eq | ast.NotEq) and isinstance(left, str) and isinstance(other, str):
            return (left == other) is isinstance(operator, ast.Eq)
        return _Tag.UNKNOWN

    def _call_value(self, node: ast.Call, env: _Env) -> _Value:
        text, method = ast.unparse(node.func), _self_method(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr.startswith("is_") and "forward_mode" in text:
            return node.func.attr in MODE_PREDICATES[self._mode]
        if text == "torch.cat" or text.startswith("concat_mla"):
            return _Tag.FRESH
        if isinstance(node.func, ast.Attribute) and node.func.attr in _VIEWS:
            return self._value(node.func.value, env)
        if method.startswith("_resolve"):  # 0.5.23 may replace the implementation, for a top-k that is pooled only
            return next((v for a in node.args if isinstance(v := self._value(a, env), str)), _Tag.UNKNOWN)
        if method.startswith("_skip_rope") and method in self._methods:
            inner = _Walk(self._methods, "", self._implementation, self._mode, self._family)
            inner._flags = self._flags
            inner.call(method, {})
            return inner._returned[0] if len(inner._returned) == 1 else _Tag.UNKNOWN
        return _Tag.UNKNOWN


def read_source(backend: pathlib.Path, callers: Sequence[pathlib.Path]) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """What the source decides in every backend cell and every caller cell; ``unreadable: ...`` where it does not."""
    base = backend.with_name("base_attn_backend.py")
    methods = {**(_methods(base, "forward") if base.is_file() else {}), **_methods(backend, "forward_decode")}
    family = backend.stem.split("_")[0]
    cells = {backend_key(*cell): _backend_cell(methods, family, *cell) for cell in backend_cells()}
    classes = {core: _methods(path, core) for path in callers for core in _CORES if _methods(path, core)}
    forms = {caller_key(*cell): _caller_cell(classes, family, *cell) for cell in caller_cells()}
    return cells, forms


def _backend_cell(
    methods: Mapping[str, ast.FunctionDef], family: str, platform: str, implementation: str, form: str, mode: str
) -> str:
    walk = _Walk(methods, platform, implementation, mode, family)
    split = form == SPLIT
    query: _Env = {"q": _Tag.PART if split else _Tag.WHOLE, "q_rope": _Tag.PART if split else None}
    if not {"forward", "forward_decode", "forward_extend"} <= methods.keys():
        return f"{UNREADABLE}forward, forward_decode or forward_extend is not defined where expected"
    walk.call("forward", {**query, "k": None, "v": None, "topk_indices": _Tag.OBJECT})
    return _only(walk.outcomes)


def _caller_cell(
    classes: Mapping[str, Mapping[str, ast.FunctionDef]], family: str, platform: str, implementation: str, mode: str
) -> str:
    cores = _CORES if platform == "hip" else _CORES[1:]
    core = next((name for name in cores if name in classes), None)
    if core is None:
        return f"{UNREADABLE}no {_CORES[1]} in the caller's files"
    walk = _Walk(classes[core], platform, implementation, mode, family)
    tensors: _Env = {"q_pe": _Tag.PART, "k_pe": _Tag.PART, "q_nope_out": _Tag.PART, "k_nope": _Tag.PART}
    walk.call(core, {**tensors, "topk_indices": _Tag.OBJECT, "llama_4_scaling": None})
    return _only(walk.outcomes)


def _only(outcomes: set[str]) -> str:
    if len(outcomes) == 1:
        return next(iter(outcomes))
    return f"{UNREADABLE}the source allows {' or '.join(sorted(outcomes)) or 'nothing that was recognised'}"


def _methods(path: pathlib.Path, required: str) -> dict[str, ast.FunctionDef]:
    """The methods of the first class in ``path`` that defines ``required``; empty where none does."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
            if required in methods:
                return methods
    return {}


def _self_method(node: ast.Call) -> str:
    """The name in ``self.name(...)``; empty for any other call."""
    match node.func:
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return name
    return ""
