"""Mistakes that open a page for people to those whom it is not for."""

from __future__ import annotations

from tests.mistakes import Mutation

_PAGE = "agents/local_page.py"
_TESTS = ("tests/agents/test_local_page.py",)

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
    Mutation("a page takes uploads", _PAGE, "if not NEEDED.fullmatch(path):", "if False:", _TESTS),
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
        "hmac.compare_digest(morsel.value.encode(), self.secret.encode())",
        "morsel.value == self.secret",
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
]
