"""``python -m validation.engine --port 30000 --query-path skip``: serve the checkpoint until SIGTERM."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import pathlib
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import uvicorn
from tokenizers import Tokenizer

import validation
from validation.engine.engine import Engine
from validation.engine.model import ModelConfig, load_checkpoint
from validation.engine.pool import PAGE_SIZE, PagePool
from validation.engine.server import Frontend, application
from validation.engine.serving import PLANTS, ServingModel, warm_up
from validation.operations import QUERY_PATHS, Consumer, Producer, Provider, providers

CHECKPOINT = pathlib.Path(__file__).resolve().parent / "checkpoint"
SERVED_MODEL_NAME = "word-problems-glm-dsa"
SHUTDOWN_S = 1
"""Open streams get this long after SIGTERM."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m validation.engine", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=30000)
    add("--query-path", choices=sorted(QUERY_PATHS), default="skip", help="how decode hands q_cat to the consumer")
    add("--plant", choices=PLANTS, help="a defect to put in, as a control of what the suite would see")
    add("--index-topk", type=int, help="slots attention reads; the checkpoint's own by default")
    add("--max-running-requests", type=int, default=16)
    add("--max-total-tokens", type=int, default=32768, help="slots of the KV pool")
    add("--checkpoint", type=pathlib.Path, default=CHECKPOINT)
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--producer", help="provider of the fused kernel; AITER on a GPU that has it, else torch")
    add("--consumer", help="provider of sparse MLA; TileLang on a GPU that has it, else torch")
    return parser


def choose_provider(
    known: Mapping[str, Provider], role: str, asked: str | None, preferred: str, device: str
) -> Provider:
    """The provider that serves ``role`` (``producer`` or ``consumer``) with bf16 on ``device``.

    Raises:
        ValueError: the one asked for is unknown, missing here, or cannot.
    """

    def obstacle(provider: Provider) -> str:
        implementation: Producer | Consumer | None = getattr(provider, role)
        if implementation is None:
            return f"is no {role}"
        if device not in provider.devices:
            return f"does not run on {device}"
        return provider.missing or implementation.unsupported(torch.bfloat16, torch.bfloat16)

    if asked is not None and asked not in known:
        raise ValueError(f"--{role} {asked} is unknown; expected one of {', '.join(sorted(known))}")
    if asked is not None:
        problem = obstacle(known[asked])
        if problem:
            raise ValueError(f"--{role} {asked} cannot serve: {problem}")
        return known[asked]
    if device == "cuda" and preferred in known and not obstacle(known[preferred]):
        return known[preferred]
    return known["torch"]


def build(options: argparse.Namespace) -> tuple[Frontend, Engine]:
    """Everything that a server needs, ready to run.

    Raises:
        FileNotFoundError: the checkpoint is none.
        ValueError: an option does not fit it or this machine.
    """
    for name, least in (("index_topk", 1), ("max_running_requests", 1), ("max_total_tokens", PAGE_SIZE)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} {value} was given; expected at least {least}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda was given, but torch sees no GPU; expected cpu")
    torch.set_num_threads(1)
    config, weights = load_checkpoint(options.checkpoint)
    tokenizer = Tokenizer.from_file(str(options.checkpoint / "tokenizer.json"))
    known = providers()
    producer = choose_provider(known, "producer", options.producer, "aiter", options.device)
    consumer = choose_provider(known, "consumer", options.consumer, "tilelang", options.device)
    if producer.producer is None or consumer.consumer is None:
        raise ValueError("a provider without its role was chosen; see kernels/providers")
    pages = options.max_total_tokens // PAGE_SIZE
    topk = options.index_topk or config.index_topk
    model = ServingModel(
        config,
        weights,
        pages=pages,
        index_topk=topk,
        query_path=options.query_path,
        producer=producer.producer,
        consumer=consumer.consumer,
        plant=options.plant,
        device=torch.device(options.device),
    )
    digest = hashlib.sha256((options.checkpoint / "model.safetensors").read_bytes()).hexdigest()
    model_info = _model_info(options.checkpoint, config, digest)
    server_info = {
        "version": f"validation-engine {validation.__version__}",
        "model_path": model_info["model_path"],
        "served_model_name": SERVED_MODEL_NAME,
        "model_sha256": digest,
        "query_path": options.query_path,
        "plant": options.plant,
        "index_topk": topk,
        "page_size": PAGE_SIZE,
        "max_running_requests": options.max_running_requests,
        "max_total_num_tokens": pages * PAGE_SIZE,
        "kv_cache_dtype": "bfloat16",
        "device": options.device,
        "torch": torch.__version__,
        "providers": {
            "producer": {"name": producer.name, "version": producer.version},
            "consumer": {"name": consumer.name, "version": consumer.version},
        },
    }
    frontend = Frontend(tokenizer, model_info, server_info)
    engine = Engine(model, PagePool(pages), options.max_running_requests, frontend.deliver)
    frontend.server_info["decode_buckets"] = engine.buckets
    warm_up(model, engine.buckets)
    return frontend, engine


def _model_info(checkpoint: pathlib.Path, config: ModelConfig, digest: str) -> dict[str, Any]:
    own = checkpoint.resolve() == CHECKPOINT
    path = "validation/engine/checkpoint" if own else str(checkpoint)
    return {
        "model_path": path,
        "tokenizer_path": path,
        "served_model_name": SERVED_MODEL_NAME,
        "is_generation": True,
        "weight_version": "default",
        "model_sha256": digest,
        "model_type": "glm_moe_dsa",
        "architectures": ["GlmMoeDsaForCausalLM"],
        "context_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
    }


class _Server(uvicorn.Server):
    """Says when it is ready."""

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        print(f"ready: {self._url}", flush=True)


def main(arguments: Sequence[str]) -> None:
    """Serve until SIGTERM or SIGINT."""
    command = parser()
    options = command.parse_args(arguments)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, options.port))
        except OSError as error:
            command.error(f"--port {options.port} on {options.host} cannot be taken ({error}); expected a free one")
        try:
            frontend, engine = build(options)
        except (FileNotFoundError, ValueError) as error:
            command.error(str(error))
        port = listener.getsockname()[1]
        config = uvicorn.Config(
            application(frontend, engine),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=SHUTDOWN_S,
            timeout_keep_alive=60,
        )
        # uvicorn raises the signal again after its shutdown; an orderly end is no death by signal.
        signal.signal(signal.SIGTERM, lambda *_: None)
        with contextlib.suppress(KeyboardInterrupt):
            _Server(config, f"http://{options.host}:{port}").run(sockets=[listener])


if __name__ == "__main__":
    main(sys.argv[1:])
