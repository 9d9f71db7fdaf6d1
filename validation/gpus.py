"""Which GPUs there are, found without importing torch, and which one an xdist worker takes."""

from __future__ import annotations

import functools
import os
import pathlib

VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_KFD = pathlib.Path("/sys/class/kfd/kfd/topology/nodes")


@functools.cache
def count() -> int:
    """How many GPUs the drivers show: NVIDIA's /proc entries, else AMD's compute nodes."""
    nvidia = pathlib.Path("/proc/driver/nvidia/gpus")
    if nvidia.is_dir():
        return len(list(nvidia.iterdir()))
    devices = [path for path in pathlib.Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()]
    if devices:
        return len(devices)
    # a CPU is a node of the topology too, with gpu_id 0
    ids = [path.read_text().strip() for path in _KFD.glob("*/gpu_id")]
    return sum(gpu_id not in ("", "0") for gpu_id in ids)


def visible() -> list[str]:
    """The device names that a child may use: what the environment already restricts to, else all."""
    for name in VISIBLE:
        if os.environ.get(name):
            return [part.strip() for part in os.environ[name].split(",") if part.strip()]
    return [str(index) for index in range(count())]


def choose_for_worker(worker: str) -> None:
    """Restrict this process to one GPU, in turn by worker number; must run before torch is imported."""
    names = visible()
    if not names:
        return
    mine = names[int(worker.removeprefix("gw") or 0) % len(names)]
    amd = _KFD.is_dir() and not pathlib.Path("/proc/driver/nvidia").is_dir()
    # with both HIP_ and ROCR_ set the second indexes into the first: one is enough, and HIP_ is what torch reads
    os.environ["HIP_VISIBLE_DEVICES" if amd else "CUDA_VISIBLE_DEVICES"] = mine
