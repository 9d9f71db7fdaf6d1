"""The client: puts a load on a server and measures it, not itself."""

from validation.client.backend import Answer, Backend, Prompt, Sampling
from validation.client.load import Job, LoadReport, remaining, run_load
from validation.client.redaction import Secret
from validation.client.workers import ClientError

__all__ = [
    "Answer",
    "Backend",
    "ClientError",
    "Job",
    "LoadReport",
    "Prompt",
    "Sampling",
    "Secret",
    "remaining",
    "run_load",
]
