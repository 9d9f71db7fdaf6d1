"""Makes the embedded engine's checkpoint: ``python -m validation.engine.train --out DIR --minutes 3.5 --device cuda``.

Two stages share one clock. First attention is dense, and the indexer learns, by KL divergence, the distribution that
the heads' mean attention has. Then attention reads only the indexer's best k positions, k drawn anew each step, so that
serving with any top-k of that range keeps the accuracy. Weights are judged as they are kept: rounded to bfloat16.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from validation.engine import corpus, model, tokens
from validation.engine.muon import Muon

CONFIG = model.ModelConfig()
SPARSE_TOPK = (24, 64)
"""Range of k in the sparse stage."""
EVALUATED_TOPK = (64, 32)
DENSE_SHARE = 0.6
"""Share of the time after which the sparse stage starts at the latest."""
HEAD_START = 0.03
"""With a target: the sparse stage starts as soon as dense accuracy is this close to it."""
WARMUP_STEPS = 60
FLOOR = 0.02
"""Of the learning rate at the end."""
BUCKETS = (88, 104, corpus.LONGEST)
"""Examples of similar length share a batch."""
CURVE_DRAWS, FINAL_DRAWS = 1024, 1319
"""GSM8K's test set has 1319 questions."""
CURVE_SEED, FINAL_SEED = 1, 2


@dataclasses.dataclass(frozen=True)
class Settings:
    """What was asked for on the command line."""

    out: pathlib.Path
    minutes: float
    steps: int | None
    device: str
    seed: int
    examples: int
    batch: int
    muon_lr: float
    adamw_lr: float
    target_accuracy: float | None
    evaluations: int
    curve_draws: int
    final_draws: int
    workers: int


@dataclasses.dataclass(frozen=True)
class Point:
    """One row of ``training_curve.csv``."""

    step: int
    seconds: float
    stage: str
    loss: float
    indexer_loss: float
    accuracy_dense: float
    accuracy_topk64: float
    accuracy_topk32: float


class Batches:
    """Random batches of similar length, from arrays that live on the device."""

    def __init__(self, data: corpus.Corpus, batch: int, device: str, seed: int) -> None:
        self.batch = batch
        self.rng = np.random.default_rng(seed)
        self.buckets: list[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]] = []
        low = 0
        for high in BUCKETS:
            chosen = np.flatnonzero((data.lengths > low) & (data.lengths <= high))
            low = high
            if len(chosen):
                arrays = (data.ids[chosen].astype(np.int16), data.prompt_lengths[chosen], data.lengths[chosen])
                ids, prompts, lengths = (torch.from_numpy(a).to(device) for a in arrays)
                self.buckets.append((high, ids, prompts, lengths))
        sizes = np.array([len(b[1]) for b in self.buckets], dtype=np.float64)
        self.shares = sizes / sizes.sum()

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (B, S) and the weight of each position's *next* token in the loss, (B, S - 1)."""
        width, ids, prompts, lengths = self.buckets[self.rng.choice(len(self.buckets), p=self.shares)]
        rows = torch.from_numpy(self.rng.integers(0, len(ids), self.batch)).to(ids.device)
        following = torch.arange(1, width, device=ids.device)
        answer = (following >= prompts[rows, None]).float()
        weight = corpus.QUESTION_WEIGHT + (1 - corpus.QUESTION_WEIGHT) * answer
        return ids[rows, :width].long(), weight * (following < lengths[rows, None])


@torch.inference_mode()
def exact_accuracy(net: model.GlmMoeDsa, data: corpus.Corpus, topk: int | None, device: str, batch: int = 256) -> float:
    """Share of examples whose greedy continuation is the reference solution, token for token.

    One teacher-forced pass tells: greedy decoding reproduces the reference exactly where every argmax along it agrees.
    """
    right = 0
    for start in range(0, len(data), batch):
        rows = slice(start, start + batch)
        width = -(-int(data.lengths[rows].max()) // 8) * 8
        ids = torch.from_numpy(data.ids[rows, :width].astype(np.int64)).to(device)
        predicted = net(ids, topk)[0][:, :-1].argmax(-1)
        following = torch.arange(1, width, device=device)
        prompts, lengths = (torch.from_numpy(a[rows, None]).to(device) for a in (data.prompt_lengths, data.lengths))
        judged = (following >= prompts) & (following < lengths)
        right += int(((predicted == ids[:, 1:]) | ~judged).all(dim=1).sum())
    return right / len(data)


def rounded_copy(net: model.GlmMoeDsa, into: model.GlmMoeDsa) -> model.GlmMoeDsa:
    """``into`` with the weights of ``net`` as the checkpoint keeps them."""
    with torch.no_grad():
        for source, target in zip(net.parameters(), into.parameters(), strict=True):
            target.copy_(source.to(torch.bfloat16))
    return into


def train(settings: Settings, started: float) -> None:
    """Train, and leave the best checkpoint, ``training_curve.csv`` and ``provenance.json`` in ``settings.out``."""
    device = settings.device
    total = settings.minutes * 60 if settings.steps is None else settings.steps

    def elapsed() -> float:
        return time.monotonic() - started

    config = CONFIG
    tokenizer = tokens.train_tokenizer(config.vocab_size, settings.seed).to_str(pretty=True)
    ends = {"end_id": model.END_ID, "pad_id": model.PAD_ID}
    data = corpus.draw_in_parallel(tokenizer, settings.seed, settings.examples, settings.workers, **ends)
    curve = corpus.draw_corpus(tokenizer, "eval", CURVE_SEED, settings.curve_draws, **ends)
    batches = Batches(data, settings.batch, device, settings.seed)
    net, kept = (model.GlmMoeDsa(config).to(device) for _ in range(2))
    model.initialise(net, settings.seed)
    count = sum(p.numel() for p in net.parameters())
    print(
        f"{elapsed():6.1f} s  {len(data)} examples, {count / 1e6:.2f} M parameters, torch {torch.__version__}",
        flush=True,
    )

    hidden = {
        n: p for n, p in net.named_parameters() if p.dim() == 2 and "embed_tokens" not in n and "lm_head" not in n
    }
    muon = Muon(hidden.values())
    rest = [p for n, p in net.named_parameters() if n not in hidden]
    adamw = torch.optim.AdamW(rest, lr=settings.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=device == "cuda")
    points: list[Point] = []
    topk_rng = np.random.default_rng(settings.seed + 1)
    sparse_since: float | None = None
    next_evaluation = total / settings.evaluations
    best, step, running = -1.0, 0, torch.zeros(2, device=device)

    def now() -> float:
        """The clock of both stages: seconds, or steps where those were asked for."""
        return elapsed() if settings.steps is None else step

    while now() < total:
        if sparse_since is None and now() > DENSE_SHARE * total:
            sparse_since = now()
        decay = 1.0 if sparse_since is None else max(FLOOR, (total - now()) / (total - sparse_since))
        rate = min(1.0, (step + 1) / WARMUP_STEPS) * decay
        muon.lr = settings.muon_lr * rate
        adamw.param_groups[0]["lr"] = settings.adamw_lr * rate
        topk = None if sparse_since is None else int(topk_rng.integers(SPARSE_TOPK[0], SPARSE_TOPK[1] + 1))
        ids, weight = batches.draw()
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            logits, indexer_loss = net(ids, topk, max(1, settings.batch // 8))
        entropy = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        loss = (entropy * weight.flatten()).sum() / weight.sum()
        net.zero_grad(set_to_none=True)
        (loss + indexer_loss).backward()
        muon.step()
        adamw.step()
        step += 1
        running = torch.stack([loss.detach(), indexer_loss.detach()]).lerp(running, 0.95 if step > 1 else 0.0)

        if now() >= next_evaluation:
            next_evaluation = now() + total / settings.evaluations
            rounded_copy(net, kept)
            dense, topk64, topk32 = (exact_accuracy(kept, curve, k, device) for k in (None, *EVALUATED_TOPK))
            stage = "dense" if sparse_since is None else "sparse"
            smooth = running.tolist()
            points.append(Point(step, round(elapsed(), 1), stage, smooth[0], smooth[1], dense, topk64, topk32))
            print(
                f"{elapsed():6.1f} s  step {step}  {stage}  loss {smooth[0]:.4f}  indexer {smooth[1]:.4f}  "
                f"accuracy dense {dense:.3f}  topk64 {topk64:.3f}  topk32 {topk32:.3f}",
                flush=True,
            )
            if (score := _score(topk64, topk32, settings.target_accuracy)) >= best:
                best = score
                _save(settings, config, kept, tokenizer, points, count, elapsed())
            target = settings.target_accuracy
            if target is not None:
                if sparse_since is None and dense >= target - HEAD_START:
                    sparse_since = now()
                elif sparse_since is not None and min(topk64, topk32) >= target:
                    break

    weights = model.load_checkpoint(settings.out)[1] if best >= 0 else {}
    if not weights:
        _save(settings, config, rounded_copy(net, kept), tokenizer, points, count, elapsed())
    else:
        kept.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    final = corpus.draw_corpus(tokenizer, "eval", FINAL_SEED, settings.final_draws, **ends)
    scores = {str(k or "dense"): exact_accuracy(kept, final, k, device) for k in (None, *EVALUATED_TOPK)}
    print(f"{elapsed():6.1f} s  final, {len(final)} fresh draws, exact solution: {json.dumps(scores)}", flush=True)
    _save(settings, config, kept, tokenizer, points, count, elapsed(), scores)


def _score(topk64: float, topk32: float, target: float | None) -> float:
    """How much a checkpoint is wanted: the better the higher, or, with a target, the closer to it."""
    accuracy = (topk64 + topk32) / 2
    return accuracy if target is None else 1 - abs(accuracy - target)


def _save(
    settings: Settings,
    config: model.ModelConfig,
    net: model.GlmMoeDsa,
    tokenizer: str,
    points: Sequence[Point],
    count: int,
    seconds: float,
    final: dict[str, float] | None = None,
) -> None:
    model.save_checkpoint(settings.out, config, net.state_dict(), tokenizer)
    names = [field.name for field in dataclasses.fields(Point)]
    with open(settings.out / "training_curve.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for point in points:
            row = dataclasses.astuple(point)
            writer.writerow([round(v, 4) if isinstance(v, float) else v for v in row])
    device = torch.cuda.get_device_name() if settings.device == "cuda" else platform.processor() or "cpu"
    provenance = {
        "what": "word problems of our own making (validation/engine/problems.py), in GSM8K's schema",
        "command": "python -m validation.engine.train",
        "settings": {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("out", "workers")},
        "parameters": count,
        "device": device,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seconds": round(seconds, 1),
        "finished": final is not None,
        "final_exact_accuracy": {"draws": settings.final_draws, "split": "eval", "seed": FINAL_SEED, **(final or {})},
    }
    (settings.out / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")


def parse(arguments: Sequence[str]) -> Settings:
    """The settings on a command line."""
    parser = argparse.ArgumentParser(
        prog="python -m validation.engine.train", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--out", type=pathlib.Path, required=True, help="checkpoint folder to write")
    add("--minutes", type=float, default=3.5, help="wall clock of everything but the final evaluation")
    add("--steps", type=int, help="measure both stages in steps instead: the same weights on the same machine")
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=0)
    add("--examples", type=int, default=2_000_000, help="training draws")
    add("--batch", type=int, default=512, help="sequences a step")
    add("--muon-lr", type=float, default=4e-3)
    add("--adamw-lr", type=float, default=3e-3)
    add(
        "--target-accuracy",
        type=float,
        help="stop at this accuracy of the sparse stage, and keep the closest checkpoint",
    )
    add("--evaluations", type=int, default=50, help="points of the curve")
    add("--curve-draws", type=int, default=CURVE_DRAWS)
    add("--final-draws", type=int, default=FINAL_DRAWS)
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw the training set")
    return Settings(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str]) -> None:
    """Train as the command line says."""
    started = time.monotonic()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    train(parse(arguments), started)


if __name__ == "__main__":
    main(sys.argv[1:])
