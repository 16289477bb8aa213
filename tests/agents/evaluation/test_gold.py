"""A gold function that fails is one line, wherever it is used; a gold server is waited for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.cli import evaluate_actor, train
from agents.runs.held_out import HeldOutPrompts
from llm_env.default_task import DEFAULT_HELDOUT_PROMPTS, DEFAULT_MODEL
from llm_env.reward.scores import RewardModelError
from llm_env.settings import TaskSettings
from llm_env.task import TextTask
from tests.agents.cli.test_train import run
from tests.reward_servers import ScriptedServer


def raises(prompts: list[str], responses: list[str]) -> list[float]:
    raise KeyError("broken")


def texts(prompts: list[str], responses: list[str]) -> list[str]:
    return ["1.0"] * len(responses)


def too_few(prompts: list[str], responses: list[str]) -> list[float]:
    return [0.0]


def nan(prompts: list[str], responses: list[str]) -> list[float]:
    return [float("nan")] * len(responses)


def leaves(prompts: list[str], responses: list[str]) -> list[float]:
    raise SystemExit(0)


FAILING = [
    ("raises", "raised KeyError: 'broken' ("),
    ("texts", "must return one float for each response; it returned '1.0' for prompt"),
    ("too_few", "returned 1 scores for "),
    ("nan", "returned nan for "),
    ("leaves", "it called sys.exit(0) ("),
]


@pytest.mark.parametrize(("name", "message"), FAILING)
def test_a_gold_function_that_fails_ends_the_evaluation_with_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    output = tmp_path / "evaluation.json"
    args = evaluate_actor.Args(Path(DEFAULT_MODEL), gold=f"{__name__}:{name}", n_prompts=4, output=output)
    assert evaluate_actor.run(args) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: gold='{__name__}:{name}'")
    assert message in line
    assert not output.exists()


@pytest.mark.parametrize(("name", "message"), FAILING[-2:])
def test_a_gold_function_that_fails_ends_the_run_with_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    assert run(tmp_path / "run", "--gold", f"{__name__}:{name}") == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: gold='{__name__}:{name}'")
    assert message in line
    assert not (tmp_path / "run" / "actor").exists()


def test_held_out_evaluations_check_it_too() -> None:
    from agents.evaluation.gold import load_gold
    from agents.policies.text_policy import load_actor
    from llm_env.text.prompts import PromptSet

    task = TextTask(TaskSettings(max_new_tokens=4))
    prompts = PromptSet(DEFAULT_HELDOUT_PROMPTS, task.tokenizer, 64)
    held_out = HeldOutPrompts(prompts, task, load_gold(f"{__name__}:nan"))
    with pytest.raises(RewardModelError, match=r"^gold='.*:nan' \(.*\) returned nan for 3 of 3 responses"):
        held_out.evaluate(load_actor(Path(DEFAULT_MODEL), task), 3, 0.1)


def test_an_address_scores_an_evaluation_and_is_its_gold(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    answer = 200, {}, json.dumps({"scores": [1.0, 2.0, 3.0, 6.0]}).encode()
    output = tmp_path / "evaluation.json"
    with ScriptedServer((503, {}, b"loading"), answer) as server:
        args = evaluate_actor.Args(
            Path(DEFAULT_MODEL),
            reward_model=(server.url,),
            gold=server.url,
            n_prompts=4,
            output=output,
            reward_timeout=50,
        )
        assert evaluate_actor.run(args) == 0
    report = json.loads(output.read_text())
    assert report["rm_score"]["mean"] == report["gold_score"]["mean"] == 3.0
    assert len(json.loads(server.requests[0][2])["responses"]) == 4


def test_a_malformed_address_or_limit_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments, message in [
        (["--reward-model", "http://host:port/"], "reward_model='http://host:port/' must be http://HOST"),
        (["--gold", "http://"], "gold='http://' must be http://HOST"),
        (["--reward-timeout", "0"], "reward_timeout=0.0 must be a finite number above 0"),
        (["--reward-wait", "nan"], "reward_wait=nan must be a finite number, at least 0"),
    ]:
        assert train.main(["--output-dir", str(tmp_path / "run"), "--n-envs", "4", *arguments]) == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith(f"error: {message}")
        assert not (tmp_path / "run").exists()
