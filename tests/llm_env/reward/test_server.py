"""Reward servers: what is sent, what is taken for an answer, and what is waited for."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch

from llm_env.default_task import DEFAULT_MODEL
from llm_env.episode import Episode
from llm_env.lm.loading import load_tokenizer
from llm_env.lm.names import LoadSettings
from llm_env.reward.endpoint import KEYS_VARIABLE, checked_url, retry_after, server_key
from llm_env.reward.limits import CallLimits, pauses
from llm_env.reward.models import load_reward_model
from llm_env.reward.scores import RewardModelError
from llm_env.reward.server import ServerReward
from llm_env.settings import TaskSettings
from llm_env.text.prompts import Prompt
from tests.reward_servers import ScriptedServer, drips, example_server, free_port

PROMPTS = ["How was it?", "Grüße, 世界"]
RESPONSES = [" Good.", " half \ud83d of a pair"]


def said(scores: Any, status: int = 200, **headers: str) -> tuple[int, dict[str, str], bytes]:
    return status, headers, json.dumps(scores).encode()


GOOD = said({"scores": [1.5, -2], "model": "further entries are left aside"})


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_env.reward.limits.FIRST_PAUSE", 0.001)


def asked(server: ScriptedServer, limits: CallLimits | None = None, option: str = "reward_model") -> list[float]:
    return ServerReward(server.url, option, limits).score_texts(PROMPTS, RESPONSES)


def test_all_responses_are_sent_at_once_as_json_without_a_key() -> None:
    with ScriptedServer(GOOD) as server:
        assert asked(server) == [1.5, -2.0]
    ((path, headers, body),) = server.requests
    assert path == "/score?model=a"
    assert headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    assert json.loads(body) == {"prompts": PROMPTS, "responses": RESPONSES}
    assert body.isascii()


def test_an_address_is_a_reward_model_alone_and_in_a_sum() -> None:
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    episodes = [
        Episode(Prompt(p, (1,)), done=True, response_text=r) for p, r in zip(PROMPTS, [" a.", " b. c."], strict=True)
    ]
    with ScriptedServer(GOOD) as server:
        load = LoadSettings("float32", "cpu")
        limits = CallLimits(timeout=7)
        alone = load_reward_model(server.url, load, tokenizer, limits=limits)
        assert isinstance(alone, ServerReward)
        assert (alone.endpoint.timeout, alone.endpoint.wait) == (7, 600)
        assert alone.score(episodes) == [1.5, -2.0]
        both = load_reward_model([[server.url, 2.0], "tests.conftest:count_dots"], load, tokenizer)
        assert both.score(episodes) == [4.0, -2.0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (said({"scores": [1.0]}), "returned 1 scores for 2 responses"),
        (said({"scores": [1.0, float("nan")]}), r"returned nan for 1 of 2 responses; .* for prompt 'Grüße, 世界'"),
        ((200, {}, b'{"scores": [1e400, 0]}'), "returned inf for 1 of 2"),
        (said({"scores": ["1", "2"]}), "must return one float for each response; it returned '1'"),
        (said({"scores": {"0": 1, "1": 2}}), 'must answer {"scores"'),
        (said([1.0, 2.0]), 'must answer {"scores"'),
        (said({"score": [1.0, 2.0]}), 'must answer {"scores".*it answered {"score"'),
        ((200, {}, b"<html>\x1b[31m\nhi"), r"is not JSON: <html>\\x1b\[31m hi$"),
        ((200, {}, b"\xff\xfe\x00"), "is not JSON"),
        ((200, {}, b""), "is not JSON"),
        ((200, {}, b"[" * 100_000), "is not JSON"),
        ((200, {}, b'{"scores": [' + b"9" * 5000 + b", 1]}"), "is not JSON"),
        ((200, {}, b" " * 1_000_300), "answered with more than 1,000,200 bytes"),
        (said({"scores": [1, 2]}, 204), "answered 204"),
        (said({"error": "no\nsuch \x1b[2J key"}, 401), r"answered 401 Unauthorized: no such \\x1b\[2J key\.$"),
        (said({"scores": [1, 2]}, 404), "answered 404 Not Found"),
        ((422, {}, b"plain words"), "answered 422 Unprocessable Entity: plain words"),
        (said({}, 501), "answered 501"),
        (said({}, 307, Location="http://evil.example/"), "a redirect to http://evil.example/. Redirects are not followed"),
        (said({}, 302, Location="/score/"), "answered 302 Found, a redirect to /score/"),
        (lambda connection: connection.sendall(b"220 mail.example ESMTP\r\n"), "does not speak HTTP: BadStatusLine"),
    ],
)  # fmt: skip
def test_an_answer_without_scores_is_one_line_that_names_the_address_at_once(answer: Any, message: str) -> None:
    with (
        ScriptedServer(answer) as server,
        pytest.raises(RewardModelError, match=f"^gold='{server.url[:20]}.*{message}") as caught,
    ):
        asked(server, option="gold")
    assert len(server.requests) == 1
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def cut_off(connection: socket.socket) -> None:
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"scores": [')


def cut_off_in_a_chunk(connection: socket.socket) -> None:
    connection.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n{"scores": [')


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, r"cannot be reached \(.*\)"),
        (cut_off, "the answer broke off"),
        (cut_off_in_a_chunk, "the answer broke off"),
        (said({"error": "loading"}, 503), "answered 503 Service Unavailable: loading"),
        (said({}, 500), "answered 500 Internal Server Error"),
        (said({}, 429, **{"Retry-After": "0"}), "answered 429 Too Many Requests"),
    ],
)
def test_what_may_pass_is_asked_again_with_a_line_before_and_after(
    answer: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with ScriptedServer(answer, answer, answer, GOOD) as server:
        assert asked(server) == [1.5, -2.0]
        assert len(server.requests) == 4
        assert len({body for _, _, body in server.requests}) == 1
        first, second = (r.getMessage() for r in caplog.records)
        assert first.startswith(f"reward_model={server.url!r}")
        assert message.split(r"\(")[0].strip() in first
        assert first.endswith("It is asked again for up to 600 s …")
        assert re.fullmatch(rf"reward_model='{re.escape(server.url)}' answers again after \d+ s; going on\.", second)
    with ScriptedServer(answer) as server:
        with pytest.raises(RewardModelError, match=f"{message}.* It was asked again for 0\\.02 s"):
            asked(server, CallLimits(wait=0.02))
        assert len(server.requests) >= 2
        before = len(server.requests)
        with pytest.raises(RewardModelError, match=message):
            asked(server, CallLimits(wait=0))
        assert len(server.requests) == before + 1


def test_a_server_that_is_not_there_is_waited_for() -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    with pytest.raises(
        RewardModelError, match=r"cannot be reached \(Connection refused\)\. It was asked again for 0.01"
    ):
        ServerReward(url, limits=CallLimits(wait=0.01)).score_texts(PROMPTS, RESPONSES)


def test_a_server_without_a_valid_certificate_is_not_waited_for() -> None:
    with ScriptedServer(GOOD) as server:  # it speaks HTTP alone
        url = server.url.replace("http:", "https:")
        with pytest.raises(RewardModelError, match=f"^reward_model='{url[:20]}.*: no safe connection: .*SSL"):
            ServerReward(url).score_texts(PROMPTS, RESPONSES)


@pytest.mark.parametrize("in_a_thread", [False, True])
def test_a_silent_server_is_given_up_and_asked_again(in_a_thread: bool, caplog: pytest.LogCaptureFixture) -> None:
    end = threading.Event()
    scores: list[float] = []
    with ScriptedServer(lambda connection: end.wait(60), GOOD) as server:
        work = threading.Thread(target=lambda: scores.extend(asked(server, CallLimits(timeout=0.05))))
        if in_a_thread:
            work.start()
            work.join()
        else:
            work.run()
        end.set()
    assert scores == [1.5, -2.0]
    assert "did not answer within 0.05 s (reward_timeout)" in caplog.records[0].getMessage()


def test_the_limit_is_one_for_the_whole_answer_however_many_drops_it_comes_in() -> None:
    with ScriptedServer(drips) as server, pytest.raises(RewardModelError, match=r"did not answer within 0\.1 s"):
        asked(server, CallLimits(timeout=0.1, wait=0))


def test_waiting_draws_nothing_from_the_random_states_of_training() -> None:
    def state() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()

    before = state()
    with ScriptedServer(None, None, None, GOOD) as server:
        asked(server)
    assert state() == before


def test_pauses_grow_to_a_limit_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_env.reward.limits.FIRST_PAUSE", 0.5)
    drawn = [pause for pause, _ in zip(pauses(), range(9), strict=False)]
    assert all(0.25 <= p <= 0.5 for p in drawn[:1])
    assert all(5 <= p <= 10 for p in drawn[6:])
    assert len(set(drawn)) == 9


def test_a_pause_is_as_long_as_the_server_asks_for_and_ends_with_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("llm_env.reward.limits.time.sleep", slept.append)
    with ScriptedServer(
        said({}, 503, **{"Retry-After": "40"}), said({}, 503, **{"Retry-After": "9999"}), GOOD
    ) as server:
        assert asked(server, CallLimits(wait=100)) == [1.5, -2.0]
    assert slept[0] == 40
    assert 90 < slept[1] <= 100
    assert retry_after(None) == retry_after("soon") == retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("Wed, 21 Oct 2065 07:28:00 GMT") > 1e9


def test_ctrl_c_ends_the_waiting() -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    # A process that was started in the background ignores the signal, as a command there does.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            ServerReward(url, limits=CallLimits(wait=600)).score_texts(PROMPTS, RESPONSES)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_key_is_sent_to_its_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(GOOD) as server:
        host = server.url.split("/")[2]
        for keys, header in [
            (f"other.example=aaa {host}=s3cret=", "Bearer s3cret="),
            ("127.0.0.1=bbb", "Bearer bbb"),
            ("127.0.0.1:1=ccc localhost=ddd", None),
        ]:
            monkeypatch.setenv(KEYS_VARIABLE, keys)
            asked(server)
            assert server.requests[-1][1].get("Authorization") == header
    for keys in ("s3cret", "host=", "=s3cret", "a=b host=s3cr\u00e9t"):
        with pytest.raises(ValueError, match=f"{KEYS_VARIABLE}: entry [12] must be HOST=KEY") as caught:
            server_key(urlsplit(server.url), keys)
        assert "s3c" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://", "must be http://HOST"),
        ("http://:80/", "must be http://HOST"),
        ("http://host:port/", "Port could not be cast"),
        ("http://host:99999/", "Port out of range"),
        ("http://[::1/", "Invalid IPv6"),
        ("http://host/a#b", "must be http://HOST"),
        ("http://host/a b", "percent-encoded"),
        ("http://höst/", "percent-encoded"),
        ("http://host/\r\nX: y", "percent-encoded"),
        ("https://me:s3cret@host/", "reward_model: the address of host has a user or a password in it"),
    ],
)
def test_an_address_that_is_none_is_refused_before_anything_is_loaded(url: str, message: str) -> None:
    for reward in (url, [[url, 2.0], "tests.conftest:count_dots"]):
        with pytest.raises(ValueError, match=message) as caught:
            TaskSettings(reward_model=reward)
        assert "s3cret" not in str(caught.value)


def test_addresses_may_have_any_host_port_path_and_query() -> None:
    for url in ("HTTP://host", "https://host:8443/a/b?c=d&e=%20", "http://[::1]:8000/"):
        assert checked_url(url, "gold").hostname in ("host", "::1")
        TaskSettings(reward_model=url)


@pytest.mark.slow
def test_the_example_serves_a_classifier_and_a_function_behind_a_key(
    model_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, port = model_folder("llama", 1), free_port()
    url = f"http://127.0.0.1:{port}/"
    texts = ["How was the hotel?", "The zoo:"], [" Fine.", " Wild. Very wild."]
    with example_server(port, "--classifier", folder):
        served = ServerReward(url).score_texts(*texts)
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for value, prompt, response in zip(served, *texts, strict=True):
        with torch.no_grad():
            own = model(**tokenizer(prompt + response, return_tensors="pt")).logits[0, 0].item()
        assert value == pytest.approx(own, abs=1e-5)
    with example_server(port, "--function", "tests.conftest:count_dots", REWARD_SERVER_KEY="k"):
        with pytest.raises(RewardModelError, match="answered 401 Unauthorized: wrong key"):
            ServerReward(url).score_texts(*texts)
        monkeypatch.setenv(KEYS_VARIABLE, f"127.0.0.1:{port}=k")
        assert ServerReward(url).score_texts(*texts) == [1.0, 2.0]
    with (
        example_server(port, "--function", "tests.llm_env.reward.test_models:raises"),
        pytest.raises(RewardModelError, match=r"answered 422 .*: KeyError: 'broken'"),
    ):
        ServerReward(url).score_texts(*texts)
