"""``python -m validation.llama_cpp --port 30000``: serve the checkpoint with llama.cpp until SIGTERM.

Needs what the tox environment ``llamacpp`` installs: ``xllamacpp`` (llama.cpp's server as a library) and ``gguf``.
"""

from __future__ import annotations

import argparse
import pathlib
import signal
import sys
import tempfile
from collections.abc import Sequence

from validation.engine.__main__ import CHECKPOINT
from validation.llama_cpp.export import export

CONTEXT = 512
"""Tokens a request may hold: a word problem and its answer are under 250."""


def main(arguments: Sequence[str]) -> None:
    """Export, load and serve."""
    parser = argparse.ArgumentParser(prog="python -m validation.llama_cpp", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--checkpoint", type=pathlib.Path, default=CHECKPOINT)
    parser.add_argument("--index-topk", type=int, help="positions attention reads; the checkpoint's own by default")
    parser.add_argument("--slots", type=int, default=1, help="requests at a time")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    try:
        import xllamacpp
    except ImportError:
        parser.error("xllamacpp is not installed; install it with: pip install xllamacpp gguf")
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before the library starts its threads, which inherit it
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "checkpoint.gguf"
        export(options.checkpoint, path, options.index_topk)
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.model_alias = {options.checkpoint.name}
        params.hostnames, params.port = ["127.0.0.1"], options.port
        params.n_parallel, params.n_ctx = options.slots, CONTEXT * options.slots
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
        params.cache_prompt = False
        # the fp32 path of attention, which keeps keys as the engine does; fp16 would round what bfloat16 holds
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        server = xllamacpp.Server(params)
        print(f"ready: {server.listening_address}", flush=True)
        signal.sigwait(signals)


if __name__ == "__main__":
    main(sys.argv[1:])
