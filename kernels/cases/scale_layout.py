"""Case: let the fused quantisation write the activation scale in the GEMM's byte order (SGLang 24476).

The claim: with ``transpose_scale`` AITER's kernel writes the bytes that the copy before every bpreshuffle GEMM made, so
skipping the copy changes no bit. The successors (29275, 33166 and others) replaced the tag on the tensor by strides.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from validation.judging.scale_layout import CASE as NAME
from validation.judging.scale_layout import GEMM_CASE
from validation.scale_cell import SURVIVAL, ScaleCell, Site

HIDDEN, Q_LORA_RANK, KV_LORA_RANK, LATENT = 6144, 2048, 512, 576
"""GLM-5's widths (its published config.json); LATENT is kv_lora_rank + qk_rope_head_dim."""
FUSED_A = Q_LORA_RANK + LATENT
"""Row stride of q and of the latent where both are slices of one fused projection."""

SITES = (
    Site("mha_q_with_unquantized", "forward_mha, sparse", Q_LORA_RANK, FUSED_A, with_unquantized=True),
    Site("mha_q", "forward_mha, dense", Q_LORA_RANK, FUSED_A),
    Site("mha_kv", "forward_mha, latent", KV_LORA_RANK, LATENT, with_unquantized=True),
    Site("mla_q_kv_with_unquantized", "forward_mla, sparse", Q_LORA_RANK, FUSED_A, KV_LORA_RANK, with_unquantized=True),
    Site("mla_q_kv", "forward_mla, dense", Q_LORA_RANK, FUSED_A, KV_LORA_RANK),
    Site("layer_input", "communicator, first layer", HIDDEN, HIDDEN, with_unquantized=True),
    Site("layer_input_residual", "communicator", HIDDEN, HIDDEN, residual=True, with_unquantized=True),
)
PAYLOADS = ("zero_rows", "outliers", "nans", "negative_zeros")
GEMMS = ("blockscale", "bpreshuffle")
_BY_NAME = {site.name: site for site in SITES}


def bits_cells(matrix: str) -> list[ScaleCell]:
    """Every call site at some token counts, and one site with every payload."""
    tokens = (1, 2, 3, 5, 8, 16, 33, 64) if matrix == "full" else (1, 2, 5)
    cells = [ScaleCell(site, m) for site in SITES for m in tokens]
    return cells + [ScaleCell(_BY_NAME["mha_kv"], 3, payload) for payload in PAYLOADS]


def gemm_cells(matrix: str) -> list[ScaleCell]:
    """Both GEMMs on the three widths that the call sites have."""
    if matrix == "full":
        pairs = [(site.name, m) for site in SITES for m in (1, 2, 16, 33)]
    else:
        pairs = [("mha_kv", 1), ("mha_kv", 3), ("mla_q_kv_with_unquantized", 3), ("layer_input_residual", 2)]
    return [ScaleCell(_BY_NAME[name], m, consumer=gemm) for gemm in GEMMS for name, m in pairs]


def survival_cell() -> ScaleCell:
    """The cell whose scales are sent through every way of ``validation.scale_layout.WAYS``."""
    return ScaleCell(_BY_NAME["mha_kv"], 3)


@dataclasses.dataclass(frozen=True)
class ScaleCase:
    """What the case declares."""

    name: str = NAME
    claim: str = "a scale written transposed equals the copied one bit for bit, and needs no copy"
    source: str = "SGLang pull request 24476"

    def declared(self, matrix: str) -> dict[str, dict[str, Any]]:
        """The cell ids of both parts, for the judge; the removed copy is counted in the first, before any GEMM."""
        return {
            NAME: {"cells": [*(str(cell) for cell in bits_cells(matrix)), SURVIVAL], "path_proof": True},
            GEMM_CASE: {"cells": [str(cell) for cell in gemm_cells(matrix)], "path_proof": False},
        }


CASE = ScaleCase()
