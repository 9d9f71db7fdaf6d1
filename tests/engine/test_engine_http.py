"""The HTTP surface, by a real server in a process of its own on loopback."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from engine_tools import CHECKPOINT, TOKENIZER, random_weights, word_problems

from validation.discovery import ROOT
from validation.engine.__main__ import build, choose_provider, main, parser
from validation.engine.model import ModelConfig, save_checkpoint
from validation.operations import Provider

PROBLEM = word_problems(1)[0]
ENDLESS = {"max_new_tokens": 3000, "ignore_eos": True}


@contextlib.contextmanager
def served(*options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a fresh server, and its process."""
    command = [sys.executable, "-m", "validation.engine", "--port", "0", "--device", "cpu", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("ready: http://"), f"the server said {line!r}"
            yield line.split()[1], process
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served("--query-path", "cat") as (address, _):
        yield address


def post(url: str, path: str, data: Any) -> Any:
    answer = requests.post(url + path, json=data, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(url: str, path: str, data: Any) -> list[Any]:
    """The events of a stream, its end checked."""
    with requests.post(url + path, json={**data, "stream": True}, stream=True, timeout=60) as answer:
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.decode() for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def generate(url: str, **fields: Any) -> Any:
    return post(url, "/generate", {"text": PROBLEM.prompt, **fields})


def test_it_says_what_it_is(url: str) -> None:
    assert requests.get(url + "/health", timeout=10).status_code == 200
    assert requests.get(url + "/health_generate", timeout=10).status_code == 200
    model = requests.get(url + "/get_model_info", timeout=10).json()
    assert model == requests.get(url + "/model_info", timeout=10).json()
    assert model["model_type"] == "glm_moe_dsa"
    assert not pathlib.PurePath(model["model_path"]).is_absolute()
    info = requests.get(url + "/get_server_info", timeout=10).json()
    assert (info["query_path"], info["plant"], info["index_topk"], info["page_size"]) == ("cat", None, 64, 64)
    assert set(info["providers"]) == {"producer", "consumer"}
    assert info["providers"]["producer"]["name"] == "torch"
    assert info["internal_states"][0]["running"] == 0
    (entry,) = requests.get(url + "/v1/models", timeout=10).json()["data"]
    assert entry["id"] == model["served_model_name"]


def test_generate_answers(url: str) -> None:
    answer = generate(url, return_logprob=True)
    assert answer["text"] == PROBLEM.completion
    meta = answer["meta_info"]
    assert meta["prompt_tokens"] == len(TOKENIZER.encode(PROBLEM.prompt).ids)
    assert meta["completion_tokens"] == len(answer["output_ids"])
    assert meta["finish_reason"] == {"type": "stop", "matched": 0}
    assert [token for _, token, _ in meta["output_token_logprobs"]] == answer["output_ids"]
    assert all(logprob <= 0 for logprob, _, _ in meta["output_token_logprobs"])


def test_input_ids_lists_and_ids_of_ones_own(url: str) -> None:
    ids = TOKENIZER.encode(PROBLEM.prompt).ids
    single = post(url, "/generate", {"input_ids": ids, "rid": "mine"})
    assert single["meta_info"]["id"] == "mine"
    assert single["text"] == PROBLEM.completion
    several = post(url, "/generate", {"input_ids": [ids, ids[:9]], "sampling_params": {"max_new_tokens": 2}})
    assert [a["index"] for a in several] == [0, 1]
    assert [a["meta_info"]["prompt_tokens"] for a in several] == [len(ids), 9]
    texts = post(url, "/generate", {"text": [PROBLEM.prompt] * 2, "sampling_params": [{"stop": "\n"}, {}]})
    assert texts[0]["text"] == PROBLEM.completion.split("\n")[0]
    assert texts[0]["meta_info"]["finish_reason"] == {"type": "stop", "matched": "\n"}
    assert texts[1]["text"] == PROBLEM.completion


def test_a_stream_is_cumulative_and_counts_every_token(url: str) -> None:
    whole = generate(url)
    chunks = events(url, "/generate", {"text": PROBLEM.prompt})
    assert [c["meta_info"]["completion_tokens"] for c in chunks] == list(range(1, len(chunks) + 1))
    assert all(later["text"].startswith(earlier["text"]) for earlier, later in itertools.pairwise(chunks))
    assert (chunks[-1]["text"], chunks[-1]["output_ids"]) == (whole["text"], whole["output_ids"])
    assert all(c["meta_info"]["finish_reason"] is None for c in chunks[:-1])
    assert chunks[-1]["meta_info"]["finish_reason"] == {"type": "stop", "matched": 0}


def test_a_stream_of_several_prompts_names_each(url: str) -> None:
    chunks = events(url, "/generate", {"text": [PROBLEM.prompt] * 3, "sampling_params": {"max_new_tokens": 4}})
    assert sorted(c["index"] for c in chunks) == [0] * 4 + [1] * 4 + [2] * 4


def test_a_stop_string_never_shows_in_a_stream(url: str) -> None:
    stop = PROBLEM.completion[10:14]
    chunks = events(url, "/generate", {"text": PROBLEM.prompt, "sampling_params": {"stop": stop}})
    assert chunks[-1]["text"] == PROBLEM.completion.partition(stop)[0]
    assert all(chunks[-1]["text"].startswith(c["text"]) for c in chunks)


def test_ignore_eos_goes_on_to_the_limit(url: str) -> None:
    answer = generate(url, sampling_params={"max_new_tokens": 80, "ignore_eos": True})
    assert answer["meta_info"]["completion_tokens"] == 80
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 80}
    assert answer["text"].startswith(PROBLEM.completion)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_cache_counts_and_can_be_flushed(url: str, method: str) -> None:
    prompt = PROBLEM.prompt * 3
    few = {"text": prompt, "sampling_params": {"max_new_tokens": 1}}
    assert requests.request(method, url + "/flush_cache", timeout=10).status_code == 200
    cached = [post(url, "/generate", few)["meta_info"]["cached_tokens"] for _ in range(2)]
    length = len(TOKENIZER.encode(prompt).ids)
    assert cached == [0, (length - 1) // 64 * 64]


def test_completions(url: str) -> None:
    data = {"model": "any", "prompt": PROBLEM.prompt, "max_tokens": 96, "temperature": 0}
    whole = post(url, "/v1/completions", data)
    assert whole["choices"][0]["text"] == PROBLEM.completion
    assert whole["choices"][0]["finish_reason"] == "stop"
    usage = whole["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    chunks = events(url, "/v1/completions", {**data, "stream_options": {"include_usage": True}})
    assert "".join(c["choices"][0]["text"] for c in chunks[:-1]) == PROBLEM.completion
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == usage["completion_tokens"] == len(chunks) - 1
    several = post(url, "/v1/completions", {**data, "prompt": [PROBLEM.prompt, "x"], "max_tokens": 3})
    assert [c["index"] for c in several["choices"]] == [0, 1]
    assert several["choices"][0]["finish_reason"] == "length"


def test_chat_completions(url: str) -> None:
    data = {"model": "any", "messages": [{"role": "user", "content": PROBLEM.question}], "temperature": 0}
    whole = post(url, "/v1/chat/completions", data)
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": PROBLEM.completion}
    chunks = events(url, "/v1/chat/completions", {**data, "stream_options": {"continuous_usage_stats": True}})
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(c["choices"][0]["delta"]["content"] for c in chunks) == PROBLEM.completion
    counts = [c["usage"]["completion_tokens"] for c in chunks[1:]]
    assert counts == list(range(1, len(chunks)))


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("/generate", "{", "no JSON"),
        ("/generate", "[]", "the body is list"),
        ("/generate", "{}", "text and input_ids"),
        ("/generate", '{"text": "a", "input_ids": [1]}', "text and input_ids"),
        ("/generate", '{"text": 5}', "text '5'"),
        ("/generate", '{"input_ids": []}', "input_ids"),
        ("/generate", '{"input_ids": [99999]}', "input id 99999"),
        ("/generate", '{"text": ""}', "prompt is empty"),
        ("/generate", '{"text": "a", "sampling_params": {"max_new_tokens": 9999}}', "expected at most 4096"),
        ("/generate", '{"text": "a", "sampling_params": {"temperatur": 1}}', "'temperatur' is unknown"),
        ("/generate", '{"text": ["a", "b"], "sampling_params": [{}]}', "expected one for each"),
        ("/generate", '{"text": ["a", "b"], "rid": ["x", "x"]}', "all different"),
        ("/generate", '{"text": "a", "stream": "yes"}', "expected true or false"),
        ("/v1/completions", "{}", "prompt is missing"),
        ("/v1/completions", '{"prompt": "a", "logprobs": 3}', "return_logprob"),
        ("/v1/completions", '{"prompt": "a", "echo": true}', "echo"),
        ("/v1/chat/completions", "{}", "messages"),
        ("/v1/chat/completions", '{"messages": [{"role": "tool", "content": "a"}]}', "role 'tool'"),
        ("/v1/chat/completions", '{"messages": [{"role": "assistant", "content": "a"}]}', "not the user's"),
        ("/start_profile", '{"num_steps": 0}', "num_steps 0"),
        ("/stop_profile", "", "no profile is running"),
    ],
)
def test_bad_requests_get_one_sentence(url: str, path: str, body: str, sentence: str) -> None:
    answer = requests.post(url + path, data=body, timeout=10)
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]["message"]


def test_a_profile_is_written(url: str, tmp_path: pathlib.Path) -> None:
    started = requests.post(
        url + "/start_profile", json={"output_dir": str(tmp_path), "activities": ["CPU"]}, timeout=20
    )
    assert started.status_code == 200
    generate(url, sampling_params={"max_new_tokens": 3})
    assert requests.post(url + "/stop_profile", timeout=60).status_code == 200
    assert [path.suffixes[-3:] for path in tmp_path.iterdir()] == [[".trace", ".json", ".gz"]]


def wait_for(url: str, running: int, attempts: int = 3000) -> None:
    """Ask until so many requests are running."""
    for _ in range(attempts):
        if requests.get(url + "/get_server_info", timeout=10).json()["internal_states"][0]["running"] == running:
            return
    pytest.fail(f"the server never had {running} running requests")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_goes_away_ends_its_request(url: str, stream: bool) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    body = json.dumps({"text": PROBLEM.prompt, "stream": stream, "sampling_params": ENDLESS})
    connection.request("POST", "/generate", body)
    wait_for(url, 1)
    refused = requests.post(url + "/flush_cache", timeout=10)
    assert refused.status_code == 400
    assert "requests are running" in refused.json()["error"]["message"]
    connection.close()
    wait_for(url, 0)
    assert requests.post(url + "/flush_cache", timeout=10).status_code == 200


def test_sigterm_ends_it_cleanly_in_the_middle_of_a_stream(tmp_path: pathlib.Path) -> None:
    config = ModelConfig(num_hidden_layers=1, max_position_embeddings=4096)
    tokenizer = (CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8")
    save_checkpoint(tmp_path, config, random_weights(config)[1], tokenizer)
    with served("--checkpoint", str(tmp_path)) as (url, process):
        body = {"text": PROBLEM.prompt, "stream": True, "sampling_params": ENDLESS}
        with requests.post(url + "/generate", json=body, stream=True, timeout=30) as answer:
            assert answer.raw.readline().startswith(b"data: ")
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--checkpoint", "nowhere"], "has no config.json"),
        (["--index-topk", "0"], "--index-topk 0 was given"),
        (["--max-running-requests", "0"], "--max-running-requests 0 was given"),
        (["--max-total-tokens", "63"], "--max-total-tokens 63 was given; expected at least 64"),
        (["--producer", "nobody"], "--producer nobody is unknown; expected one of"),
        (["--query-path", "fast"], "invalid choice: 'fast'"),
        (["--plant", "rust"], "invalid choice: 'rust'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_options_get_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--port", "0", "--device", "cpu", *words])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_provider_that_cannot_serve_is_named() -> None:
    known = {
        "torch": Provider("torch", "1"),
        "away": Provider("away", "", missing="away is not installed: pip install away"),
    }
    with pytest.raises(ValueError, match="--producer away cannot serve: is no producer"):
        choose_provider(known, "producer", "away", "aiter", "cpu")
    assert choose_provider(known, "producer", None, "away", "cuda").name == "torch"


def test_the_engine_reports_its_safe_batch_sizes() -> None:
    frontend, engine = build(parser().parse_args(["--device", "cpu", "--max-running-requests", "6"]))
    assert frontend.server_info["decode_buckets"] == engine.buckets
    assert engine.buckets[-1] == 8
