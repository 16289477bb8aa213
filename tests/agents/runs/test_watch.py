"""A run's page while the run goes on: who may open it, what it is sent, and that it follows."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from agents.cli import watch
from agents.local_page import TOKEN_VARIABLE, PageGuard
from agents.runs.report.watch import HOST, NEEDED, Watched, handler_of
from tests.agents.runs.hand_made import ROWS, record, samples, tokens, write_run
from tests.browser import needs_browser, open_page
from tests.conftest import ROOT

TOKEN = "a token; of any characters=✓"


@contextlib.contextmanager
def served(folder: Path, token: str | None = None) -> Iterator[int]:
    """The page of a run, as `agents.runs.report.watch.serve` serves it, in a thread; its port."""
    handler = handler_of(PageGuard(Watched(folder), HOST, token, NEEDED))
    with ThreadingHTTPServer((HOST, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, str]:
    connection = http.client.HTTPConnection(HOST, port, timeout=20)
    connection.request(method, path, headers={"Host": f"{HOST}:{port}", **headers})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, text


def test_the_page_and_nothing_else_for_this_machine_and_nobody_else(tmp_path: Path) -> None:
    with served(write_run(tmp_path / "run")) as port:
        status, headers, text = ask(port, "/")
        assert status == 200
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Content-Security-Policy"].startswith("default-src 'self'")
        assert "connect-src 'self'" in text
        for path in (
            "/config.yaml",
            "/../run/config.yaml",
            "/%2e%2e/etc/passwd",
            "/static/x",
            "/config",
            "/data.json/",
        ):
            assert ask(port, path)[0] == 404, path
        assert ask(port, "/", Host="evil.example")[0] == 403
        assert ask(port, "/data.json", Origin="http://evil.example")[0] == 403
        assert ask(port, "/data.json", **{"Sec-Fetch-Site": "cross-site"})[0] == 403
        assert ask(port, "/", "POST")[0] == 501
    with served(tmp_path / "run", TOKEN) as port:
        assert ask(port, "/data.json")[0] == 401
        assert ask(port, "/")[0] == 401
        status, headers, _ = ask(port, "/?token=a%20token%3B%20of%20any%20characters%3D%E2%9C%93")
        assert (status, headers["Location"]) == (303, "/")
        assert ask(port, "/data.json", Cookie=headers["Set-Cookie"].split(";")[0])[0] == 200


def test_it_is_served_at_this_machines_own_address() -> None:
    from agents.local_page import is_loopback

    assert is_loopback(HOST)


def test_data_come_where_they_are_newer(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ROWS[:1])
    with served(folder) as port:
        first = json.loads(ask(port, "/data.json?seen=")[2])
        assert first["runs"][0]["iterations"] == 1
        assert first["live"]["age"] >= 0
        seen = f"/data.json?seen={first['live']['version']}"
        assert ask(port, seen)[::2] == (204, "")
        write_run(folder, ROWS[:2])
        second = json.loads(ask(port, seen)[2])
        assert second["runs"][0]["iterations"] == 2
        assert second["live"]["version"] != first["live"]["version"]
        (folder / "config.yaml").write_text("[]")
        status, _, text = ask(port, seen)
        assert status == 500
        assert "no settings of a training run" in text
        shutil.rmtree(folder)
        assert ask(port, seen)[0] == 500
        write_run(folder, ROWS[:2])
        assert ask(port, seen)[0] == 200


def test_what_cannot_be_watched_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*argv: object) -> str:
        assert watch.main([str(word) for word in argv]) == 1
        return capsys.readouterr().err.replace("\n", " ")

    assert "no run there (no config.yaml in it)" in refused(tmp_path)
    folder = write_run(tmp_path / "run")
    assert "port=70000" in refused(folder, "--port", 70000)
    with served(folder) as port:
        assert f"port={port} at host='127.0.0.1' cannot be used" in refused(folder, "--port", port)
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    assert "LLM_ENV_PAGE_TOKEN has 5 characters" in refused(folder)


def until(browser: Any, text: str | re.Pattern[str]) -> None:
    """Waits until the page says this of the run. (The page lets no text be run as a script, so it cannot be asked by one.)"""
    browser.locator("#status", has_text=text).wait_for(timeout=60_000)


def iterations(browser: Any) -> int:
    found = re.search("([0-9]+) iterations", browser.locator("#status").inner_text())
    assert found
    return int(found[1])


@needs_browser
@pytest.mark.slow
def test_the_page_follows_and_leaves_the_reader_where_he_is(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", (), [])
    with served(folder) as port, open_page(f"http://{HOST}:{port}/") as browser:
        status, place = browser.locator("#status"), browser.locator("#time-text")
        assert "no iteration has ended yet" in status.inner_text()
        assert browser.locator("#samples-section").is_hidden()
        write_run(folder, ROWS[:2])
        until(browser, "20 of 40 timesteps")
        assert place.inner_text() == "iteration 2, timestep 20"
        browser.locator("#color").select_option("value")
        browser.locator("#column").select_option("rollout/kl")
        later = [
            *samples(),
            record(30, "first?", "later", tokens=tokens("later", kl=[1.0], value=[1.0], advantage=[0.0])),
        ]
        write_run(folder, ROWS, later)
        until(browser, "30 of 40 timesteps")
        # Who looked at the newest looks at the newest; what was chosen stays.
        assert place.inner_text() == "iteration 3, timestep 30"
        assert browser.locator(".response").first.inner_text() == "later"
        assert browser.locator("#color").input_value() == "value"
        assert browser.locator("#other figcaption").inner_text() == "rollout/kl"
        browser.locator("#time").fill("0")
        write_run(folder, (*ROWS, "40,30,2,1,-1,7"), [*later, record(40, "first?", "last")])
        (folder / "actor").mkdir()
        until(browser, "at its end: 40 of 40")
        assert place.inner_text() == "iteration 0, timestep 0, before training"
        assert browser.evaluate("window.harmed") is None
        assert not browser.errors
        shutil.rmtree(folder)
        until(browser, "this is the last state")
        write_run(folder, ROWS)
        until(browser, "30 of 40 timesteps")
        assert "last state" not in status.inner_text()


@needs_browser
@pytest.mark.slow
def test_a_real_run_is_watched_from_its_first_iteration_to_its_end(tmp_path: Path) -> None:
    """The commands as a user gives them: `train` in one process, `watch` in another, the page in a browser."""
    folder, env = tmp_path / "run", {**os.environ, "PYTHONPATH": str(ROOT)}
    settings = {"n-envs": 4, "max-new-tokens": 6, "total-timesteps": 24 * 20, "sample-every": 1, "n-samples": 2}
    words = ["--output-dir", str(folder), *(word for k, v in settings.items() for word in (f"--{k}", str(v)))]
    train = subprocess.Popen([sys.executable, "scripts/train.py", *words], cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    with train:
        while not (folder / "config.yaml").is_file():
            assert train.poll() is None
            with contextlib.suppress(subprocess.TimeoutExpired):
                train.wait(0.05)
        words = [sys.executable, "-m", "agents.cli.main", "watch", str(folder), "--port", "0"]
        with subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            address = server.stdout.readline().split()[2]
            assert address.startswith(f"http://{HOST}:")
            with open_page(address) as browser:
                until(browser, re.compile("[1-9][0-9]* iterations"))
                before = iterations(browser)
                until(browser, re.compile(f", (?!{before} )[0-9]+ iterations"))
                assert iterations(browser) > before
                if train.poll() is None:  # else the machine was held up, and the run has ended
                    assert "not at its end" in browser.locator("#status").inner_text()
                assert train.wait() == 0
                until(browser, "at its end: 480 of 480")
                assert iterations(browser) == 20
                assert browser.locator("#color option").all_inner_texts() == ["KL", "advantage", "value", "none"]
                assert browser.locator("#time").get_attribute("max") == "20"
                assert browser.locator(".token").count() > 2
                assert not browser.errors
            server.terminate()
    assert '"live":null' in (folder / "report.html").read_text(encoding="utf-8")
