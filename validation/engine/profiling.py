"""A Chrome trace of some turns of the engine, with the parameters of SGLang's ``/start_profile``."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from validation.engine.sampling import BadRequestError

_ACTIVITIES = {"CPU": torch.profiler.ProfilerActivity.CPU, "GPU": torch.profiler.ProfilerActivity.CUDA}


@dataclasses.dataclass
class Profile:
    """One recording; all its methods run in the engine's thread, because the profiler sees only its own."""

    output_dir: pathlib.Path
    num_steps: int | None = None
    activities: tuple[str, ...] = ("CPU", "GPU")
    record_shapes: bool = False
    with_stack: bool = False
    prefix: str = ""
    by_stage: bool = False
    """Record decode alone (SGLang writes a file a stage; nobody here asks for prefill's)."""
    steps: int = 0

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Profile:
        """The recording that a request body asks for; keys of SGLang's that do not matter here are ignored.

        Raises:
            BadRequestError: a value is of another type.
        """
        directory = data.get("output_dir") or "/tmp"
        steps = data.get("num_steps")
        activities = data.get("activities") or ["CPU", "GPU"]
        if not isinstance(directory, str):
            raise BadRequestError(f"output_dir {directory!r} was given; expected a path")
        if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
            raise BadRequestError(f"num_steps {steps!r} was given; expected an integer of at least 1")
        if not isinstance(activities, list) or not set(activities) <= set(_ACTIVITIES):
            raise BadRequestError(f"activities {activities!r} was given; expected a list of {', '.join(_ACTIVITIES)}")
        return Profile(
            output_dir=pathlib.Path(directory),
            num_steps=steps,
            activities=tuple(activities),
            record_shapes=bool(data.get("record_shapes")),
            with_stack=bool(data.get("with_stack")),
            prefix=str(data.get("profile_prefix") or ""),
            by_stage=bool(data.get("profile_by_stage")),
        )

    @property
    def finished(self) -> bool:
        """Whether as many steps as were asked for have been recorded."""
        return self.num_steps is not None and self.steps >= self.num_steps

    def start(self) -> None:
        """Begin to record."""
        available = torch.profiler.supported_activities()  # type: ignore[no-untyped-call]
        wanted = [_ACTIVITIES[name] for name in self.activities if _ACTIVITIES[name] in available]
        self._profiler = torch.profiler.profile(
            activities=wanted, record_shapes=self.record_shapes, with_stack=self.with_stack
        )
        self._profiler.start()

    @contextlib.contextmanager
    def step(self, label: str) -> Iterator[None]:
        """Record one turn under ``label``."""
        with torch.profiler.record_function(label):
            yield
        self.steps += 1

    def stop(self) -> str:
        """Write the trace, gzipped, and return its path."""
        self._profiler.stop()
        self.output_dir.mkdir(parents=True, exist_ok=True)
        stem = f"{self.prefix}-{time.time_ns() / 1e9:.6f}" if self.prefix else f"{time.time_ns() / 1e9:.6f}"
        stage = "-DECODE" if self.by_stage else ""
        path = self.output_dir / f"{stem}-TP-0{stage}.trace.json.gz"
        self._profiler.export_chrome_trace(str(path))
        return str(path)
