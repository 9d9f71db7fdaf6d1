"""A reduced GLM-5 for one GPU: ``python -m validation.sglang_rehearsal.model DIR --layers 78 --heads 8 --experts 8``.

The attention has GLM-5's geometry, so the kernels under test see their real shapes; layers, heads a rank and experts
are what is cut. The folder holds a config and, with ``--tokenizer``, a tokenizer; the weights are dummies, see
``patches.sane_dummy_weights``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

GLM5_LAYERS, GLM5_HEADS, GLM5_EXPERTS = 78, 64, 256
"""Of GLM-5's published config.json."""
_DENSE_LAYERS = 3
_HIDDEN, _INTERMEDIATE, _EXPERT_WIDTH, _VOCABULARY = 6144, 12288, 2048, 154_880
_KV_RANK, _Q_RANK, _NOPE, _ROPE, _VALUE = 512, 2048, 192, 64, 256
_INDEX_HEADS, _INDEX_DIM, _INDEX_TOPK = 32, 128, 2048
_END_ID = 154_820
EXPERTS_PER_TOKEN = 8
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclasses.dataclass(frozen=True)
class Reduction:
    """What is cut from GLM-5.

    Raises:
        ValueError: more is asked for than GLM-5 has, or fewer experts than a token is routed to.
    """

    layers: int = 8
    heads: int = 8
    """8 is one rank's share of 64 at tensor parallelism 8."""
    experts: int = 16
    expert_width: int = _EXPERT_WIDTH
    """256 is one rank's share at tensor parallelism 8."""

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("--layers", self.layers, 1, GLM5_LAYERS),
            ("--heads", self.heads, 1, GLM5_HEADS),
            ("--experts", self.experts, EXPERTS_PER_TOKEN, GLM5_EXPERTS),
            ("--expert-width", self.expert_width, 128, _EXPERT_WIDTH),
        ):
            if not least <= value <= most:
                raise ValueError(f"{name} {value} was given; expected {least} to {most}")

    def config(self) -> dict[str, Any]:
        """``config.json`` of a ``GlmMoeDsaForCausalLM``."""
        return {
            "architectures": ["GlmMoeDsaForCausalLM"],
            "model_type": "glm_moe_dsa",
            "dtype": "bfloat16",
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "n_routed_experts": self.experts,
            "hidden_size": _HIDDEN,
            "intermediate_size": _INTERMEDIATE,
            "moe_intermediate_size": self.expert_width,
            "vocab_size": _VOCABULARY,
            "kv_lora_rank": _KV_RANK,
            "q_lora_rank": _Q_RANK,
            "qk_nope_head_dim": _NOPE,
            "qk_rope_head_dim": _ROPE,
            "qk_head_dim": _NOPE + _ROPE,
            "v_head_dim": _VALUE,
            "head_dim": _ROPE,
            "index_n_heads": _INDEX_HEADS,
            "index_head_dim": _INDEX_DIM,
            "index_topk": _INDEX_TOPK,
            "rope_interleave": True,
            "indexer_rope_interleave": True,
            "rope_parameters": {"rope_theta": 1_000_000, "rope_type": "default"},
            "max_position_embeddings": 202_752,
            "first_k_dense_replace": min(_DENSE_LAYERS, self.layers),
            "moe_layer_freq": 1,
            "n_shared_experts": 1,
            "num_experts_per_tok": EXPERTS_PER_TOKEN,
            "n_group": 1,
            "topk_group": 1,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "num_nextn_predict_layers": 1,
            "ep_size": 1,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "use_cache": True,
            "bos_token_id": 0,
            "eos_token_id": [_END_ID],
            "pad_token_id": _END_ID,
        }

    def weight_bytes(self) -> int:
        """Memory of the bf16 weights: whether it fits is to be known before a server starts."""
        attention = (
            _HIDDEN * (_Q_RANK + _KV_RANK + _ROPE)
            + _Q_RANK * self.heads * (_NOPE + _ROPE)
            + _KV_RANK * self.heads * (_NOPE + _VALUE) * 2  # kv_b_proj, and its two halves that absorption keeps
            + self.heads * _VALUE * _HIDDEN
            + _Q_RANK * _INDEX_HEADS * _INDEX_DIM
            + _HIDDEN * (_INDEX_DIM + _INDEX_HEADS)
        )
        dense = 3 * _HIDDEN * _INTERMEDIATE
        experts = 3 * _HIDDEN * self.expert_width * (self.experts + 1) + _HIDDEN * self.experts
        dense_layers = min(_DENSE_LAYERS, self.layers)
        parameters = self.layers * attention + dense_layers * dense + (self.layers - dense_layers) * experts
        return 2 * (parameters + 2 * _HIDDEN * _VOCABULARY)


def write(folder: pathlib.Path, reduction: Reduction, tokenizer: pathlib.Path | None = None) -> None:
    """Write the model's folder, with the tokenizer of the folder ``tokenizer`` where one is given."""
    folder.mkdir(parents=True, exist_ok=True)
    generation = {"eos_token_id": [_END_ID], "pad_token_id": _END_ID}
    for name, data in (("config.json", reduction.config()), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer / name, folder / name)


def main(arguments: Sequence[str]) -> int:
    """Write a folder as the command line says, and tell its size."""
    parser = argparse.ArgumentParser(
        prog="python -m validation.sglang_rehearsal.model", description="Write a reduced GLM-5."
    )
    add = parser.add_argument
    add("folder", type=pathlib.Path)
    add("--layers", type=int, default=Reduction.layers, help=f"of {GLM5_LAYERS}")
    add("--heads", type=int, default=Reduction.heads, help=f"of {GLM5_HEADS}; 8 is the share of a rank of eight")
    add("--experts", type=int, default=Reduction.experts, help=f"of {GLM5_EXPERTS}")
    add("--expert-width", type=int, default=_EXPERT_WIDTH, help=f"of {_EXPERT_WIDTH}")
    add("--tokenizer", type=pathlib.Path, metavar="FOLDER", help="whose tokenizer to copy, for text prompts")
    given = parser.parse_args(arguments)
    try:
        reduction = Reduction(given.layers, given.heads, given.experts, given.expert_width)
    except ValueError as error:
        parser.error(str(error))
    missing = [name for name in TOKENIZER_FILES if given.tokenizer and not (given.tokenizer / name).is_file()]
    if missing:
        parser.error(f"--tokenizer {given.tokenizer} has no {', '.join(missing)}; expected a folder with both files")
    write(given.folder, reduction, given.tokenizer)
    print(f"{given.folder}: {reduction}, {reduction.weight_bytes() / 2**30:.1f} GiB of bf16 weights")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
