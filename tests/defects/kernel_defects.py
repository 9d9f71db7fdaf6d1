"""Defects of the query path, of the fused producer and of the attention, each with the verdict it must get."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tests.defects.planting import (
    AITER,
    Defect,
    Outcome,
    PatchedConsumer,
    PatchedProducer,
    Query,
    bits,
    noise_of,
    paths,
    tie,
)
from validation.operations import KV_LORA_RANK, FusedInputs, FusedOutputs, concatenated_query, viewed_query
from validation.verdicts import Verdict

L = KV_LORA_RANK


def _differs(name: str, where: str, run: Callable[[], Outcome], check: str, likely: str = "") -> Defect:
    return Defect(name, where, run, "kernel_bits.cat_skip", Verdict.FAIL, "bits_differ", check, likely)


def _wrong_value(name: str, run: Callable[[], Outcome], check: str, likely: str = "value") -> Defect:
    return Defect(name, "producer", run, "kernel_bits.torch_tie", Verdict.FAIL, "bits_differ", check, likely)


def _path(name: str, where: str, run: Callable[[], Outcome], verdict: Verdict, reason: str) -> Defect:
    return Defect(name, where, run, "path_proof.cat_skip", verdict, reason)


# --- the query path -------------------------------------------------------------------------------------------------


def _flipped_bit(pattern: torch.Tensor) -> torch.Tensor:
    pattern[1, 2, 3] ^= 1
    return pattern


def _flipped_sign(pattern: torch.Tensor) -> torch.Tensor:
    pattern[0, 0, 0] ^= -0x8000
    return pattern


def _next_up(pattern: torch.Tensor) -> torch.Tensor:
    return pattern + 1


def _stale() -> Outcome:
    """The view of the last step's buffer, kept because it looked the same."""
    held: list[torch.Tensor] = []

    def skip(q_cat: torch.Tensor) -> torch.Tensor:
        held.append(q_cat.clone())
        return held[-2] if len(held) > 1 else q_cat

    return paths(skip=skip)


def _canonical_nans(q_cat: torch.Tensor) -> torch.Tensor:
    return torch.where(q_cat.isnan(), torch.full_like(q_cat, float("nan")), q_cat)


def _padded_rows(q_cat: torch.Tensor) -> torch.Tensor:
    wide = torch.empty(*q_cat.shape[:-1], 640, dtype=q_cat.dtype)
    wide[..., : q_cat.shape[-1]] = q_cat
    return wide[..., : q_cat.shape[-1]]


def _scaled_again(q_cat: torch.Tensor) -> torch.Tensor:
    q_cat[..., :L] *= torch.linspace(0.5, 1.5, len(q_cat))[:, None, None].to(q_cat.dtype)
    return viewed_query(q_cat)


def _one_token_wrong(q_cat: torch.Tensor) -> torch.Tensor:
    return q_cat.view(q_cat.shape[1], -1).t().contiguous().view(q_cat.shape) if len(q_cat) == 1 else q_cat


def _tail_zeroed(q_cat: torch.Tensor) -> torch.Tensor:
    kept = q_cat.clone()
    kept[-1] = 0
    return kept


def _touched(q_cat: torch.Tensor) -> torch.Tensor:
    return q_cat.mul_(1)


QUERY: dict[str, tuple[Query, str, str, dict[str, Any]]] = {
    "one_flipped_bit": (bits(_flipped_bit), "q_all", "rounding", {}),
    "one_flipped_sign": (bits(_flipped_sign), "q_all", "value", {}),
    "every_element_one_ulp_up": (bits(_next_up), "q_all", "rounding", {}),
    "rope_before_nope": (lambda q: torch.cat([q[..., L:], q[..., :L]], -1), "q_all", "order", {}),
    "heads_reversed": (lambda q: q.flip(1), "q_all", "order", {}),
    "tokens_rotated": (lambda q: q.roll(1, 0), "q_all", "order", {}),
    "shifted_by_one_element": (lambda q: q.flatten().roll(1).view(q.shape), "q_all", "order", {}),
    "heads_and_channels_swapped": (
        lambda q: q.transpose(-1, -2).contiguous().view(q.shape),
        "q_all",
        "layout",
        {},
    ),
    "head_lost": (lambda q: q[:, :-1].contiguous(), "q_all", "layout", {}),
    "cast_through_fp16": (lambda q: q.half().to(q.dtype), "q_all", "value", {"variant": "every_pattern"}),
    "cast_through_fp8": (lambda q: q.to(torch.float8_e4m3fn).to(q.dtype), "q_all", "value", {}),
    "handed_over_as_fp32": (lambda q: q.float(), "q_all", "layout", {}),
    "nans_canonicalised": (_canonical_nans, "q_all", "nan payload", {"variant": "every_pattern"}),
    "negative_zero_made_positive": (lambda q: q + 0.0, "q_all", "zero sign", {"variant": "negative_zeros"}),
    "infinities_clamped": (lambda q: q.nan_to_num(), "q_all", "value", {"variant": "infinities"}),
    "strided_where_contiguous_is_promised": (_padded_rows, "q_all", "layout", {}),
    "token_and_head_strides_swapped": (
        lambda q: q.transpose(0, 1).contiguous().transpose(0, 1),
        "q_all",
        "layout",
        {},
    ),
    "one_token_special_case_wrong": (_one_token_wrong, "q_all", "layout", {"tokens": 1}),
    "padded_tail_zeroed": (_tail_zeroed, "q_all", "unwritten", {}),
    "llama_4_scaling_applied_twice": (_scaled_again, "q_all", "value", {"variant": "llama_4_scaling"}),
    "copied_instead_of_viewed": (lambda q: q.clone(), "skip_same_storage", "", {}),
}
"""What stands in for the view, a check that must differ, its class, and the cell that shows it."""

# --- the fused producer, shared by both paths -----------------------------------------------------------------------


def _aliased() -> Outcome:
    """One static output buffer: the next layer's launch overwrites the query that the view still reads."""
    buffer: dict[torch.Size, torch.Tensor] = {}

    def outputs(inputs: FusedInputs, made: FusedOutputs) -> FusedOutputs:
        kept = buffer.setdefault(made.q_cat.shape, torch.zeros_like(made.q_cat))
        return dataclasses.replace(made, q_cat=kept.copy_(made.q_cat))

    return paths(producer=PatchedProducer(outputs=outputs))


def _noisy_producer() -> Outcome:
    """Atomics in no fixed order: the last bit changes from launch to launch."""
    calls = itertools.count()

    def outputs(inputs: FusedInputs, made: FusedOutputs) -> FusedOutputs:
        return dataclasses.replace(made, q_cat=bits(lambda p: p ^ noise_of(p, next(calls)))(made.q_cat))

    return paths(producer=PatchedProducer(outputs=outputs))


def _on_output(field: str, change: Query) -> PatchedProducer:
    def outputs(inputs: FusedInputs, made: FusedOutputs) -> FusedOutputs:
        return dataclasses.replace(made, **{field: change(getattr(made, field))})

    return PatchedProducer(outputs=outputs)


def _unwritten_tail(tensor: torch.Tensor) -> torch.Tensor:
    written = torch.empty_like(tensor)
    written[:-1] = tensor[:-1]
    return written


def _with(**changes: Callable[[FusedInputs], Any]) -> PatchedProducer:
    return PatchedProducer(
        lambda inputs: dataclasses.replace(inputs, **{name: change(inputs) for name, change in changes.items()})
    )


def _writes_beside(inputs: FusedInputs, made: FusedOutputs) -> FusedOutputs:
    inputs.kv_cache[inputs.slots[inputs.slots >= 0] - 1] = 1
    return made


def _writes_masked(inputs: FusedInputs, made: FusedOutputs) -> FusedOutputs:
    inputs.kv_cache[inputs.slots[inputs.slots < 0]] = 1
    return made


def _scales_input(inputs: FusedInputs, made: FusedOutputs) -> FusedOutputs:
    inputs.q_nope.mul_(2)
    return made


def _advances_positions(inputs: FusedInputs, made: FusedOutputs) -> FusedOutputs:
    inputs.positions.add_(1)
    return made


def _unrotated_q(inputs: FusedInputs, made: FusedOutputs) -> FusedOutputs:
    return dataclasses.replace(made, q_cat=torch.cat([inputs.q_nope, inputs.q_pe], -1))


def _rounded_once(inputs: FusedInputs, made: FusedOutputs) -> FusedOutputs:
    cos, sin = (t[inputs.positions].float().repeat_interleave(2, -1)[:, None] for t in (inputs.cos, inputs.sin))
    x = inputs.q_pe.float()
    turned = torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)
    return dataclasses.replace(made, q_cat=torch.cat([inputs.q_nope, (x * cos + turned * sin).bfloat16()], -1))


def _swapped_nope_heads(q_cat: torch.Tensor) -> torch.Tensor:
    return torch.cat([q_cat[..., :L].flip(1), q_cat[..., L:]], -1)


SHARED = (
    Defect("buffer_overwritten_by_the_next_layer", "producer", _aliased, "kernel_bits.cat_skip", Verdict.FAIL,
           "bits_differ", "q_all", "stale"),
    _differs("producer_not_repeatable", "producer", _noisy_producer, "repeat_q_all", "rounding"),
    _differs("q_cat_tail_unwritten", "producer", lambda: paths(producer=_on_output("q_cat", _unwritten_tail)),
             "q_all", "unwritten"),
    _differs("k_pe_tail_unwritten", "producer", lambda: paths(producer=_on_output("k_pe", _unwritten_tail)),
             "k_pe", "unwritten"),
    _differs("decode_zeros_unwritten", "producer",
             lambda: paths(producer=_on_output("q_nope_zeros", torch.empty_like), variant="decode_zeros"),
             "q_nope_zeros", "unwritten"),
    _differs("q_nope_heads_swapped_on_both_paths", "producer",
             lambda: paths(producer=_on_output("q_cat", _swapped_nope_heads)), "q_nope_kept", "order"),
    _differs("q_cat_through_fp8_on_both_paths", "producer",
             lambda: paths(producer=_on_output("q_cat", lambda q: q.to(torch.float8_e4m3fn).to(q.dtype))),
             "q_nope_kept", "value"),
    _differs("q_cat_a_slice_of_a_wider_buffer", "producer",
             lambda: paths(producer=_on_output("q_cat", _padded_rows)), "skip_same_storage"),
    _differs("neighbouring_slot_overwritten", "producer",
             lambda: paths(producer=PatchedProducer(outputs=_writes_beside)), "kv_cache_elsewhere_untouched", "value"),
    _differs("slot_minus_one_written", "producer",
             lambda: paths(producer=PatchedProducer(outputs=_writes_masked), variant="padded_slots"),
             "kv_cache_elsewhere_untouched", "value"),
    _differs("q_nope_changed_in_place", "producer",
             lambda: paths(producer=PatchedProducer(outputs=_scales_input)), "input_q_nope_unmodified", "value"),
    _differs("positions_advanced_in_place", "producer",
             lambda: paths(producer=PatchedProducer(outputs=_advances_positions)), "input_positions_unmodified",
             "value"),
)  # fmt: skip
"""Seen in the cat and skip cell itself, although both paths share them."""

AGAINST_TORCH = (
    _wrong_value("q_pe_not_rotated", lambda: tie(PatchedProducer(outputs=_unrotated_q)), "q_cat"),
    _wrong_value("neox_for_interleaved", lambda: tie(_with(is_neox=lambda i: True)), "q_cat"),
    _wrong_value("interleaved_for_neox", lambda: tie(_with(is_neox=lambda i: False), variant="neox"), "q_cat"),
    _wrong_value("rotated_backwards", lambda: tie(_with(sin=lambda i: -i.sin)), "q_cat"),
    _wrong_value("position_off_by_one", lambda: tie(_with(positions=lambda i: i.positions + 1)), "q_cat"),
    _wrong_value("sine_for_cosine", lambda: tie(_with(sin=lambda i: i.cos, cos=lambda i: i.sin)), "q_cat"),
    _wrong_value("rotation_rounded_once", lambda: tie(PatchedProducer(outputs=_rounded_once)), "q_cat", "rounding"),
    _wrong_value("slot_off_by_one", lambda: tie(_with(slots=lambda i: (i.slots + 1) % 320)), "kv_cache"),
    _wrong_value("slots_in_another_order", lambda: tie(_with(slots=lambda i: i.slots.flip(0))), "kv_cache", "order"),
    _wrong_value("k_scale_ignored", lambda: tie(_with(k_scale=lambda i: i.k_scale * 0 + 1), variant="k_scale"),
                 "kv_cache"),
    _wrong_value("k_scale_multiplied", lambda: tie(_with(k_scale=lambda i: 1 / i.k_scale), variant="k_scale"),
                 "kv_cache"),
    _wrong_value("k_pe_of_the_neighbouring_token", lambda: tie(_with(k_pe=lambda i: i.k_pe.roll(1, 0))), "kv_cache"),
    _wrong_value("saturating_at_240_like_fnuz",
                 lambda: tie(_on_output("q_cat", lambda q: q.float().clamp(-240, 240).to(q.dtype)),
                             variant="saturation", dtype="fp8_e4m3fn"), "q_cat"),
    _wrong_value("decode_zeros_negative",
                 lambda: tie(_on_output("q_nope_zeros", torch.neg), variant="decode_zeros"), "q_nope_zeros",
                 "zero sign"),
    _wrong_value("decode_q_pe_of_another_head",
                 lambda: tie(_on_output("decode_q_pe", lambda q: q.roll(1, 1)), variant="decode_zeros"),
                 "decode_q_pe", "order"),
    _wrong_value("aiter_given_the_other_rotary_style",
                 lambda: tie(dataclasses.replace(_with(is_neox=lambda i: True), inner=AITER), tokens=1), "q_cat"),
    _wrong_value("aiter_given_the_neighbouring_slot",
                 lambda: tie(dataclasses.replace(_with(slots=lambda i: (i.slots + 1) % 320), inner=AITER), tokens=1),
                 "kv_cache"),
    _wrong_value("aiter_with_one_flipped_bit",
                 lambda: tie(dataclasses.replace(_on_output("q_cat", bits(_flipped_bit)), inner=AITER), tokens=2),
                 "q_cat", "rounding"),
)  # fmt: skip
"""Shared by both paths, and seen where AITER is tied to torch's operations."""

# --- the attention --------------------------------------------------------------------------------------------------


def _noisy_attention() -> Outcome:
    calls = itertools.count()
    return paths(consumer=PatchedConsumer(output=bits(lambda p: p ^ noise_of(p, next(calls)))))


def _remembering_attention() -> Outcome:
    """An output kept by shape, as a cache that forgot what it is a cache of."""
    kept: dict[torch.Size, torch.Tensor] = {}
    return paths(consumer=PatchedConsumer(output=lambda o: kept.setdefault(o.shape, o)))


def _without_rope(q_all: torch.Tensor) -> torch.Tensor:
    return torch.cat([q_all[..., :L], torch.zeros_like(q_all[..., L:])], -1)


def _first_row_set(kv_cache: torch.Tensor) -> torch.Tensor:
    kv_cache[0] = 1
    return kv_cache


ATTENTION = (
    Defect("attention_ignores_the_rope_part", "consumer",
           lambda: paths(consumer=PatchedConsumer(query=_without_rope)),
           "kernel_bits.cat_skip", Verdict.NOT_RUN, "vacuous", "control_unrotated_q_pe"),
    Defect("attention_remembers_by_shape", "consumer", _remembering_attention,
           "kernel_bits.cat_skip", Verdict.NOT_RUN, "vacuous", "control_unrotated_q_pe"),
    _differs("attention_not_repeatable", "consumer", _noisy_attention, "repeat_attention", "rounding"),
    _differs("attention_tail_unwritten", "consumer",
             lambda: paths(consumer=PatchedConsumer(output=_unwritten_tail)), "attention", "unwritten"),
    _differs("attention_scales_the_query_in_place", "consumer",
             lambda: paths(consumer=PatchedConsumer(query=lambda q: q.mul_(0.5))), "consumer_leaves_q_all", "value"),
    _differs("attention_writes_the_cache", "consumer",
             lambda: paths(consumer=PatchedConsumer(cache=_first_row_set)), "consumer_leaves_kv_cache", "value"),
)  # fmt: skip

# --- what the counts show -------------------------------------------------------------------------------------------

COUNTS = (
    _path("skip_still_concatenates", "query path", lambda: paths(skip=concatenated_query), Verdict.FAIL,
          "path_not_removed"),
    _path("skip_copies", "query path", lambda: paths(skip=lambda q: q.clone()), Verdict.FAIL, "path_not_removed"),
    _path("skip_touches_every_element", "query path", lambda: paths(skip=_touched), Verdict.FAIL, "path_not_removed"),
    _path("cat_concatenates_twice", "query path",
          lambda: paths(cat=lambda q: concatenated_query(concatenated_query(q))), Verdict.FAIL, "path_not_removed"),
    _path("cat_path_never_concatenates", "query path", lambda: paths(cat=viewed_query), Verdict.NOT_RUN,
          "no_path_proof"),
    Defect("both_arms_take_the_skip_path", "query path", lambda: paths(cat=viewed_query), "kernel_bits.cat_skip",
           Verdict.NOT_RUN, "no_path_proof"),
)  # fmt: skip

DEFECTS = (
    *(
        _differs(name, "query path", partial(paths, skip=query, **cell), check, likely)
        for name, (query, check, likely, cell) in QUERY.items()
    ),
    _differs("query_of_the_last_step", "query path", _stale, "q_all", "stale"),
    *SHARED,
    *AGAINST_TORCH,
    *ATTENTION,
    *COUNTS,
)
