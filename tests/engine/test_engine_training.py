"""The architecture and its training: serving computes the same function, and a short run leaves a checkpoint."""

from __future__ import annotations

import csv
import json
import pathlib

import numpy as np
import pytest
import torch
from engine_tools import CHECKPOINT, random_weights, serving_model, torch_provider

from validation.engine import corpus, tokens, train
from validation.engine.model import GlmMoeDsa, ModelConfig, load_checkpoint, save_checkpoint
from validation.engine.muon import Muon, orthogonalise
from validation.engine.serving import Batch, ServingModel, decode_buckets

TINY = ModelConfig(num_hidden_layers=2, max_position_embeddings=256)


def served_logits(model: ServingModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits of each position of ids (S,): whole pages by prefill, the rest one decode step each."""
    pages = torch.tensor([[5, 2, 7]])
    rows = []
    whole = len(ids) // 64 * 64
    for start in range(0, whole, 64):
        at = torch.arange(start, start + 64)
        batch = Batch(ids[at], at, pages[0][at // 64] * 64 + at % 64, pages[:, : start // 64 + 1], decode=False)
        rows.append(model.forward(batch, torch.arange(64)))
    for position in range(whole, len(ids)):
        first = torch.tensor([1, 0, 0, 0])
        slot = int(pages[0, position // 64]) * 64 + position % 64
        batch = Batch(ids[position] * first, position * first, slot * first - (1 - first), pages * first[:, None], True)
        rows.append(model.forward(batch, torch.tensor([0])))
    return torch.cat(rows)


@pytest.mark.parametrize("topk", [32, 64, 192])
def test_serving_computes_what_training_computes(topk: int) -> None:
    reference, weights = random_weights(TINY)
    provider = torch_provider()
    assert provider.producer is not None
    assert provider.consumer is not None
    model = ServingModel(
        TINY,
        weights,
        pages=8,
        index_topk=topk,
        query_path="skip",
        producer=provider.producer,
        consumer=provider.consumer,
    )
    ids = torch.randint(0, TINY.vocab_size, (140,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = reference(ids[None], topk)[0][0]
    # bf16 in the query and the cache: some hundredths on logits of about 1, and rare changes of choice at the edge.
    difference = (served_logits(model, ids) - expected).abs().amax(dim=-1)
    assert float(difference.median()) < 0.02
    assert float(difference.max()) < 0.5
    assert float(expected.abs().max()) > 0.5


def test_top_k_as_long_as_the_context_is_dense_attention() -> None:
    model, _ = random_weights(TINY)
    ids = torch.randint(0, TINY.vocab_size, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        dense, covering, sparse = (model(ids, topk)[0] for topk in (None, 40, 10))
    torch.testing.assert_close(dense, covering)
    assert not torch.allclose(dense, sparse, atol=1e-3)
    torch.testing.assert_close(dense[:, :10], sparse[:, :10])


def test_the_indexers_loss_reaches_the_indexer_only() -> None:
    model, _ = random_weights(TINY)
    ids = torch.randint(0, TINY.vocab_size, (2, 24), generator=torch.Generator().manual_seed(2))
    loss = model(ids, None, 2)[1]
    loss.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached == {name for name, _ in model.named_parameters() if ".indexer." in name}
    assert float(loss.detach()) > 0


def test_the_checkpoint_is_a_hugging_face_export_and_loads_back(tmp_path: pathlib.Path) -> None:
    _, weights = random_weights(TINY)
    save_checkpoint(tmp_path, TINY, weights, "{}")
    config, loaded = load_checkpoint(tmp_path)
    assert config == TINY
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["GlmMoeDsaForCausalLM"]
    assert written["first_k_dense_replace"] == written["num_hidden_layers"]
    assert written["indexer_rope_interleave"] is True


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"first_k_dense_replace": 1}, "expert layers"),
        ({"kv_lora_rank": None}, "lacks kv_lora_rank"),
        ({"rope_parameters": {}}, "rope_theta"),
    ],
    ids=["architecture", "experts", "key", "rope"],
)
def test_another_config_is_refused(change: dict[str, object], sentence: str) -> None:
    data = {key: value for key, value in {**TINY.to_json(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=sentence):
        ModelConfig.from_json(data)


def test_no_checkpoint_is_one_sentence(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; make one with python -m"):
        load_checkpoint(tmp_path)


def test_the_kept_checkpoint_is_small_complete_and_documented() -> None:
    config, weights = load_checkpoint(CHECKPOINT)
    assert set(weights) == set(GlmMoeDsa(config).state_dict())
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert (CHECKPOINT / "model.safetensors").stat().st_size < 16e6
    assert (config.kv_lora_rank, config.qk_rope_head_dim, config.index_head_dim) == (512, 64, 128)
    with open(CHECKPOINT / "training_curve.csv", newline="", encoding="utf-8") as file:
        curve = list(csv.DictReader(file))
    assert float(curve[-1]["loss"]) < 0.1 < float(curve[0]["loss"])
    final = json.loads((CHECKPOINT / "provenance.json").read_text())["final_exact_accuracy"]
    assert all(0.85 <= final[kind] <= 0.97 for kind in ("dense", "64", "32"))


def test_a_short_run_learns_and_leaves_a_whole_checkpoint(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "TRAINING_TEXTS", 300)
    monkeypatch.setattr(train, "CONFIG", ModelConfig(num_hidden_layers=1))
    words = "--steps 6 --device cpu --examples 8 --batch 2 --evaluations 2 --curve-draws 2 --final-draws 2 --workers 1"
    train.main([*words.split(), "--out", str(tmp_path)])
    config, weights = load_checkpoint(tmp_path)
    assert config.num_hidden_layers == 1
    assert set(weights) == set(GlmMoeDsa(config).state_dict())
    with open(tmp_path / "training_curve.csv", newline="", encoding="utf-8") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0]
    assert json.loads((tmp_path / "provenance.json").read_text())["finished"] is True
    assert "final, 2 fresh draws" in capsys.readouterr().out


def test_training_examples_are_the_same_for_any_number_of_workers() -> None:
    tokenizer = (CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8")
    drawn = corpus.draw_in_parallel(tokenizer, 3, 50, 1, end_id=0, pad_id=1)
    again = corpus.draw_corpus(tokenizer, "train", 3_000_000, 50, end_id=0, pad_id=1)
    np.testing.assert_array_equal(drawn.ids, again.ids)
    ends = drawn.ids[np.arange(50), drawn.lengths - 1]
    assert not ends.any()
    assert bool((drawn.prompt_lengths < drawn.lengths).all())


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16)], ids=["wide", "tall"])
def test_muon_orthogonalises(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalise(matrices))
    assert float(singular.min()) > 0.5
    assert float(singular.max()) < 1.3


def test_muon_descends() -> None:
    target = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    weights = [torch.nn.Parameter(torch.zeros(8, 12)) for _ in range(2)]
    muon = Muon(weights, weight_decay=0.0)
    losses = []
    for step in range(60):
        loss = sum(((w - target) ** 2).mean() for w in weights)
        assert isinstance(loss, torch.Tensor)
        for weight in weights:
            weight.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        muon.lr = 0.4 * (1 - step / 60)
        muon.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_decode_batch_sizes_that_change_bits_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = serving_model()
    assert decode_buckets(model, 16)[-1] == 16
    assert decode_buckets(model, 40)[-1] == 48

    def sensitive(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x @ weight.T * (1 + 1e-6 * len(x))

    monkeypatch.setattr("validation.engine.serving.functional.linear", sensitive)
    assert decode_buckets(model, 16) == (16,)
