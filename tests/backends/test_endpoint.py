"""The endpoint against a real server: every fault ends as an answer or a record in its place."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import endpoint_server as server_side
import pytest
from endpoint_server import Server, chat_json, says, sends, status

from actscope import Example, Message
from actscope.backends import BACKENDS
from actscope.backends.endpoint import Endpoint, EndpointText, split_thinking
from actscope.backends.endpoint.retry import backoff, retry_after
from actscope.core.activations import ExampleFailure
from actscope.core.errors import BadInputError
from actscope.core.protocols import GenerationParams

KEY = "sk-a-secret-of-the-tests"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()


def endpoint(server: Server, **options: Any) -> Endpoint:
    quick: dict[str, Any] = {"backoff_base": 0.01, "backoff_longest": 0.02, "timeout": 5.0}
    return Endpoint(server.url, "served-model", **{**quick, **options})


def answer(result: EndpointText | ExampleFailure) -> EndpointText:
    assert isinstance(result, EndpointText), result
    return result


def failure(result: EndpointText | ExampleFailure) -> ExampleFailure:
    assert isinstance(result, ExampleFailure), result
    return result


def test_answers_come_in_order_and_belong_to_their_prompts(server: Server) -> None:
    prompts = [f"p{i}" for i in range(40)]
    for i in range(0, 40, 3):
        server.on(f"p{i}", server_side.slow_start(0.05))
    made = [answer(r) for r in endpoint(server, concurrency=8).generate(prompts)]
    assert [r.text for r in made] == [f"answer to p{i}" for i in range(40)]
    assert [(r.id, r.index) for r in made] == [(str(i), i) for i in range(40)]
    assert made[0].model == "served-model"
    assert (made[0].prompt_tokens, made[0].completion_tokens) == (7, 3)
    assert made[0].finish_reason == "stop" and made[0].attempts == 1
    assert 1 < server.most_at_once <= 8


def test_what_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    params = GenerationParams(max_new_tokens=9, temperature=0.25, top_p=0.5, seed=4)
    turns = (Message("system", "be brief"), Message("user", "hi"))
    endpoint(server, further={"min_p": 0.1, "top_p": None}).generate(
        [Example("a", messages=turns)], params
    )
    (seen,) = server.seen
    assert seen.path == "/v1/chat/completions"
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert seen.body.pop("seed") >= 0
    assert seen.body == {
        "model": "served-model",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hi"},
        ],
        "max_tokens": 9,
        "temperature": 0.25,
        "stream": False,
        "min_p": 0.1,
    }


def test_plain_completions(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    plain = endpoint(server, route="completions")
    made = plain.generate(["once upon"], GenerationParams(top_k=3))
    assert answer(made[0]).text == "answer to once upon"
    made = plain.generate([[1, 2, 3]])
    assert answer(made[0]).text == "answer to [1, 2, 3]"
    first, second = server.seen
    assert first.path == "/v1/completions" and first.body["top_k"] == 3
    assert "authorization" not in first.headers
    assert second.body["prompt"] == [1, 2, 3] and "top_k" not in second.body


def test_prompts_that_a_route_cannot_take_are_records(server: Server) -> None:
    made = endpoint(server).generate([[1, 2], "text"])
    assert failure(made[0]).kind == "bad_prompt"
    assert answer(made[1]).text == "answer to text"
    turns = Example("a", messages=(Message("user", "hi"),))
    made = endpoint(server, route="completions").generate([turns])
    assert failure(made[0]).kind == "bad_prompt"
    assert endpoint(server).generate([]) == []


def test_odd_characters_arrive(server: Server) -> None:
    for text in ("caf\u00e9 \U0001f980", "a\x00b", "\ud800", "\u202eright to left"):
        endpoint(server).generate([text])
        assert server.seen[-1].prompt == text
    server.on("split", server_side.in_pieces)
    assert answer(endpoint(server).generate(["split"])[0]).text == "caf\u00e9 \U0001f980"


def test_seeds_belong_to_examples(server: Server) -> None:
    params = GenerationParams(seed=3)
    forward = endpoint(server).generate(
        [{"id": f"q{i}", "text": f"t{i}"} for i in range(9)], params
    )
    backward = endpoint(server, concurrency=1).generate(
        [{"id": f"q{i}", "text": f"t{i}"} for i in reversed(range(9))], params
    )
    seeds = {answer(r).id: answer(r).seed for r in forward}
    assert seeds == {answer(r).id: answer(r).seed for r in backward}
    assert len(set(seeds.values())) == 9
    assert all(0 <= seed < 2**31 for seed in seeds.values())
    sent = {s.prompt: s.body["seed"] for s in server.seen[:9]}
    assert sent == {f"t{i}": seeds[f"q{i}"] for i in range(9)}
    other = endpoint(server).generate([{"id": "q0", "text": "t0"}], GenerationParams(seed=4))
    assert answer(other[0]).seed != seeds["q0"]


# reasoning


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_kept_apart(server: Server, name: str) -> None:
    server.on("why", says("Because.", **{name: "Let me think."}))
    made = answer(endpoint(server).generate(["why"])[0])
    assert (made.reasoning, made.text, made.content) == ("Let me think.", "Because.", "Because.")


def test_a_budget_that_ended_while_thinking(server: Server) -> None:
    server.on("why", says(None, reasoning_content="Let me"))
    made = answer(endpoint(server).generate(["why"])[0])
    assert (made.reasoning, made.text) == ("Let me", "")


def test_tags_are_split_and_the_content_is_kept(server: Server) -> None:
    content = "<think>\nLet me.\n</think>\n\nBecause."
    server.on("why", says(content))
    made = answer(endpoint(server).generate(["why"])[0])
    assert (made.reasoning, made.text, made.content) == ("Let me.", "Because.", content)


@pytest.mark.parametrize(
    ("content", "reasoning", "text"),
    [
        ("plain", "", "plain"),
        ("  plain ", "", "  plain "),
        ("<think>a</think>b", "a", "b"),
        ("a\n</think>\n\nb", "a", "b"),
        ("<think>a", "a", ""),
        ("<think></think>b", "", "b"),
        ("The tag <think>x</think> is used", "", "The tag <think>x</think> is used"),
        ("<think>a</think>b</think>c", "a", "b</think>c"),
        ("", "", ""),
    ],
)
def test_split_thinking(content: str, reasoning: str, text: str) -> None:
    assert split_thinking(content) == (reasoning, text)


def test_token_ids_that_a_server_sends(server: Server) -> None:
    reply = chat_json("ab")
    reply["choices"][0]["token_ids"] = [5, 6]
    reply["prompt_token_ids"] = [1, 2, 3]
    server.on("ids", sends(json.dumps(reply).encode()))
    made = answer(endpoint(server).generate(["ids"])[0])
    assert (made.token_ids, made.prompt_token_ids) == ((5, 6), (1, 2, 3))
    reply["choices"][0]["token_ids"] = ["5", True]
    server.on("odd", sends(json.dumps(reply).encode()))
    assert answer(endpoint(server).generate(["odd"])[0]).token_ids is None


def test_several_choices_and_parts(server: Server) -> None:
    reply = chat_json("second")
    reply["choices"] = [{**reply["choices"][0], "index": 1}, *chat_json("first")["choices"]]
    server.on("many", sends(json.dumps(reply).encode()))
    server.on("parts", says([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]))
    made = endpoint(server).generate(["many", "parts"])
    assert [answer(r).text for r in made] == ["first", "ab"]


# faults that pass


def chat_bytes(text: str) -> bytes:
    return json.dumps(chat_json(text)).encode()


PASSING = {
    "429": status("429 Too Many Requests"),
    "408": status("408 Request Timeout"),
    "409": status("409 Conflict"),
    "500": status("500 Internal Server Error"),
    "502 with html": status("502 Bad Gateway", b"<html>bad</html>", Content_Type="text/html"),
    "503": status("503 Service Unavailable"),
    "504": status("504 Gateway Timeout"),
    "hang up": server_side.hang_up,
    "reset in the body": server_side.reset_in_the_body,
    "truncated body": server_side.truncated,
    "truncated json": sends(chat_bytes("x")[:-9]),
    "malformed json": sends(b'{"choices": [}'),
    "deep json": sends(b"[" * 100_000),
    "json that is no object": sends(b'["choices"]'),
    "empty body": sends(b""),
    "bad utf-8": sends(b'{"choices": "\xff\xfe"}'),
    "html with 200": sends(b"<html>Please log in</html>", content_type="text/html"),
    "event stream": sends(b'data: {"choices": []}\n\n', content_type="text/event-stream"),
    "empty choices": sends(b'{"choices": []}'),
    "no choices": sends(b'{"object": "list"}'),
    "choices of another kind": sends(b'{"choices": {"0": 1}}'),
    "error with 200": sends(b'{"error": {"message": "overloaded"}}'),
    "too slow": server_side.slow_start(1.0),
    "slow drip": server_side.drip(0.05),
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_costs_a_retry_and_nothing_else(server: Server, fault: str) -> None:
    server.on("bad", PASSING[fault], PASSING[fault], server_side.echo)
    made = endpoint(server, timeout=0.4 if "slow" in fault else 5.0).generate(
        ["good", "bad", "fine"]
    )
    assert [answer(r).text for r in made] == [f"answer to {p}" for p in ("good", "bad", "fine")]
    assert [answer(r).attempts for r in made] == [1, 3, 1]


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_stays_is_a_record_and_the_rest_goes_on(server: Server, fault: str) -> None:
    server.on("bad", PASSING[fault])
    made = endpoint(server, timeout=0.4 if "slow" in fault else 5.0, retries=1).generate(
        ["good", "bad", "fine"]
    )
    assert [answer(made[i]).text for i in (0, 2)] == ["answer to good", "answer to fine"]
    bad = failure(made[1])
    assert (bad.id, bad.index) == ("1", 1)
    assert "after 2 attempts" in bad.message
    expected = {"too slow": "timeout", "slow drip": "timeout"}.get(
        fault, f"http_{fault[:3]}" if fault[0].isdigit() else "bad_reply"
    )
    assert bad.kind == expected


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (status("400 Bad Request"), "http_400"),
        (status("403 Forbidden"), "http_403"),
        (status("413 Content Too Large"), "http_413"),
        (status("422 Unprocessable"), "http_422"),
        (status("302 Found", Location="http://elsewhere.invalid/"), "http_302"),
        (says(None), "no_text"),
        (says(None, refusal="I cannot help"), "no_text"),
        (server_side.endless, "bad_reply"),
    ],
)
def test_faults_that_no_retry_helps_are_not_retried(
    server: Server, behaviour: Any, kind: str
) -> None:
    server.on("bad", behaviour)
    made = endpoint(server, largest_reply=200_000).generate(["bad", "good"])
    assert failure(made[0]).kind == kind
    assert "attempts" not in failure(made[0]).message
    assert answer(made[1]).text == "answer to good"
    assert len(server.seen) == 2


def test_a_second_answer_on_a_connection_is_never_anothers(server: Server) -> None:
    server.always(server_side.twice)
    prompts = [f"p{i}" for i in range(12)]
    made = endpoint(server, concurrency=1).generate(prompts)
    assert [answer(r).text for r in made] == [f"answer to {p}" for p in prompts]


# waiting


def test_retry_after_in_seconds_is_honoured_by_all(server: Server) -> None:
    server.on("p0", status("429 Too Many Requests", Retry_After="0.6"), server_side.echo)
    begun = time.monotonic()
    prompts = [f"p{i}" for i in range(6)]
    made = endpoint(server, concurrency=1).generate(prompts)
    assert [answer(r).text for r in made] == [f"answer to {p}" for p in prompts]
    assert time.monotonic() - begun >= 0.6
    first, second, *_ = server.seen
    assert second.at - first.at >= 0.6
    server.seen.clear()
    server.on("q0", status("503 Service Unavailable", Retry_After="0.5"), server_side.echo)
    for i in range(1, 6):
        server.on(f"q{i}", server_side.slow_start(0.05))
    endpoint(server, concurrency=2).generate([f"q{i}" for i in range(6)])
    told = next(s.at for s in server.seen if s.prompt == "q0")
    later = [s.at - told for s in server.seen if s.at > told + 0.2]
    assert later and min(later) >= 0.45  # the other worker paused as well


def test_retry_after_as_a_date(server: Server) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=2)
    server.on(
        "p",
        status("429 Too Many Requests", Retry_After=format_datetime(moment, usegmt=True)),
        server_side.echo,
    )
    assert answer(endpoint(server).generate(["p"])[0]).attempts == 2
    first, second = server.seen
    assert 0.8 <= second.at - first.at <= 3.5  # dates hold whole seconds


def test_a_server_that_asks_for_an_hour_fails_the_prompt_at_once(server: Server) -> None:
    server.on("p", status("429 Too Many Requests", Retry_After="3600"))
    begun = time.monotonic()
    bad = failure(endpoint(server).generate(["p"])[0])
    assert time.monotonic() - begun < 2
    assert bad.kind == "http_429" and "wait 3600 s" in bad.message
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("12", 12.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("Wed, 21 Oct 2026 07:28:10 GMT", 10.0),
        ("Wed, 21 Oct 2026 07:28:10 -0000", 10.0),
        ("Wed, 21 Oct 2026 09:28:10 +0200", 10.0),
        ("Wed, 21 Oct 2020 07:28:10 GMT", 0.0),
        ("soon", None),
        ("", None),
        ("nan", None),
        ("inf", None),
        (None, None),
    ],
)
def test_reading_retry_after(value: str | None, seconds: float | None) -> None:
    now = datetime(2026, 10, 21, 7, 28, 0, tzinfo=UTC)
    assert retry_after(value, now) == seconds


def test_backoff_grows_to_its_bound_and_is_spread() -> None:
    rng = random.Random(0)
    for attempt, bound in [(0, 0.5), (1, 1.0), (4, 8.0), (7, 30.0), (5000, 30.0)]:
        draws = [backoff(attempt, 0.5, 30.0, rng) for _ in range(2000)]
        assert 0 <= min(draws) < 0.05 * bound and 0.95 * bound < max(draws) <= bound
        assert abs(sum(draws) / len(draws) - bound / 2) < 0.05 * bound


# giving up


@pytest.mark.parametrize("line", ["401 Unauthorized", "404 Not Found", "402 Payment Required"])
def test_what_is_wrong_for_all_is_asked_once(server: Server, line: str) -> None:
    server.always(status(line))
    made = endpoint(server, concurrency=1).generate([f"p{i}" for i in range(30)])
    assert len(server.seen) == 1
    assert failure(made[0]).kind == f"http_{line[:3]}"
    assert {failure(r).kind for r in made[1:]} == {"not_sent"}
    assert line[:3] in failure(made[29]).message


def test_answers_before_the_refusal_are_kept(server: Server) -> None:
    server.on("p3", status("401 Unauthorized"))
    made = endpoint(server, concurrency=1).generate([f"p{i}" for i in range(6)])
    assert [type(r) for r in made] == [EndpointText] * 3 + [ExampleFailure] * 3


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_server_that_is_down_is_given_up() -> None:
    down = Endpoint(
        f"http://127.0.0.1:{free_port()}/v1", "m", retries=2, backoff_base=0.01, concurrency=2
    )
    made = [failure(r) for r in down.generate([f"p{i}" for i in range(50)])]
    kinds = [r.kind for r in made]
    assert kinds[0] == "unreachable" and kinds[-1] == "not_sent"
    assert 8 <= kinds.count("unreachable") <= 12
    assert "no connection" in made[-1].message


def test_a_connection_that_is_never_accepted() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = []
        for _ in range(4):  # fill the queue, so that the next connection waits
            extra = socket.socket()
            extra.setblocking(False)
            extra.connect_ex(full.getsockname())
            waiting.append(extra)
        url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        slow = Endpoint(url, "m", retries=0, connect_timeout=0.3, timeout=2.0)
        bad = failure(slow.generate(["p"])[0])
        for extra in waiting:
            extra.close()
    assert bad.kind == "unreachable" and "0.3 s" in bad.message


# secrets


def test_the_key_is_nowhere_but_in_the_header(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    complaint = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode()
    server.on("bad", status("401 Unauthorized", complaint))
    server.on("flaky", status("500 Oops", complaint), server_side.echo)
    with caplog.at_level(logging.DEBUG):
        ours = endpoint(server, api_key_env="MY_KEY", concurrency=1)
        made = ours.generate(["flaky", "bad", "rest"])
    assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"
    assert "[key]" in failure(made[1]).message and "[key]" in failure(made[2]).message
    assert caplog.text  # something was logged
    for text in (caplog.text, repr(made), repr(ours), str(ours.identity)):
        assert KEY not in text


@pytest.mark.parametrize("key", ["sk-\u00fc", "sk-a\nX-Evil: 1", "sk a"])
def test_a_key_that_no_header_can_carry(
    server: Server, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(BadInputError, match="OPENAI_API_KEY") as caught:
        endpoint(server).generate(["p"])
    assert key not in str(caught.value)
    assert not server.seen


def test_a_redirect_does_not_take_the_key_along(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Server() as other:
        threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True).start()
        server.on("p", status("307 Temporary", Location=f"{other.url}/chat/completions"))
        assert failure(endpoint(server).generate(["p"])[0]).kind == "http_307"
        assert not other.seen
        other.shutdown()


# bad input


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"url": "localhost:8000"}, "http address"),
        ({"url": "file:///etc/passwd"}, "http address"),
        ({"url": "http://user:word@host/v1"}, "no password"),
        ({"url": "http://host/v1/chat/completions"}, "base address"),
        ({"url": "http://host/v1?key=x"}, "base address"),
        ({"route": "embeddings"}, "unknown route"),
        ({"concurrency": 0}, "at least one request"),
        ({"retries": -1}, "no negative retries"),
        ({"timeout": 0}, "must be positive"),
    ],
)
def test_endpoints_that_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInputError, match=says) as caught:
        Endpoint(**{"url": "http://host/v1", "model": "m", **options})
    assert "word" not in str(caught.value) or "password" in str(caught.value)


@pytest.mark.parametrize(
    ("params", "further"),
    [
        ({"temperature": float("nan")}, {}),
        ({"max_new_tokens": 0}, {}),
        ({}, {"stop": {1, 2}}),
        ({}, {"min_p": float("inf")}),
    ],
)
def test_parameters_that_cannot_be_sent(
    server: Server, params: dict[str, Any], further: dict[str, Any]
) -> None:
    with pytest.raises(BadInputError):
        endpoint(server, further=further).generate(["p"], GenerationParams(**params))
    assert not server.seen


def test_an_endpoint_is_no_backend() -> None:
    assert "endpoint" not in BACKENDS.names() and "hf" in BACKENDS.names()
    with pytest.raises(BadInputError, match="hf"):
        BACKENDS.get("endpoint")


def test_without_httpx2(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(BadInputError, match=r"actscope\[endpoint\]"):
        endpoint(server).generate(["p"])


# surroundings


def test_inside_a_running_loop_as_in_a_notebook(server: Server) -> None:
    async def cell() -> list[Any]:
        return endpoint(server).generate(["a", "b"])

    before = threading.active_count()
    made = asyncio.run(cell())
    assert [answer(r).text for r in made] == ["answer to a", "answer to b"]
    time.sleep(0.1)
    assert threading.active_count() <= before + 2  # the server's own connection threads at most


@pytest.mark.parametrize("inside_a_loop", [False, True])
def test_ctrl_c_stops_at_once(server: Server, tmp_path: Path, inside_a_loop: bool) -> None:
    server.always(server_side.slow_start(60.0))
    call = f"Endpoint({server.url!r}, 'm').generate(['a', 'b'])"
    script = tmp_path / "script.py"
    # as a notebook does: a running loop that leaves SIGINT alone
    notebook = f"async def cell():\n    {call}\nasyncio.new_event_loop().run_until_complete(cell())"
    script.write_text(
        "import asyncio\nfrom actscope.backends.endpoint import Endpoint\nprint('go', flush=True)\n"
        + (notebook if inside_a_loop else call)
    )
    child = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ),
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "go\n"
    while not server.seen:
        time.sleep(0.02)
    time.sleep(0.2)
    begun = time.monotonic()
    child.send_signal(signal.SIGINT)
    try:
        _, said = child.communicate(timeout=20)
    finally:
        child.kill()
    assert time.monotonic() - begun < 5
    assert "KeyboardInterrupt" in said and child.returncode != 0


def test_importing_needs_neither_torch_nor_httpx2() -> None:
    code = (
        "import sys; from actscope.backends.endpoint import Endpoint; Endpoint('http://x/v1', 'm');"
        "print(sorted({'torch', 'httpx2', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
