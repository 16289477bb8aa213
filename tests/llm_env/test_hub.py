"""Models and datasets that the hub has or has not: one question, and one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from llm_env.hub import why_not
from llm_env.lm.loading import load_tokenizer
from llm_env.text.prompts import read_prompts


class Hub:
    """A stand-in for `huggingface_hub.HfApi`."""

    asked: ClassVar[list[tuple[str, str]]] = []
    answer: ClassVar[Exception | None] = None

    def repo_info(self, name: str, repo_type: str, timeout: float) -> None:
        self.asked.append((name, repo_type))
        assert 0 < timeout <= 30
        if self.answer is not None:
            raise self.answer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Hub]:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(Hub, "asked", [])
    return Hub


def http(kind: Any, status: int) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, f"{status}")
    return error  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, None),
        (http(errors.RepositoryNotFoundError, 404), "the hub has no such model, or none that you may see"),
        (http(errors.HfHubHTTPError, 503), None),
        (errors.HFValidationError("Repo id must use alphanumeric chars"), "the hub has no such names"),
        (OSError("Name or service not known\nmore"), "the hub cannot be asked: Name or service not known"),
    ],
)  # fmt: skip
def test_why_a_model_cannot_be_had(hub: type[Hub], answer: Any, reason: str | None, monkeypatch: Any) -> None:
    monkeypatch.setattr(hub, "answer", answer)
    assert why_not("someone/model", "model") == reason
    assert hub.asked == [("someone/model", "model")]


def test_what_is_in_the_cache_is_not_asked_for(hub: type[Hub], tmp_path: Path) -> None:
    (tmp_path / "models--someone--model").mkdir()
    assert why_not("someone/model", "model") is None
    assert hub.asked == []
    assert why_not("someone/model", "dataset") is None
    assert hub.asked == [("someone/model", "dataset")]


def test_a_name_that_is_nowhere_is_one_line(hub: type[Hub], monkeypatch: Any) -> None:
    monkeypatch.setattr(hub, "answer", OSError("no network"))
    with pytest.raises(
        ValueError, match=r"^judge='nowhere': there is no such folder here, and the hub cannot be asked: no net"
    ):
        load_tokenizer("nowhere", "judge")
    with pytest.raises(
        ValueError,
        match=r"^prompts='nowhere': neither a file .* \(the hub cannot be asked: no network\)",
    ):
        read_prompts("nowhere")
    assert hub.asked == [("nowhere", "model"), ("nowhere", "dataset")]
