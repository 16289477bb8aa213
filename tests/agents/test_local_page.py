"""Who may open a page that this machine serves, and what it shows of texts that are meant to do harm."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from agents import local_page
from agents.cli import collect_preferences, iterate
from agents.local_page import TOKEN_VARIABLE, PageGuard, check_page, is_loopback, page_token
from agents.preferences.page import as_text
from agents.preferences.records import Candidates, Response
from tests.agents.preferences.test_page import candidates, free_port
from tests.browser import needs_browser, open_page
from tests.conftest import ROOT

TOKEN = "a token; of any characters=✓"
HOST = "127.0.0.1:7860"


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, None),
        ("GET", "/", {"host": "localhost:7860"}, None),
        ("GET", "/", {"host": "[::1]:7860"}, None),
        ("GET", "/", {"host": "192.168.1.7:7860"}, None),
        ("GET", "/", {"host": f"{socket.gethostname()}:7860"}, None),
        # a name that an attacker's DNS points here, as it is and in disguise
        ("GET", "/", {"host": "evil.example:7860"}, 403),
        ("GET", "/", {"host": "127.0.0.1.evil.example"}, 403),
        ("GET", "/", {"host": "evil.example@127.0.0.2:x"}, 403),
        ("GET", "/", {"host": "[::1"}, 403),
        ("GET", "/", {"host": ""}, 403),
        ("POST", "/gradio_api/queue/join", {"origin": f"http://{HOST}"}, None),
        ("POST", "/gradio_api/queue/join", {"origin": "http://evil.example"}, 403),
        ("POST", "/gradio_api/queue/join", {"origin": "http://127.0.0.1:9999"}, 403),
        ("POST", "/gradio_api/queue/join", {"origin": "http://localhost:7860"}, 403),
        ("POST", "/gradio_api/queue/join", {"origin": "null"}, 403),
        ("POST", "/gradio_api/queue/join", {"sec-fetch-site": "cross-site"}, 403),
        ("POST", "/gradio_api/queue/join", {"sec-fetch-site": "same-site"}, 403),
        ("GET", "/gradio_api/queue/data", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ("GET", "/", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, None),  # a link in a mail
        ("GET", "/config", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
        ("GET", "/assets/index.js", {}, None),
        ("POST", "/gradio_api/upload", {}, 404),
        ("GET", "/gradio_api/upload_progress", {}, 404),
        ("GET", "/gradio_api/file=pyproject.toml", {}, 404),
        ("GET", "/gradio_api/proxy=http://evil.example", {}, 404),
        ("GET", "/gradio_api/info", {}, 404),
        ("GET", "/openapi.json", {}, 404),
        ("GET", "/docs", {}, 404),
        ("POST", "/gradio_api/call/submit", {}, 404),
        ("POST", "/gradio_api/run/predict", {}, 404),
        ("GET", "/monitoring", {}, 404),
    ],
)
def test_what_is_refused_whoever_asks(method: str, path: str, headers: dict[str, str], status: int | None) -> None:
    guard = PageGuard(None, "127.0.0.1", None)  # type: ignore[arg-type]  # only asked
    refusal = guard.refusal(method, path, {"host": HOST, **headers})
    assert (None if refusal is None else refusal[0]) == status


def test_other_machines_need_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [is_loopback(h) for h in ("127.0.0.1", "127.8.9.1", "::1", "localhost")] == [True] * 4
    assert not any(is_loopback(h) for h in ("0.0.0.0", "::", "192.168.1.7", "", "localhost.evil.example"))
    assert page_token("127.0.0.1") is None
    drawn = page_token("0.0.0.0")
    assert drawn is not None
    assert len(drawn) >= 24
    assert page_token("192.168.1.7") == drawn  # the next round's page has the same
    local_page._drawn_token.cache_clear()
    assert page_token("0.0.0.0") != drawn
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert page_token("127.0.0.1") == page_token("0.0.0.0") == TOKEN
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    with pytest.raises(ValueError, match=r"^LLM_ENV_PAGE_TOKEN has 5 characters, at least 8 are needed"):
        page_token("0.0.0.0")


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    compare = local_page.hmac.compare_digest
    monkeypatch.setattr(local_page.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or compare(a, b))
    guard = PageGuard(None, "0.0.0.0", TOKEN)  # type: ignore[arg-type]  # only asked
    name = guard._cookie_name({"host": HOST})
    assert guard._has_cookie({"host": HOST, "cookie": f"{name}={guard.secret}"})
    assert not guard._has_cookie({"host": HOST, "cookie": f"{name}={guard.secret[:-1]}"})
    assert not guard._has_cookie({"host": HOST, "cookie": f"{name}="})
    assert not guard._has_cookie({"host": HOST, "cookie": f"{name}x={guard.secret}"})
    assert not guard._has_cookie({"host": HOST})
    assert len(compared) == 3
    for others in (
        'theme={"dark":1}',
        "a@b=1",
        "a[0]=x y",
    ):  # other programs' on this host, which SimpleCookie cannot read
        assert guard._has_cookie({"host": HOST, "cookie": f"{others}; {name}={guard.secret}; last=1"})


SERVER = """
import sys
from pathlib import Path
from agents.local_page import launch
from agents.preferences.answers import Answers, Question
from agents.preferences.page import build
from agents.preferences.records import read_candidates

folder, host, port, *aspects = sys.argv[1:]
questions = [Question(c, a) for a in aspects or [None] for c in read_candidates(folder + "/responses.jsonl")]
print(launch(build(Answers(Path(folder, "rankings.jsonl"), questions)), host, int(port)), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def served(folder: Path, shown: list[Candidates], *aspects: str, host: str = "127.0.0.1") -> Iterator[str]:
    """The page with these questions, served by another process; its address."""
    pytest.importorskip("gradio")
    (folder / "responses.jsonl").write_text("".join(json.dumps(c.to_json()) + "\n" for c in shown), encoding="utf-8")
    command = [sys.executable, "-c", SERVER, str(folder), host, str(free_port()), *aspects]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            assert address.startswith("http://")
            yield address
        finally:
            server.kill()


def ask(address: str, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, Any, str]:
    port = urlsplit(address).port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body, {"Host": f"127.0.0.1:{port}", **headers})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, text


@pytest.mark.slow
def test_the_page_itself_refuses_uploads_files_and_other_sites(tmp_path: Path) -> None:
    with served(tmp_path, candidates()) as address:
        assert "token" not in address
        status, headers, _ = ask(address, "GET", "/")
        assert status == 200
        assert headers["Content-Security-Policy"].startswith("default-src 'self'")
        assert headers["X-Frame-Options"] == "DENY"
        config = json.loads(ask(address, "GET", "/config")[2])
        assert not any(d["api_visibility"] == "public" for d in config["dependencies"])
        upload = '--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\na\r\n--x--\r\n'
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        assert ask(address, "POST", "/gradio_api/upload", upload, **kind)[0] == 404
        for path in (str(ROOT / "pyproject.toml"), "pyproject.toml", "../../etc/passwd", "%2e%2e/etc/passwd"):
            for place in ("/gradio_api/file=", "/file=", "/static/../", "/assets/..%2f..%2f", "/static/"):
                assert ask(address, "GET", place + path)[0] in (403, 404), place + path
        assert ask(address, "POST", "/gradio_api/queue/join", "{}", Origin="http://evil.example")[0] == 403
        assert ask(address, "GET", "/", Host="evil.example")[0] == 403


@pytest.mark.slow
def test_a_page_for_the_network_asks_for_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with served(tmp_path, candidates(), host="0.0.0.0") as address:
        assert parse_qs(urlsplit(address).query) == {"token": [TOKEN]}
        query = "/?" + urlsplit(address).query
        for path in ("/", "/config", "/gradio_api/queue/data?session_hash=x", "/?token=wrong", "/?token="):
            status, _, text = ask(address, "GET", path)
            assert status == 401
            assert "Question" not in text
        assert ask(address, "POST", "/gradio_api/queue/join", "{}")[0] == 401
        assert ask(address, "GET", "/config" + query[1:])[0] == 401  # at the entrance only
        status, headers, _ = ask(address, "GET", query)
        assert (status, headers["Location"]) == (303, "/")
        cookie = headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        assert TOKEN not in cookie
        assert ask(address, "GET", "/config", Cookie=cookie.split(";")[0])[0] == 200
        assert ask(address, "GET", "/config", Cookie=cookie.split(";")[0], Host="evil.example")[0] == 403


class _Listener(BaseHTTPRequestHandler):
    """Notes what is asked for: nothing on a page may reach it."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_error(404)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """Address of another server, which notes in `_Listener.asked` what is asked of it."""
    _Listener.asked = []
    server = HTTPServer(("127.0.0.1", 0), _Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def harm(elsewhere: str) -> list[str]:
    """Texts that would run a script, load something or leave the page if they were read as anything but text."""
    return [
        "<script>window.harmed = 1</script>",
        f"<img src=x onerror='window.harmed = 1'><img src='{elsewhere}/html.png'>",
        f"![picture]({elsewhere}/markdown.png) [link](javascript:window.harmed=1)",
        f"</textarea><iframe src='{elsewhere}/frame'></iframe><svg onload='window.harmed = 1'>",
        f"<meta http-equiv='refresh' content='0;url={elsewhere}/refresh'><style>@import '{elsewhere}/style.css'</style>",
        "$$\\href{javascript:window.harmed=1}{x}$$ {{ 7 * 7 }} **bold** # heading",
    ]


@needs_browser
@pytest.mark.slow
def test_texts_are_shown_as_texts(tmp_path: Path, elsewhere: str) -> None:
    texts = harm(elsewhere)
    responses = tuple(Response(f"r{i}", text) for i, text in enumerate(texts))
    shown = [Candidates("p0", "\n".join(texts), responses)]
    with served(tmp_path, shown, *texts) as address, open_page(address) as browser:
        requests: list[str] = []
        browser.on("request", lambda request: requests.append(request.url))
        browser.locator("#name textarea, #name input").first.fill(texts[1])
        browser.locator("#begin").click()
        browser.locator("#response0").wait_for()
        for number, aspect in enumerate(texts):
            browser.wait_for_function(f"document.querySelector('#status').innerText.includes('{number} of 6')")
            assert browser.locator("#status").inner_text().startswith(f"Which is more {aspect}?")
            assert browser.locator("#prompt textarea").input_value() == "\n".join(texts)
            got = [browser.locator(f"#response{i} textarea").input_value() for i in range(6)]
            assert sorted(got) == sorted(texts)
            browser.wait_for_timeout(300)
            browser.locator("#all_bad").click()
        browser.get_by_text("All 6 are done.").wait_for()
        assert browser.evaluate("window.harmed") is None
        assert browser.url == address
        assert browser.locator("#status img, #status a, #prompt iframe, #prompt img").count() == 0
        assert not browser.errors
    assert _Listener.asked == []
    assert all(url.startswith((address, "data:", "blob:")) for url in requests)


@needs_browser
@pytest.mark.slow
def test_another_sites_page_cannot_use_this_one(
    tmp_path: Path, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of another site, opened by somebody who has the cookie, can neither ask nor read nor show ours."""
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with served(tmp_path, candidates()) as address, open_page(address) as browser:
        browser.locator("#begin").wait_for()
        assert "token" not in browser.url
        page_url = browser.url
        browser.locator("#name textarea, #name input").first.fill("ann")
        browser.locator("#begin").click()
        browser.locator("#response0").wait_for()  # the page works behind its token
        statuses: list[int] = []
        browser.on("response", lambda r: statuses.append(r.status) if r.url.startswith(page_url) else None)
        browser.goto(elsewhere)
        for mode in ("cors", "no-cors"):
            script = """async ([url, mode]) => {
                return (await fetch(url, {method: "POST", mode, credentials: "include", body: "{}"})).status
            }"""
            answer = browser.evaluate(script, [page_url + "gradio_api/queue/join", mode])
            assert answer == (403 if mode == "cors" else 0)  # 0: the browser shows nothing of the answer
        assert set(statuses) == {403}


def test_text_as_markdown_stays_text() -> None:
    assert as_text("polite") == "polite"
    assert as_text("*a* <b> [c](d)") == r"\*a\* \<b\> \[c\]\(d\)"


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_page_that_cannot_be_shown_is_found_before_the_work(
    tmp_path: Path, taken: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio")
    monkeypatch.setattr(collect_preferences, "sample", lambda *args: pytest.fail("sampled first"))
    arguments = ["--output-dir", str(tmp_path / "out"), "--people", "--host", "127.0.0.1"]
    assert collect_preferences.main([*arguments, "--port", str(taken)]) == 1
    assert f"error: port={taken} at host='127.0.0.1' cannot be used" in capsys.readouterr().err.replace("\n", " ")
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    assert collect_preferences.main([*arguments, "--port", str(free_port())]) == 1
    assert "LLM_ENV_PAGE_TOKEN has 5 characters" in capsys.readouterr().err.replace("\n", " ")
    monkeypatch.delenv(TOKEN_VARIABLE)
    monkeypatch.setattr(local_page, "require", lambda *args: (_ for _ in ()).throw(ImportError("no gradio")))
    assert collect_preferences.main([*arguments, "--port", str(free_port())]) == 1
    assert "no gradio" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"host='nowhere\.invalid' cannot be used"):
        check_page("nowhere.invalid", 7860)


def test_rounds_with_people_look_for_the_page_first(
    tmp_path: Path, taken: int, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio")
    arguments = ["--output-dir", str(tmp_path / "out"), "--judge", "people", "--port", str(taken)]
    assert iterate.main(arguments) == 1
    assert f"error: port={taken} at host='127.0.0.1' cannot be used" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out" / "round_001").exists()
