"""The trained checkpoint as SGLang serves it: ``python -m validation.sglang_rehearsal.export DIR``.

The weights stay as they are; the config says ``index_topk`` 2048, because SGLang 0.5.12's top-k and TileLang kernels
are written for that alone. Prompts shorter than that are attended to whole, as in the checkpoint's own dense mode.
Nothing needs padding: what the kernels ask for is in ``refusals``, and the checkpoint's attention geometry is GLM-5's.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

CHECKPOINT = pathlib.Path(__file__).resolve().parents[1] / "engine" / "checkpoint"
INDEX_TOPK = 2048
"""sgl_kernel's ``fast_topk_*`` and ``tilelang_sparse_fwd`` assert it."""
COPIED = ("model.safetensors", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def refusals(config: Mapping[str, Any]) -> list[str]:
    """What SGLang 0.5.12's kernels would refuse of a geometry, one sentence each; empty where they take it.

    Read from its sources: the indexer's cache holds 128 fp8 values and one fp32 scale a token (132 bytes, pages of 64
    tokens, both written into ``nsa_indexer``); its Hadamard rotation takes powers of two; DeepGEMM's paged MQA logits
    take 32 or 64 index heads; TileLang's sparse kernel has value width 512, a rotary width that is a power of two, and
    pads up to 64 heads itself, more in multiples of 64.
    """
    heads = config["num_attention_heads"]
    rope = config["qk_rope_head_dim"]
    wanted = (
        ("kv_lora_rank", config["kv_lora_rank"] == 512, "512"),
        ("qk_rope_head_dim", rope > 0 and rope & (rope - 1) == 0, "a power of two"),
        ("index_head_dim", config["index_head_dim"] == 128, "128"),
        ("index_n_heads", config["index_n_heads"] in (32, 64), "32 or 64"),
        ("index_topk", config["index_topk"] == INDEX_TOPK, str(INDEX_TOPK)),
        ("num_attention_heads", heads <= 64 or heads % 64 == 0, "at most 64, or a multiple of 64"),
    )
    return [
        f"{name} is {config[name]}; SGLang's kernels expect {expected}" for name, good, expected in wanted if not good
    ]


def served_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` of the trained checkpoint with the one key changed that SGLang's kernels need changed.

    Raises:
        ValueError: its geometry is one that SGLang's kernels refuse.
    """
    served = {**config, "index_topk": INDEX_TOPK}
    refused = refusals(served)
    if refused:
        raise ValueError("; ".join(refused))
    return served


def export(folder: pathlib.Path, checkpoint: pathlib.Path = CHECKPOINT) -> None:
    """Write ``folder`` as a Hugging Face model with tokenizer.

    Raises:
        FileNotFoundError: ``checkpoint`` is no complete checkpoint.
        ValueError: SGLang's kernels would refuse it.
    """
    missing = [name for name in ("config.json", *COPIED) if not (checkpoint / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"checkpoint {checkpoint} has no {', '.join(missing)}; make one with python -m validation.engine.train"
        )
    config = served_config(json.loads((checkpoint / "config.json").read_text(encoding="utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in COPIED:
        shutil.copyfile(checkpoint / name, folder / name)


def main(arguments: Sequence[str]) -> int:
    """Export as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m validation.sglang_rehearsal.export",
        description="Write the trained checkpoint as SGLang serves it.",
    )
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--checkpoint", type=pathlib.Path, default=CHECKPOINT, help="default: the suite's own")
    given = parser.parse_args(arguments)
    try:
        export(given.folder, given.checkpoint)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(f"{given.folder}: exported from {given.checkpoint}, index_topk {INDEX_TOPK}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
