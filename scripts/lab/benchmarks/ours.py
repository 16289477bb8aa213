"""Contenders on stable-baselines3: ours, and the same stock algorithm without what makes it fast.

python -m benchmarks.ours CASE.json RESULT.json VARIANT, where VARIANT is an algorithm and its options: ppo, ppo+naive, a2c …
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

import agents.engines.ahead
import llm_env.lm.sampling
from agents import make_algorithm
from agents.algorithms.table import algorithm as algorithm_row
from agents.engines.engine import Engine, Turn, make_engine
from agents.policies.actor_critic import LLMActorCriticPolicy
from agents.rollouts.vec_env import LLMTextVecEnv
from benchmarks.case import Case, Stopwatch, read_case, write_result
from llm_env.lm.runtime import SPEED_PATCHES, VARIABLE
from llm_env.lm.sampling import pick_tokens
from llm_env.lm.writer import Writer
from llm_env.text.prompts import Prompt

LEARNING_RATE = 1e-5


class GivenPrompts:
    """A `PromptSet` that is made of token ids instead of text."""

    def __init__(self, ids: list[list[int]]) -> None:
        self.prompts = [Prompt(f"prompt {i}", tuple(prompt), index=i) for i, prompt in enumerate(ids)]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self.prompts[index]


class Script:
    """Replaces what the policy drew by the script's tokens; it draws all the same, for that is part of the time.

    Args:
        policy: The policy that acts.
        venv: Tells which prompt each slot has.
        prompt: Length of each prompt, in tokens.
        responses: Token ids of each prompt's response.
    """

    def __init__(
        self, policy: LLMActorCriticPolicy, venv: LLMTextVecEnv, prompt: int, responses: list[list[int]]
    ) -> None:
        self.venv, self.prompt = venv, prompt
        longest = max(map(len, responses))
        self.table = torch.tensor([[*r, *[0] * (longest - len(r))] for r in responses])  # (prompts, longest)
        module: Any = llm_env.lm.sampling  # the module that looks `pick_tokens` up
        module.pick_tokens = self.pick
        self._writer, policy._writer = policy._writer, self.writer  # type: ignore[method-assign]
        self._sample, policy._sample = policy._sample, self.sample  # type: ignore[method-assign, assignment]

    def note(self, lengths: torch.Tensor, rows: Any) -> None:
        """Notes where each slot begins, and how to know the slots of n rows and the step since."""
        self.rows, busy = rows, [0 if e is None else e.prompt.index for e in self.venv.batch.episodes]
        longest = self.table.shape[1]
        places = lengths.cpu()[:, None] - self.prompt + torch.arange(longest)  # (slots, steps)
        # A row of the script for each slot, and one more for rows that belong to none.
        script = self.table[torch.tensor([*busy, 0])].gather(1, places[[*range(len(busy)), 0]].clamp(0, longest - 1))
        self.script = script.to(lengths.device)

    def writer(self) -> Any:
        """The policy's writer, which tells where each slot begins."""
        writer: Any = self._writer()

        def write(ids: torch.Tensor, lengths: torch.Tensor, *args: Any) -> Any:
            self.note(lengths.to(writer.device), lambda n: (writer._desk.slots[:n], writer._desk.at))
            return Writer.write(writer, ids, lengths, *args)

        writer.write = write
        return writer

    def sample(self, hidden: torch.Tensor, lengths: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The policy's `_sample`, which tells how far each slot is; it looks at those that are not idle."""
        self.note(lengths, lambda n: (lengths.nonzero()[:, 0], torch.zeros_like(lengths[:1])))
        return self._sample(hidden, lengths, *args)

    def pick(self, log_probs: torch.Tensor, drawn: torch.Tensor | None) -> torch.Tensor:
        """The script's tokens, (rows,); arguments and results are `pick_tokens`'."""
        pick_tokens(log_probs, drawn)
        return self.script[self.rows(len(log_probs))]


class Objective(BaseCallback):
    """Keeps the means of the first iteration's log-probs, KL and scores."""

    def __init__(self) -> None:
        super().__init__()
        self.infos: list[dict[str, Any]] = []
        self.means: dict[str, float] = {}

    def _on_step(self) -> bool:
        if not self.means:
            self.infos += [info for info in self.locals["infos"] if "episode" in info]
        return True

    def _on_rollout_end(self) -> None:
        if not self.means:
            names = {"log_prob": "log_prob", "kl": "kl", "score": "rm_score"}
            self.means = {name: float(np.mean([i[key] for i in self.infos])) for name, key in names.items()}


class ScriptedEngine:
    """An engine that writes as many tokens as the script has behind each prompt, which then take their place."""

    def __init__(self, engine: Engine, prompts: list[list[int]], responses: list[list[int]]) -> None:
        self.engine = engine
        self.responses = {tuple(p): r for p, r in zip(prompts, responses, strict=True)}

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Hands the weights on."""
        self.engine.load_weights(weights)

    def generate(
        self, prompts: Sequence[list[int]], room: Sequence[int], end_ids: Sequence[int], temperature: float, seed: int
    ) -> list[Turn]:
        """The script's turns, once the engine has written its own, of the same lengths."""
        script = [self.responses[tuple(prompt)] for prompt in prompts]
        self.engine.generate(prompts, [len(response) for response in script], [], temperature, seed)
        return [Turn(list(response)) for response in script]


def build(case: Case, models: dict[str, str], variant: str) -> OnPolicyAlgorithm:
    """The algorithm, on the case's models and prompts.

    Args:
        case: The case.
        models: Folders of ``actor``, ``reference`` and ``reward``.
        variant: Name of the algorithm, and options after it, each with a plus sign: ``naive``, ``stepped``, ``unshared``,
            ``critic=reward_model``, ``engine=transformers``.
    """
    algorithm, *options = variant.split("+")
    prompts, responses = case.script(_vocab_size(models["actor"]))
    naive = "naive" in options
    if naive or "unshared" in options:  # naive reads every prefix from its start, whoever has read it before
        os.environ[VARIABLE] = ",".join(name for name in SPEED_PATCHES if name != "prefixes")
    if naive and case.lengths != "equal":
        sys.exit("naive has no way to leave idle slots out of its rollout; equal lengths only")
    venv = LLMTextVecEnv(
        case.batch, episodes="synchronous", scoring="step" if naive else "deferred", model=models["reference"],
        reward_model=models["reward"], prompts=["x"], max_prompt_length=case.prompt, max_new_tokens=case.response,
        device=case.device, mixed_precision=case.precision,
    )  # fmt: skip
    venv.task.prompts = GivenPrompts(prompts)  # type: ignore[assignment]
    venv.batch.seed(np.random.default_rng(0))
    critic = next((o.removeprefix("critic=") for o in options if o.startswith("critic=")), "head")
    policy: dict[str, Any] = {"model": models["actor"], "critic": critic, "mixed_precision": case.precision}
    policy["planned"] = "stepped" not in options
    policy["engine"] = next((o.removeprefix("engine=") for o in options if o.startswith("engine=")), None)
    if policy["engine"] is not None:
        ahead: Any = agents.engines.ahead  # the module that looks `make_engine` up
        ahead.make_engine = lambda *given: ScriptedEngine(make_engine(*given), prompts, responses)
    if critic == "reward_model":
        policy["reward_model"] = models["reward"]
    settings: dict[str, Any] = {"learning_rate": LEARNING_RATE, "gamma": 1.0, "device": case.device, "seed": 0}
    if algorithm == "ppo":
        settings.update(n_epochs=case.epochs, batch_size=-(-case.tokens() // case.mini_batches))
        if case.lengths == "spread":  # whole responses do not fill mini-batches exactly
            settings["batch_size"] += case.response // 2
    if naive:
        policy.update(use_cache=False, entropy_grad=False)
        row = algorithm_row(algorithm)
        settings = {**row.defaults, "normalize_advantage": True, "n_steps": case.response, **settings}
        model: Any = row.cls(row.policy, venv, policy_kwargs=policy, **settings)
    else:
        model = make_algorithm(algorithm, env=venv, policy_kwargs=policy, **settings)
    Script(model.policy, venv, case.prompt, responses)
    return model


def _vocab_size(folder: str) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(folder).vocab_size)


def timed(model: OnPolicyAlgorithm, watch: Stopwatch) -> None:
    """Puts the stopwatch around the algorithm's three phases, and leaves alone what they do."""
    collect, train = model.collect_rollouts, model.train
    score = model.rollout_buffer.compute_returns_and_advantage

    def timed_collect(*args: Any, **kwargs: Any) -> bool:
        watch.start()
        result = collect(*args, **kwargs)
        watch.lap("generate")  # what came after the scoring: next to nothing
        return result

    def timed_score(*args: Any, **kwargs: Any) -> None:
        watch.lap("generate")
        score(*args, **kwargs)
        watch.lap("score")

    def timed_train() -> None:
        train()
        watch.lap("train")

    model.collect_rollouts, model.train = timed_collect, timed_train  # type: ignore[method-assign]
    model.rollout_buffer.compute_returns_and_advantage = timed_score  # type: ignore[method-assign]


def main(case_path: str, result_path: str, variant: str) -> None:
    """Runs one contender on a case, and writes the result.

    Args:
        case_path: Case, as `benchmarks.case.write_case` wrote it.
        result_path: JSON file to write.
        variant: See `build`.
    """
    case, models = read_case(case_path)
    if case.threads:
        torch.set_num_threads(case.threads)
    model = build(case, models, variant)
    watch, objective = Stopwatch(case.device), Objective()
    timed(model, watch)
    model.set_logger(configure(None, []))
    model.learn(case.batch * case.response * (case.warmup + case.iterations), callback=objective)
    parameters = sum(p.numel() for p in model.policy.parameters())
    write_result(result_path, case, watch, objective.means, parameters=parameters)


if __name__ == "__main__":
    main(*sys.argv[1:])
