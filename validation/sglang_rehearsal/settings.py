"""What one rehearsal server is: carried from the launcher to every process of SGLang in one environment variable."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

VARIABLE = "VALIDATION_SGLANG_REHEARSAL"
MARK = "rehearsal on CUDA"
QUERY_PATHS = ("stock", "cat", "skip")
CONCATS = ("sglang", "torch")
PLANTS = ("broken-rope", "stale-q", "off-by-one-slot")


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """One server's settings; see ``__main__`` for what each means.

    Raises:
        ValueError: a value is unknown, or a plant was given for the stock path, which the planted kernel is no part of.
    """

    query_path: str
    concat: str = "sglang"
    plant: str | None = None
    sane_dummy: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("--query-path", self.query_path, QUERY_PATHS),
            ("--concat", self.concat, CONCATS),
            ("--plant", self.plant, (None, *PLANTS)),
        ):
            if value not in known:
                raise ValueError(f"{name} {value} is unknown; expected one of {', '.join(filter(None, known))}")
        if self.plant and self.query_path == "stock":
            raise ValueError(
                f"--plant {self.plant} was given with --query-path stock, which does not run the fused kernel; "
                "expected cat or skip"
            )

    @property
    def label(self) -> str:
        """The server's ``weight_version``, in each of its answers: ``rehearsal on CUDA; query path skip; ...``."""
        parts = [MARK, f"query path {self.query_path}", f"concat {self.concat}"]
        if self.plant:
            parts.append(f"planted {self.plant}")
        if self.sane_dummy:
            parts.append("sane dummy weights")
        return "; ".join(parts)

    def to_environment(self) -> dict[str, str]:
        """The variable that ``from_environment`` reads."""
        return {VARIABLE: json.dumps(dataclasses.asdict(self))}

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> Rehearsal | None:
        """The settings of this process; None outside a rehearsal."""
        value = environment.get(VARIABLE)
        return Rehearsal(**json.loads(value)) if value else None
