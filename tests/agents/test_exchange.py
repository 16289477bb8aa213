from __future__ import annotations

from typing import Any

import pytest

from agents.exchange import ActorAgent, reward_from_verifiers, trl_reward
from llm_env.default_task import DEFAULT_MODEL
from llm_env.reward.functions import FunctionReward


def test_a_verifier_scores_in_trl_as_here() -> None:
    reward = trl_reward("verifier:number?column=answer")
    assert reward.__name__ == "number"
    scores = reward(
        prompts=["1+1?", [{"role": "user", "content": "2+2?"}]],
        completions=["It is 2.", [{"role": "assistant", "content": "5"}]],
        answer=["2", "4"],
        completion_ids=[[1], [2]],
        trainer_state=object(),
    )
    assert scores == [1.0, 0.0]


def length(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(len(r)) for r in responses]


def test_a_function_of_two_arguments_is_given_two() -> None:
    assert trl_reward(length)(prompts=["a"], completions=["bcd"], answer=["x"]) == [3.0]
    assert trl_reward(length).__name__ == "length"


@pytest.mark.filterwarnings("ignore")  # of the trainer, which is not ours
def test_it_runs_in_a_trainer_of_trl(tmp_path: Any) -> None:
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    seen: list[Any] = []

    def remembered(prompts: list[str], responses: list[str], answer: list[str]) -> list[float]:
        seen.extend(answer)
        return length(prompts, responses)

    trainer = trl.GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL),
        reward_funcs=[trl_reward(remembered)],
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=6,
            use_cpu=True,
            report_to=[],
            bf16=False,
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": "The room was", "answer": "4"}] * 4),
        processing_class=AutoTokenizer.from_pretrained(DEFAULT_MODEL),
    )
    trainer.train()
    assert seen == ["4"] * 4
    assert any("remembered" in key for row in trainer.state.log_history for key in row)


def test_a_reward_of_verifiers_is_called_for_each_response() -> None:
    def exact(completion: Any, answer: str, **_: Any) -> float:
        return float(completion[-1]["content"] == answer)

    def of_prompt(prompt: Any) -> int:
        return len(prompt[0]["content"])

    ours = FunctionReward(reward_from_verifiers(exact))
    assert ours.score_texts(["p", "p"], ["4", "5"], [{"answer": "4"}, {"answer": "4"}]) == [1.0, 0.0]
    assert FunctionReward(reward_from_verifiers(of_prompt)).score_texts(["abc"], ["x"]) == [3.0]


def test_what_cannot_be_called_so_is_refused() -> None:
    async def later(completion: Any) -> float:
        return 1.0

    def with_state(completion: Any, state: Any) -> float:
        return 1.0

    with pytest.raises(TypeError, match="coroutine"):
        reward_from_verifiers(later)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'state'"):
        reward_from_verifiers(with_state)


def test_an_actor_answers_texts() -> None:
    agent = ActorAgent(DEFAULT_MODEL, max_new_tokens=8, seed=3)
    first, second = agent("Review of a hotel:\n"), agent("Review of a hotel:\n")
    assert first.strip()
    assert first != second  # each answer is drawn anew
    again = ActorAgent(DEFAULT_MODEL, max_new_tokens=8, seed=3)
    assert [again("Review of a hotel:\n"), again("Review of a hotel:\n")] == [first, second]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        ActorAgent("./nosuch")
