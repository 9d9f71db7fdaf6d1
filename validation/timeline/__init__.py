"""A viewer and a written analysis of any number of traces: where the time between their kernels goes."""

from validation.timeline.analysis import to_markdown
from validation.timeline.html import to_timeline
from validation.timeline.model import NamedTrace
from validation.timeline.write import write_timeline

__all__ = ["NamedTrace", "to_markdown", "to_timeline", "write_timeline"]
