"""The promise behind every comparison: the same text whatever else is served, another where something is broken."""

from __future__ import annotations

import dataclasses
import gzip
import json
import pathlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from engine_tools import PAGES, Session, prompts_of, serving_model, word_problems

from validation.engine.engine import Update
from validation.engine.profiling import Profile
from validation.engine.sampling import BadRequestError, SamplingParams
from validation.engine.serving import PLANTS

PARAMS = SamplingParams(max_new_tokens=96)
DRAWN = word_problems(8)
PROMPTS = prompts_of(DRAWN)


def said(updates: Sequence[Update]) -> list[tuple[str, tuple[int, ...], tuple[float, ...]]]:
    """Texts, tokens and log-probabilities: equal ones are equal to the bit."""
    return [(u.text, tuple(u.output_ids), tuple(u.logprobs or ())) for u in updates]


@pytest.fixture(scope="module")
def reference() -> list[Update]:
    with Session(serving_model(), concurrency=16) as session:
        return session.say(PROMPTS, PARAMS)


def test_it_solves_word_problems(reference: list[Update]) -> None:
    right = sum(update.text == problem.completion for update, problem in zip(reference, DRAWN, strict=True))
    assert right >= 6
    assert all(u.finish_reason == {"type": "stop", "matched": 0} for u in reference)


@pytest.mark.parametrize("concurrency", [1, 5])
def test_the_batch_does_not_matter(reference: list[Update], concurrency: int) -> None:
    with Session(serving_model(), concurrency) as session:
        assert said(session.say(PROMPTS[:5], PARAMS)) == said(reference[:5])


def test_a_long_neighbour_does_not_matter(reference: list[Update]) -> None:
    neighbour = np.random.default_rng(0).integers(2, 768, 400).tolist()
    with Session(serving_model()) as session:
        session.submit("100", neighbour, SamplingParams(max_new_tokens=100, ignore_eos=True))
        for number, prompt in enumerate(PROMPTS[:6]):
            session.submit(str(number), prompt, PARAMS)
        updates = sorted((session.updates.get(timeout=120) for _ in range(7)), key=lambda u: int(u.request_id))
    assert said(updates[:6]) == said(reference[:6])
    assert len(updates[6].output_ids) == 100


def test_the_prefix_cache_does_not_matter() -> None:
    prompt = PROMPTS[0] * 4
    with Session(serving_model()) as session:
        first = session.say([prompt], PARAMS)
        again = session.say([prompt, [*prompt[:150], 7, 8]], PARAMS)
        assert session.engine.flush_cache()
        fresh = session.say([prompt, [*prompt[:150], 7, 8]], PARAMS)
    assert [u.cached_tokens for u in (*first, *again, *fresh)] == [0, (len(prompt) - 1) // 64 * 64, 128, 0, 0]
    assert said(first) == said(again[:1]) == said(fresh[:1])
    assert said(again) == said(fresh)


def test_a_wrong_page_in_the_prefix_cache_would_show() -> None:
    prompt = PROMPTS[0] * 4
    model = serving_model()
    with Session(model) as session:
        first = session.say([prompt], PARAMS)
        for cache in model.kv_caches:
            cache.zero_()
        assert said(session.say([prompt], PARAMS)) != said(first)


def test_cat_and_skip_say_the_same(reference: list[Update]) -> None:
    with Session(serving_model(query_path="cat")) as session:
        assert said(session.say(PROMPTS, PARAMS)) == said(reference)


@pytest.mark.parametrize("topk", [32, 48])
def test_a_top_k_smaller_than_the_context_keeps_the_answers(reference: list[Update], topk: int) -> None:
    with Session(serving_model(index_topk=topk)) as session:
        updates = session.say(PROMPTS, PARAMS)
    assert min(u.prompt_tokens + len(u.output_ids) for u in updates) > topk
    same = sum(mine.text == other.text for mine, other in zip(updates, reference, strict=True))
    assert same >= 7
    assert said(updates) != said(reference), "the log-probabilities must show that less was read"


@pytest.mark.parametrize("plant", PLANTS)
def test_each_planted_defect_changes_texts(reference: list[Update], plant: str) -> None:
    with Session(serving_model(plant=plant)) as session:
        updates = session.say(PROMPTS, dataclasses.replace(PARAMS, max_new_tokens=40))
    changed = sum(mine.text != other.text for mine, other in zip(updates, reference, strict=True))
    assert changed >= 7


def test_requests_wait_for_room_in_the_pool(reference: list[Update]) -> None:
    long = SamplingParams(max_new_tokens=PAGES * 64 // 2 - 100, stop=("\n",))
    with Session(serving_model()) as session:
        updates = session.say(PROMPTS[:5], long)
        assert session.engine.counts() == {"running": 0, "waiting": 0, "available_pages": PAGES}
    assert [u.text for u in updates] == [r.text.split("\n")[0] for r in reference[:5]]


def test_an_aborted_request_frees_its_pages() -> None:
    with Session(serving_model()) as session:
        session.submit("1", PROMPTS[0], SamplingParams(max_new_tokens=4000, ignore_eos=True), stream=True)
        session.updates.get(timeout=60)
        session.engine.abort("1")
        session.engine.abort("unknown")
        assert session.engine.flush_cache()
        assert session.engine.counts() == {"running": 0, "waiting": 0, "available_pages": PAGES}


def test_a_seed_decides_sampled_text() -> None:
    warm = [SamplingParams(max_new_tokens=24, temperature=4.0, seed=seed, ignore_eos=True) for seed in (1, 1, 2)]
    with Session(serving_model()) as session:
        texts = [session.say([PROMPTS[0]], params)[0].text for params in warm]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("prompt", "limit", "sentence"),
    [([], 1, "empty"), ([768], 1, "input id 768"), ([-1], 1, "input id -1"), ([5] * 4000, 97, "4097 tokens")],
    ids=["empty", "beyond", "negative", "long"],
)
def test_prompts_that_can_never_be_served_are_refused(prompt: list[int], limit: int, sentence: str) -> None:
    with Session(serving_model()) as session, pytest.raises(BadRequestError, match=sentence):
        session.engine.check(prompt, SamplingParams(max_new_tokens=limit))


def test_a_profile_records_as_many_turns_as_asked_for(tmp_path: pathlib.Path) -> None:
    with Session(serving_model()) as session:
        session.engine.start_profile(Profile.from_json({"output_dir": str(tmp_path), "num_steps": 3}))
        with pytest.raises(BadRequestError, match="running already"):
            session.engine.start_profile(Profile(tmp_path))
        session.say(PROMPTS[:1], dataclasses.replace(PARAMS, max_new_tokens=6))
        with pytest.raises(BadRequestError, match="no profile"):
            session.engine.stop_profile()
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("-TP-0.trace.json.gz")
    names = [e.get("name") for e in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]]
    steps = [n for n in names if n and n.startswith(("prefill", "decode bs="))]
    assert steps[:3] == ["prefill", "decode bs=1", "decode bs=1"]
    assert "aten::cat" in names


def test_equal_logits_go_to_the_lowest_id() -> None:
    model = serving_model()
    model._head = torch.zeros_like(model._head)
    with Session(model) as session:
        assert session.say([[5, 6]], SamplingParams(max_new_tokens=3, ignore_eos=True))[0].output_ids == (0, 0, 0)


def test_a_failure_in_the_thread_is_told_to_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(serving_model())

    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("planted")

    monkeypatch.setattr(session.engine.model, "forward", broken)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    update = session.say([[5, 6]], PARAMS)[0]
    assert update.finish_reason is not None
    assert update.finish_reason["type"] == "abort"
    session.engine.stop()
    assert "planted" in (session.engine.failure or "")
