"""Mistakes that open a page to those whom it is not for, or have a run's page say what is not so."""

from __future__ import annotations

from tests.mistakes import Mutation

_PAGE = "agents/local_page.py"
_TESTS = ("tests/agents/test_local_page.py",)
_REPORT = "agents/runs/report/"
_RUNS = ("tests/agents/runs/test_report.py",)
_WATCH = ("tests/agents/runs/test_watch.py",)
_TOKENS = "agents/rollouts/sample_tokens.py"
_SAMPLES = ("tests/agents/rollouts/test_sample_tokens.py",)

PAGES = [
    Mutation(
        "another site's page may answer in somebody's place",
        _PAGE,
        "if origin is not None and urlsplit(origin.lower()).netloc != host:",
        "if False:",
        _TESTS,
    ),
    Mutation(
        "a browser's word that a request comes from elsewhere is not heard",
        _PAGE,
        'if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not is_link:',
        "if False:",
        _TESTS,
    ),
    Mutation(
        "any name that points to this machine opens its page", _PAGE, "return name in self.names", "return True", _TESTS
    ),
    Mutation("a page takes uploads", _PAGE, "if not self.needed.fullmatch(path):", "if False:", _TESTS),
    Mutation(
        "a page for the network asks for no token",
        _PAGE,
        "(None if is_loopback(host) else _drawn_token())",
        "None",
        _TESTS,
    ),
    Mutation(
        "tokens are compared until the first difference",
        _PAGE,
        "hmac.compare_digest(given.encode(), self.secret.encode())",
        "given == self.secret",
        _TESTS,
    ),
    Mutation(
        "a page's port is looked at after the work",
        "agents/cli/collect_preferences.py",
        "        check_page(args.host, args.port)\n",
        "        assert check_page\n",
        _TESTS,
    ),
    Mutation(
        "rounds with people look for the page after the work",
        "agents/iteration/judging.py",
        "            check_page(settings.host, settings.port)\n",
        "            assert check_page\n",
        _TESTS,
    ),
    Mutation(
        "the page reads what it should show",
        "agents/preferences/page.py",
        'return re.sub(r"([!-/:-@\\[-`{-~])", r"\\\\\\1", text)',
        "return text or re.escape(text)",
        _TESTS,
    ),
    Mutation(
        "a text of a model ends the data and begins a script",
        _REPORT + "page.py",
        '.replace("<", "\\\\u003c")',
        "",
        _RUNS,
    ),
    Mutation(
        "half a pair of surrogates keeps the page from being written",
        _REPORT + "page.py",
        'separators=(",", ":"), allow_nan',
        'separators=(",", ":"), ensure_ascii=False, allow_nan',
        _RUNS,
    ),
    Mutation("a folder's name is read as HTML", _REPORT + "page.py", 'html.escape(" · "', 'str(" · "', _RUNS),
    Mutation(
        "the page of a file may ask somebody",
        _REPORT + "page.py",
        "asks = \"'none'\" if live is None else",
        "asks =",
        _RUNS,
    ),
    Mutation(
        "a row that is being written counts", "agents/runs/figure.py", 'data[: data.rfind(b"\\n") + 1]', "data", _RUNS
    ),
    Mutation(
        "a sample's iteration is one too late", _REPORT + "data.py", "(steps <= t).sum()", "(steps < t).sum()", _RUNS
    ),
    Mutation(
        "a run that goes on for longer has ended",
        _REPORT + "data.py",
        " and (not isinstance(total, int) or timestep >= total)",
        "",
        _RUNS,
    ),
    Mutation(
        "tokens and numbers of other lengths are shown",
        _REPORT + "data.py",
        'if lengths != {len(tokens["text"])} or',
        "if",
        _RUNS,
    ),
    Mutation("the last of many iterations is left out", _REPORT + "data.py", "(most - 1))] for", "most)] for", _RUNS),
    Mutation("the watched page has other files", _REPORT + "watch.py", 'r"/|/data\\.json"', 'r"/.*"', _WATCH),
    Mutation(
        "the watched page does not see a change",
        _REPORT + "watch.py",
        "if version != self._seen[0]:",
        "if self._seen[0] is None:",
        _WATCH,
    ),
    Mutation(
        "the watched page is sent again and again", _REPORT + "watch.py", "if seen == version:", "if False:", _WATCH
    ),
    Mutation(
        "a run is compared with itself", "agents/cli/compare.py", "if places.count(place) > 1:", "if False:", _RUNS
    ),
    Mutation(
        "two runs have one name", "agents/cli/compare.py", "if len(set(names)) == len(names):", "if names:", _RUNS
    ),
    Mutation(
        "values and advantages change places",
        _TOKENS,
        'numbers["value"], advantages = judged',
        'advantages, numbers["value"] = judged',
        _SAMPLES,
    ),
    Mutation(
        "the exact KL of samples is that without masks",
        _TOKENS,
        "if is_exact and task.masks.active:",
        "if False:",
        _SAMPLES,
    ),
    Mutation("all turns are one turn", _TOKENS, "number[turn.end :] += 1", "pass", _SAMPLES),
    Mutation(
        "the critic is asked about rewards without the KL",
        _TOKENS,
        "task.rewards(episode, 0, episode.log_probs)",
        "task.rewards(episode, 0, None)",
        _SAMPLES,
    ),
]
