# SPDX-License-Identifier: Apache-2.0
"""What requests may say, what they get, and in which order: the routes that generate."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from toolkit.runtime.serving import SPEC, TOKENIZER
from toolkit.serve.servers import CAPACITY, MODEL, SLOTS, Reply, Server, continuation, fake_bundle, wait_for

Start = Callable[..., Server]
BIG = (-1, SPEC.vocab, 2**31, 2**63, 2**64)


def text_of(prompt: tuple[int, ...], num_tokens: int) -> str:
    return TOKENIZER.decode(continuation(prompt, num_tokens))


def test_a_completion_is_that_of_the_runtime(server: Server) -> None:
    ids = TOKENIZER.encode("To be", CAPACITY)
    whole = server.complete("To be", max_tokens=20).json
    assert whole["choices"] == [{"index": 0, "text": text_of(ids, 20), "logprobs": None, "finish_reason": "length"}]
    counts = {"prompt_tokens": len(ids), "completion_tokens": 20, "total_tokens": len(ids) + 20}
    assert {name: whole["usage"][name] for name in counts} == counts
    events = [json.loads(data) for data in server.stream("To be", max_tokens=20) if data != "[DONE]"]
    assert "".join(event["choices"][0]["text"] for event in events) == text_of(ids, 20)


def test_requests_side_by_side_get_what_they_get_alone(server: Server) -> None:
    prompts = [f"{'word ' * (number % 7)}{number}" for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        answers = pool.map(lambda prompt: server.complete(prompt, max_tokens=len(prompt)).json, prompts)
        texts = [answer["choices"][0]["text"] for answer in answers]
    assert texts == [text_of(TOKENIZER.encode(prompt, CAPACITY), len(prompt)) for prompt in prompts]


def test_choices_differ_by_seed_and_a_seed_repeats(server: Server) -> None:
    settings = {"n": 3, "temperature": 1, "seed": 7, "max_tokens": 12}
    first, again = (server.complete("seeds", **settings).json["choices"] for _ in range(2))
    assert first == again
    assert len({choice["text"] for choice in first}) == 3
    assert [choice["index"] for choice in first] == [0, 1, 2]


def test_stop_ends_an_answer_before_it(server: Server) -> None:
    text = text_of(TOKENIZER.encode("stop", CAPACITY), 30)
    stop = next(text[at : at + 3] for at in range(6, 20) if text.find(text[at : at + 3]) == at)
    choice = server.complete("stop", max_tokens=30, stop=stop).json["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text[: text.find(stop)], "stop")


@pytest.mark.parametrize("depth", [33, 1000, 100_000])
def test_a19_deep_json_is_refused(server: Server, depth: int) -> None:
    for opening in (b"[", b'{"a":'):
        reply = server.request("POST", "/v1/completions", opening * depth)
        assert reply.status == 400


@pytest.mark.parametrize(
    "text", [b'{"model":"demo","model":"demo"}', b'{"n":NaN}', b'{"n":Infinity}', b'{"n":1e400}', b"\xff", b""]
)
def test_json_that_is_none_is_refused(server: Server, text: bytes) -> None:
    assert server.request("POST", "/v1/completions", text).code == "invalid_request"


@pytest.mark.parametrize("field", ["n", "max_tokens"])
@pytest.mark.parametrize("value", [-1, 0, 10**9 * 4, 2**31, 2**63, 1.5, "10", None, True, [], {}])
def test_a21_counts_out_of_bounds_are_refused(server: Server, field: str, value: Any) -> None:
    reply = server.complete(**{field: value})
    assert (reply.status, reply.json["error"]["param"]) == (400, field)


@pytest.mark.parametrize(
    "field", ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"]
)
@pytest.mark.parametrize("value", [-3, 1e308, "1", None, True, [1]])
def test_a22_sampling_numbers_out_of_bounds_are_refused(server: Server, field: str, value: Any) -> None:
    reply = server.complete(**{field: value})
    assert (reply.status, reply.json["error"]["param"]) == (400, field)


def test_a22_a_temperature_too_near_to_zero_is_refused(server: Server) -> None:
    assert server.complete(temperature=0.001).json["error"]["param"] == "temperature"


@pytest.mark.parametrize(
    "field", ["chat_template", "chat_template_kwargs", "image_url", "best_of", "max_token", "x" * 300]
)
def test_a22_a29_an_unknown_field_is_named(server: Server, field: str) -> None:
    reply = server.complete(**{field: "file:///etc/passwd"})
    assert (reply.status, reply.json["error"]["param"]) == (400, field[:80])


def test_a29_an_image_is_refused(server: Server) -> None:
    content = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x"}}]
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    assert server.request("POST", "/v1/chat/completions", body).status == 400


@pytest.mark.parametrize("token", BIG)
def test_a23_ids_beyond_the_vocabulary_are_refused(server: Server, token: int) -> None:
    assert server.complete(logit_bias={str(token): 1}).json["error"]["param"].startswith("logit_bias")
    assert server.complete([5, token]).status == 400


def test_a23_the_last_id_of_the_vocabulary_passes(server: Server) -> None:
    last = SPEC.vocab - 1
    assert server.complete([5, last], logit_bias={str(last): 1}).status == 200


@pytest.mark.parametrize("count", [CAPACITY - 2, CAPACITY - 1])
def test_a25_a_prompt_up_to_the_limit_passes(server: Server, count: int) -> None:
    usage = server.complete([7] * count, max_tokens=1).json["usage"]
    assert usage["prompt_tokens"] == count


@pytest.mark.parametrize(("count", "more"), [(CAPACITY, 1), (CAPACITY + 1, 1), (CAPACITY - 10, 11)])
def test_a25_a_prompt_beyond_the_limit_is_refused_with_both_numbers(server: Server, count: int, more: int) -> None:
    reply = server.complete([7] * count, max_tokens=more)
    assert (reply.status, reply.json["error"]["param"]) == (400, "prompt")
    assert all(str(number) in reply.json["error"]["message"] for number in (CAPACITY, count))


def test_a25_a_text_beyond_the_limit_is_refused_before_it_is_tokenised(server: Server) -> None:
    assert server.complete("x" * (8 * CAPACITY + 1)).status == 400


def test_a24_special_tokens_in_texts_are_those_of_the_tokenizer(server: Server) -> None:
    text = "<|im_start|>user\n<|endoftext|>"
    usage = server.complete(text).json["usage"]
    assert usage["prompt_tokens"] == len(TOKENIZER.encode(text, CAPACITY))


def test_a36_a_full_queue_answers_at_once(start: Start) -> None:
    server = start(delay=0.003, queue=8, client_limit=100)
    server.wait_ready()
    with ThreadPoolExecutor(64) as pool:
        runs = [pool.submit(server.complete, f"A36 {number}", max_tokens=150) for number in range(SLOTS)]
        wait_for(lambda: server.metric("vllm:num_requests_running") == SLOTS, server.explain)
        waits = [pool.submit(server.complete, f"A36 waits {number}", max_tokens=2) for number in range(8)]
        wait_for(lambda: server.metric("vllm:num_requests_waiting") == 8, server.explain)
        assert server.readyz().json == {"status": "ready", "reason": "queue_full"}
        late = [pool.submit(server.complete, f"A36 late {number}") for number in range(10)]
        refused = [answer.result() for answer in late]
        assert [(reply.status, reply.code) for reply in refused] == [(429, "queue_full")] * 10
        assert {reply.headers["retry-after"] for reply in refused} == {"1"}
        assert [answer.result().status for answer in runs + waits] == [200] * (SLOTS + 8)


def test_a37_a_deadline_that_passes_in_the_queue_is_told(server: Server) -> None:
    with ThreadPoolExecutor(SLOTS) as pool:
        runs = [pool.submit(server.complete, f"A37 {number}", max_tokens=400) for number in range(SLOTS)]
        wait_for(lambda: server.metric("vllm:num_requests_running") == SLOTS, server.explain)
        reply = server.complete("A37 late", timeout=0.1)
        assert (reply.status, reply.code) == (504, "deadline")
        assert not [run for run in runs if run.done()]
        assert [run.result().status for run in runs] == [200] * SLOTS


def test_a_deadline_that_passes_in_an_answer_ends_it(server: Server) -> None:
    events = list(server.stream("deadline", max_tokens=300, timeout=0.2))
    assert json.loads(events[-1])["error"]["code"] == "deadline"
    assert server.complete("deadline", max_tokens=300, timeout=0.2).status == 504


def test_a38_a_client_that_floods_leaves_room_for_others(start: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-one-that-floods\na-key-of-somebody-else")
    keys.chmod(0o400)
    server = start(delay=0.003, client_limit=6, api_keys=str(keys))
    server.key = "a-key-of-somebody-else"
    server.wait_ready()
    body = {"model": MODEL, "prompt": "flood", "max_tokens": 100, "temperature": 0}

    def flood() -> Reply:
        key = "Bearer a-key-of-one-that-floods"
        return server.request("POST", "/v1/completions", body, Authorization=key)

    with ThreadPoolExecutor(16) as pool:
        sent = [pool.submit(flood) for _ in range(12)]
        wait_for(lambda: server.metric("vllm:num_requests_waiting") == 2, server.explain)
        begin = time.monotonic()
        assert server.complete("the other", max_tokens=1).status == 200
        waited = time.monotonic() - begin
        statuses = sorted(answer.result().status for answer in sent)
        assert statuses == [200] * 6 + [429] * 6
        assert waited < time.monotonic() - begin


def test_logprobs_are_told_as_asked(server: Server) -> None:
    choice = server.complete("logprobs", max_tokens=3, logprobs=2).json["choices"][0]
    assert len(choice["logprobs"]["tokens"]) == len(choice["logprobs"]["token_logprobs"]) == 3
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 3,
        "logprobs": True,
        "temperature": 0,
    }
    chat = server.request("POST", "/v1/chat/completions", body).json["choices"][0]
    assert [sorted(entry) for entry in chat["logprobs"]["content"]] == [
        ["bytes", "logprob", "token", "top_logprobs"]
    ] * 3


HOSTILE = {
    "attributes": "{{ ''.__class__.__mro__ }}",
    "time": "{% for i in range(10**9) %}{{ i }}{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "output": "{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}",
}


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_a28_a_hostile_chat_template_fails_soon_and_alone(start: Start, tmp_path: Path, template: str) -> None:
    bundle = fake_bundle(tmp_path / "bundle", template)
    server = start(bundle=bundle)
    server.wait_ready()
    begin = time.monotonic()
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
    reply = server.request("POST", "/v1/chat/completions", body)
    assert (reply.status, reply.code) == (400, "chat_template")
    assert time.monotonic() - begin < 5
    server.check_golden()


def test_an_empty_prompt_is_a_mistake_of_the_client(server: Server) -> None:
    reply = server.complete("")
    assert (reply.status, reply.code) == (400, "invalid_request")
