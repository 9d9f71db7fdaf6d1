"""Muon for many small matrices: those of one shape are orthogonalised together, in one batched product."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch

_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
"""Newton-Schulz coefficients and count of Jordan et al., "Muon: An optimizer for hidden layers" (2024)."""

_RMS_OF_ADAMW = 0.2
"""Scales an update to AdamW's usual size (Liu et al., "Muon is scalable for LLM training", 2025)."""


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Roughly the nearest semi-orthogonal matrix to each of ``matrices`` (N, rows, columns)."""
    a, b, c = _QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.to(torch.bfloat16) if matrices.is_cuda else matrices
    x = x.mT if tall else x
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: torch.Tensor = x.mT if tall else x
    return result.to(matrices.dtype)


class Muon:
    """Nesterov momentum, orthogonalised; set ``lr`` before each ``step``."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.02):
        ordered = sorted(parameters, key=lambda p: tuple(p.shape))
        self.groups = [list(group) for _, group in itertools.groupby(ordered, key=lambda p: tuple(p.shape))]
        self.buffers = [torch.zeros((len(group), *group[0].shape), device=group[0].device) for group in self.groups]
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.lr = 0.0

    @torch.no_grad()
    def step(self) -> None:
        """One update; a parameter without a gradient counts as one with a zero gradient."""
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            gradient = torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in group])
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalise(gradient.lerp(buffer, self.momentum))
            scale = self.lr * _RMS_OF_ADAMW * max(group[0].shape) ** 0.5
            for parameter, change in zip(group, update.unbind(), strict=True):
                parameter.mul_(1 - self.lr * self.weight_decay).sub_(change, alpha=scale)
