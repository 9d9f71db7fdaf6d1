"""Rewrites of the paths, the producer and the attention that change nothing of what is claimed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch

from tests.defects.planting import Outcome, PatchedConsumer, PatchedProducer, Query, Rewrite, paths, tie
from validation.operations import KV_LORA_RANK, Q_CAT_DIM, FusedInputs, FusedOutputs

L, R = KV_LORA_RANK, Q_CAT_DIM - KV_LORA_RANK

VIEWS: dict[str, Query] = {
    "view_is_the_tensor_itself": lambda q: q,
    "view_reshaped": lambda q: q.reshape(-1, q.shape[-2], q.shape[-1]),
    "view_by_slicing": lambda q: q[:],
    "view_by_detaching": lambda q: q.detach(),
    "view_by_as_strided": lambda q: q.as_strided(q.shape, q.stride(), q.storage_offset()),
    "view_by_flattening": lambda q: q.view(-1).view_as(q),
    "view_by_two_transpositions": lambda q: q.transpose(0, 1).transpose(0, 1),
    "view_through_bytes": lambda q: q.view(torch.uint8).view(q.dtype),
    "view_by_narrowing": lambda q: q.narrow(0, 0, q.shape[0]),
    "view_by_expanding": lambda q: q.expand_as(q),
    "view_by_unsqueezing": lambda q: q.unsqueeze(0).squeeze(0),
}
CATS: dict[str, Query] = {
    "cat_of_a_split": lambda q: torch.cat(torch.split(q, [L, R], -1), -1),
    "cat_by_concat": lambda q: torch.concat([q[..., :L], q[..., L:]], 2),
    "cat_by_concatenate": lambda q: torch.concatenate((q.narrow(-1, 0, L), q.narrow(-1, L, R)), -1),
    "cat_of_flattened_tokens": lambda q: torch.cat([q.flatten(0, 1)[:, :L], q.flatten(0, 1)[:, L:]], -1).view_as(q),
}


def _q_cat(change: Query) -> PatchedProducer:
    def outputs(inputs: FusedInputs, made: FusedOutputs) -> FusedOutputs:
        return dataclasses.replace(made, q_cat=change(made.q_cat))

    return PatchedProducer(outputs=outputs)


def _workspace(q_cat: torch.Tensor) -> torch.Tensor:
    """A query that begins inside a larger buffer, as an allocator of one's own gives it."""
    space = torch.empty(128 + q_cat.numel(), dtype=q_cat.dtype)
    space[128:] = q_cat.flatten()
    return space[128:].view(q_cat.shape)


def _written_by_heads(q_cat: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(q_cat)
    for head in reversed(range(q_cat.shape[1])):
        out[:, head] = q_cat[:, head]
    return out


def _ring_of_buffers() -> Outcome:
    """Output buffers used in turn: none is overwritten while a step still reads it."""
    ring: list[torch.Tensor] = []

    def in_turn(q_cat: torch.Tensor) -> torch.Tensor:
        ring.append(q_cat.clone())
        return ring[-1]

    return paths(producer=_q_cat(in_turn))


def _static_attention() -> Outcome:
    """An attention that gives the same output buffer each time, as inside a captured graph."""
    kept: dict[torch.Size, torch.Tensor] = {}
    return paths(consumer=PatchedConsumer(output=lambda o: kept.setdefault(o.shape, torch.zeros_like(o)).copy_(o)))


def _by_even_and_odd(inputs: FusedInputs, made: FusedOutputs) -> FusedOutputs:
    """The rotation written for pairs, rounded after each operation as before."""
    cos, sin = inputs.cos[inputs.positions][:, None], inputs.sin[inputs.positions][:, None]
    even, odd = inputs.q_pe[..., 0::2], inputs.q_pe[..., 1::2]
    rotated = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)
    return dataclasses.replace(made, q_cat=torch.cat([inputs.q_nope, rotated], -1))


def _wide_tables(inputs: FusedInputs) -> FusedInputs:
    cos, sin = (table.repeat_interleave(2, -1) for table in (inputs.cos, inputs.sin))
    return dataclasses.replace(inputs, cos=cos, sin=sin)


def _laid_out_otherwise(inputs: FusedInputs) -> FusedInputs:
    q_nope = inputs.q_nope.transpose(0, 1).contiguous().transpose(0, 1)
    return dataclasses.replace(inputs, q_nope=q_nope, k_pe=inputs.k_pe.contiguous(), slots=inputs.slots.clone())


OTHERS: dict[str, tuple[str, Callable[[], Outcome]]] = {
    "q_cat_in_a_workspace": ("producer", lambda: paths(producer=_q_cat(_workspace))),
    "q_cat_written_head_by_head": ("producer", lambda: paths(producer=_q_cat(_written_by_heads))),
    "q_cat_buffers_in_turn": ("producer", _ring_of_buffers),
    "rotation_by_even_and_odd": ("producer", lambda: tie(PatchedProducer(outputs=_by_even_and_odd))),
    "tables_of_full_width": ("producer", lambda: tie(PatchedProducer(_wide_tables))),
    "inputs_laid_out_otherwise": ("producer", lambda: tie(PatchedProducer(_laid_out_otherwise))),
    "attention_in_a_static_buffer": ("consumer", _static_attention),
    "attention_of_its_own_rounding": (
        "consumer",
        lambda: paths(consumer=PatchedConsumer(output=lambda o: (o.float() * 1.001).to(o.dtype))),
    ),
    "attention_on_a_copied_query": ("consumer", lambda: paths(consumer=PatchedConsumer(query=lambda q: q.clone()))),
    "nan_inputs_passed_through": ("payload", lambda: paths(variant="nans")),
    "every_bit_pattern_passed_through": ("payload", lambda: paths(variant="every_pattern")),
    "padding_slots": ("payload", lambda: paths(variant="padded_slots")),
    "scaling_before_the_view": ("payload", lambda: paths(variant="llama_4_scaling")),
}

REWRITES = (
    *(Rewrite(name, "query path", partial(paths, skip=view)) for name, view in VIEWS.items()),
    *(Rewrite(name, "query path", partial(paths, cat=cat)) for name, cat in CATS.items()),
    *(Rewrite(name, where, run) for name, (where, run) in OTHERS.items()),
)
