"""Mistakes in `agents`: advantages and files."""

from __future__ import annotations

from tests.mistakes import LEARNING, Mutation

_BEST_GOLD = "tests/agents/callbacks/test_best_gold.py"
_ADVANTAGE_TESTS = ("tests/agents/rollouts/test_advantages.py",)
_PRACTICE_TESTS = ("tests/agents/algorithms/test_practices.py",)
_RESUME_TESTS = (
    "tests/agents/runs/test_checkpoint.py",
    "tests/agents/algorithms/test_table.py::test_a_resumed_run_equals_an_uninterrupted_one",
)
ADVANTAGES = [
    Mutation(
        "a token's own part in the KL is left out where an estimate is charged",
        "agents/rollouts/buffer.py",
        "own = padded(own_kl(segments, None if self._venv is None else self._venv.task)) / scale",
        "own = np.zeros(inside.shape)",
        _PRACTICE_TESTS,
    ),
    Mutation(
        "a token's own part in the KL is not in the unit of GRPO's advantages",
        "agents/rollouts/estimators.py",
        "rollout.own_kl if self.unit is None else rollout.own_kl / self.unit(rollout)[:, None]",
        "rollout.own_kl",
        _PRACTICE_TESTS,
    ),
    Mutation(
        "ReMax's baseline is not in the unit of whitened rewards",
        "agents/rollouts/buffer.py",
        "lambda: self._greedy_scores() / scale",
        "self._greedy_scores",
        _PRACTICE_TESTS,
    ),
    Mutation(
        "a token's own part in the KL has the wrong sign",
        "llm_env/reward/formula.py",
        "return token_rewards(ref_log_probs, None, kl_coef, log_probs) - charged",
        "return charged - token_rewards(ref_log_probs, None, kl_coef, log_probs)",
        ("tests/llm_env/reward/test_formula.py",),
    ),
    Mutation(
        "advantages are whitened beside a KL in the loss",
        "agents/algorithms/wiring.py",
        'not settings.get("normalize_advantage", True) and not w.task.kl.in_loss',
        'not settings.get("normalize_advantage", True)',
        _PRACTICE_TESTS,
    ),
    Mutation(
        "lambda does not go by the critic",
        "agents/algorithms/wiring.py",
        'LAMBDA_OF_REWARD_MODEL if policy["critic"] == "reward_model" else LAMBDA_OF_OTHERS',
        "LAMBDA_OF_REWARD_MODEL",
        _PRACTICE_TESTS,
    ),
    Mutation(
        "the bound on an update's KL does not go by the length",
        "agents/algorithms/wiring.py",
        "UPDATE_COST / (w.task.kl.coef * cap)",
        "UPDATE_COST / w.task.kl.coef",
        _PRACTICE_TESTS,
    ),
    Mutation(
        "the linear learning rate ends at 0 in the last update",
        "agents/runs/learning_rate.py",
        "LinearSchedule(rate + move, move, 1.0)",
        "LinearSchedule(rate, 0.0, 1.0)",
        ("tests/agents/runs/test_faults.py",),
    ),
    Mutation(
        "advantages have the wrong sign",
        "agents/rollouts/advantages.py",
        "rewards + gamma * next_values - values, 0.0)",
        "values - rewards - gamma * next_values, 0.0)",
        (f"{LEARNING}[ppo]", f"{LEARNING}[reinforce_pp]"),
    ),
    Mutation(
        "the value of the state behind a rollout is dropped",
        "agents/rollouts/advantages.py",
        "next_values[np.arange(n), lengths - 1] = last_values",
        "next_values[np.arange(n), lengths - 1] = 0.0",
        _ADVANTAGE_TESTS,
    ),
    Mutation(
        "a turn is paid for its last token alone",
        "agents/rollouts/advantages.py",
        "np.add.at(turn_rewards, of_turn, rewards[inside])",
        "turn_rewards[of_turn] = rewards[inside]",
        _ADVANTAGE_TESTS,
    ),
    Mutation(
        "values are learned inside turns",
        "agents/rollouts/advantages.py",
        "np.where(first, advantages + values, np.where(inside, values, 0.0))",
        "np.where(inside, advantages + values, 0.0)",
        _ADVANTAGE_TESTS,
    ),
    Mutation(
        "credit does not go back from the end",
        "agents/rollouts/advantages.py",
        "delta[:, t] + gamma * gae_lambda * running",
        "delta[:, t] + 0.0 * running",
        (f"{LEARNING}[reinforce_pp]", f"{LEARNING}[grpo]"),
    ),
    Mutation(
        "a response is in its own baseline",
        "agents/rollouts/advantages.py",
        "(scores - mean) * size / (size - 1)",
        "scores - mean",
        _ADVANTAGE_TESTS,
    ),
    Mutation(
        "advantages are centered and not scaled",
        "agents/rollouts/advantages.py",
        "(advantages - mean) / (std + 1e-8)",
        "advantages - mean",
        _ADVANTAGE_TESTS,
    ),
    Mutation(
        "the greedy response's score is not subtracted",
        "agents/rollouts/advantages.py",
        "returns_to_go(rewards, lengths, gamma) - baselines[:, None]",
        "returns_to_go(rewards, lengths, gamma)",
        _ADVANTAGE_TESTS,
    ),
    Mutation(
        "the clip range has no lower side",
        "agents/algorithms/losses.py",
        "torch.clamp(ratio, 1 - clip_low, 1 + clip_high)",
        "torch.clamp(ratio, max=1 + clip_high)",
        ("tests/agents/algorithms/test_losses.py",),
    ),
    Mutation(
        "the clipped objective is an upper bound",
        "agents/algorithms/losses.py",
        "-torch.min(",
        "-torch.max(",
        ("tests/agents/algorithms/test_losses.py",),
    ),
    Mutation(
        "beta falls where the KL is too high",
        "agents/callbacks/adaptive_kl.py",
        "kl / target - 1",
        "1 - kl / target",
        ("tests/agents/callbacks/test_adaptive_kl.py::test_adaptive_kl_by_hand",),
    ),
    Mutation(
        "a gold score that falls with the score ends the run",
        "agents/callbacks/drift.py",
        "and now.score > best.score",
        "or now.score > best.score + 1e9",
        ("tests/agents/callbacks/test_drift.py::test_a_fall_counts_beyond_its_error_and_while_the_score_rises",),
    ),
    Mutation(
        "gold is compared with windows that share iterations",
        "agents/callbacks/drift.py",
        "before = mean_of(windows[:WINDOW])",
        "before = mean_of(windows[1 : WINDOW + 1])",
        ("tests/agents/callbacks/test_drift.py",),
    ),
    Mutation(
        "a run that gold ends has its last actor, not that of the best gold score",
        "agents/runs/run.py",
        "        best.restore()\n",
        "",
        (f"{_BEST_GOLD}::test_a_run_that_gold_ends_has_the_actor_of_before_the_fall",),
    ),
    Mutation(
        "a run that nothing ended goes back to its best gold score",
        "agents/runs/run.py",
        """        if kind is None:
            return None
        ending = Ending(kind, self.callback.iteration, self._go_back() if kind == "gold" else None)
""",
        '        ending = Ending(kind or "gold", self.callback.iteration, self._go_back())\n',
        (f"{_BEST_GOLD}::test_a_run_that_is_not_ended_keeps_its_last_actor",),
    ),
    Mutation(
        "the weights of the best gold score are not in the checkpoint",
        "agents/runs/run.py",
        "extra, tensors=best)",
        "extra)",
        (f"{_BEST_GOLD}::test_a_run_that_was_interrupted_ends_with_the_same_actor",),
    ),
    Mutation(
        "what is kept of the best gold score goes on learning",
        "agents/shards.py",
        "kept[name] = value.cpu().contiguous().clone()",
        "kept[name] = value.cpu().contiguous()",
        (f"{_BEST_GOLD}::test_what_is_kept_is_a_copy",),
    ),
    Mutation(
        "other weights than those of the best gold score are loaded",
        "agents/shards.py",
        "placed_like(t, targets[name])",
        "placed_like(0 * t, targets[name])",
        (f"{_BEST_GOLD}::test_a_resumed_one_keeps_what_it_had", "tests/agents/cli/test_processes.py"),
    ),
    Mutation(
        "weights are kept that were made after the best gold score",
        "agents/callbacks/best_gold.py",
        """    def _on_rollout_start(self) -> None:
        self._timestep = self.model.num_timesteps * ranks().world

    def _on_rollout_end(self) -> None:
        gold = self.metrics.last.get("rollout/gold_score")
        if gold is None or not self.metrics.row_is_due:
""",
        """    def _on_rollout_start(self) -> None:
        self._timestep = self.model.num_timesteps * ranks().world
        gold = self.metrics.last.get("rollout/gold_score")
        if gold is None:
""",
        (f"{_BEST_GOLD}::test_what_is_kept_wrote_the_last_of_the_best_rollouts",),
    ),
    Mutation(
        "an alarm that goes on is a line at each iteration",
        "agents/runs/figure.py",
        "x[np.diff(alarmed.astype(int), prepend=0) > 0]",
        "x[alarmed]",
        ("tests/agents/runs/test_figure.py",),
    ),
    Mutation(
        "the gold score ends rounds that are measured by it",
        "agents/iteration/training.py",
        ", stop_on=(NO_ALARM,))",
        ")",
        ("tests/agents/iteration/test_rounds.py::test_an_algorithm_of_sb3_as_the_method",),
    ),
    Mutation(
        "an alarm that ends a run is forgotten",
        "agents/callbacks/alarms.py",
        "return self.stopped is None",
        "return True",
        ("tests/agents/callbacks/test_drift.py::test_an_alarm_ends_training_before_another_update",),
    ),
    Mutation(
        "a beta that falls in a line stays where it was",
        "agents/callbacks/linear_kl.py",
        "self.start + share *",
        "self.start + 0 * share *",
        ("tests/agents/callbacks/test_linear_kl.py",),
    ),
]

FILES = [
    Mutation(
        "a half-written file stands under the whole one's name",
        "agents/files.py",
        'partial = path.with_name(f".{path.name}{_PARTIAL}")',
        "partial = path",
        ("tests/agents/test_files.py",),
    ),
    Mutation(
        "a damaged checkpoint is taken for a whole one",
        "agents/checksums.py",
        "if checksum(folder / name) != expected:",
        "if False:",
        ("tests/agents/runs/test_checkpoint.py",),
    ),
    Mutation(
        "a resumed run has a fresh optimizer",
        "agents/runs/checkpoint.py",
        'optimizer.load_state_dict({"state": state,',
        'optimizer.load_state_dict({"state": {},',
        _RESUME_TESTS,
    ),
    Mutation(
        "a resumed run has other random numbers",
        "agents/runs/rank_states.py",
        'torch.set_rng_state(tensors["cpu"])',
        "pass",
        _RESUME_TESTS,
    ),
    Mutation(
        "a resumed run asks its prompts in another order",
        "llm_env/text/prompts.py",
        'self._left = list(state["left"])',
        "self._left = []",
        ("tests/llm_env/text/test_prompts.py", *_RESUME_TESTS),
    ),
]
