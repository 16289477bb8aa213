"""Mistakes in what is wired together: policies, buffers, losses, worlds.

Add a mutation here for each term and each mask of a new algorithm.
"""

from __future__ import annotations

from tests.mistakes import MASK_TESTS, Mutation

_RATES_TESTS = ("tests/agents/test_rates.py",)
_TEXT_PPO = "agents/algorithms/text_ppo.py"
_TEXT_PPO_TESTS = (
    "tests/agents/algorithms/test_text_ppo.py",
    "tests/agents/algorithms/test_kl.py",
    "tests/agents/algorithms/test_pretraining_mix.py",
)
_BUFFER = "agents/rollouts/buffer.py"
_VEC_ENV_TESTS = ("tests/agents/rollouts/test_vec_env.py",)
_ORDINARY_PPO = (
    "tests/agents/algorithms/test_text_ppo.py::test_without_further_terms_an_update_is_stock_ppos_bit_for_bit"
)

WIRING = [
    Mutation(
        "a wider model gets the rate of the embedded one",
        "agents/rates.py",
        "min(1.0, WIDTH / width)",
        "1.0",
        _RATES_TESTS,
    ),
    Mutation(
        "adapters of a supervised stage get the rate of all weights",
        "agents/supervised/trainer.py",
        "width, bool(settings.lora_rank))\n",
        "width, False)\n",
        _RATES_TESTS,
    ),
    Mutation(
        "the user's own learning rate is scaled too",
        "agents/algorithms/factory.py",
        'if "learning_rate" not in given and row',
        "if row",
        _RATES_TESTS,
    ),
    Mutation(
        "a critic network beside adapters has the adapters' rate",
        "agents/algorithms/wiring.py",
        'policy.setdefault("critic_lr_scale", 1 / LORA)',
        'policy.setdefault("critic_lr_scale", 1.0)',
        _RATES_TESTS,
    ),
    Mutation(
        "a critic starts as a reward model that lacks some of the actor's tokens",
        "agents/algorithms/wiring.py",
        "classifier.shares_tokenizer and classifier.n_tokens >= task.model.lm.vocab_size",
        "classifier.shares_tokenizer",
        ("tests/agents/algorithms/test_table.py",),
    ),
    Mutation(
        "the reference does not compute as a policy whose policy_kwargs say how",
        "agents/algorithms/factory.py",
        "        if setting in policy:\n",
        "        if setting in chosen:\n",
        ("tests/agents/algorithms/test_table.py",),
    ),
    Mutation(
        "an unfinished segment's next value is dropped",
        _BUFFER,
        "unfinished = [i for i, s in enumerate(self.segments) if not s.finished]",
        "unfinished: list[int] = []",
        ("tests/agents/rollouts/test_buffer.py",),
    ),
    Mutation(
        "groups of different steps share a number",
        _BUFFER,
        "group = (self._rollouts * self.buffer_size + self.pos) * self.n_envs + slot // self.group_size",
        "group = slot % self.group_size",
        ("tests/agents/algorithms/test_text_ppo.py",),
    ),
    Mutation(
        "a subclass's term is logged and not added",
        _TEXT_PPO,
        "loss = loss + coef * term",
        "loss = loss + 0.0 * term",
        ("tests/agents/algorithms/test_text_ppo.py::test_a_subclass_adds_a_term_to_the_loss_and_to_the_log",),
    ),
    Mutation(
        "a subclass of TextPPO gives way to TextPPO where the loss has a term",
        "agents/algorithms/table.py",
        "return TextPPO if self.cls is PPO and beyond_ppo else self.cls",
        "return TextPPO if beyond_ppo else self.cls",
        ("tests/agents/algorithms/test_text_ppo.py::test_a_subclass_adds_a_term_to_the_loss_and_to_the_log",),
    ),
    Mutation(
        "the value loss is left out",
        _TEXT_PPO,
        "+ self.vf_coef * value_loss",
        "+ 0.0 * value_loss",
        (_ORDINARY_PPO,),
    ),
    Mutation(
        "the KL in the loss has the wrong sign",
        _TEXT_PPO,
        "surrogate + task.kl.coef * penalty",
        "surrogate - task.kl.coef * penalty",
        _TEXT_PPO_TESTS,
    ),
    Mutation(
        "the KL in the loss is left out",
        _TEXT_PPO,
        "surrogate + task.kl.coef * penalty",
        "surrogate + 0.0 * penalty",
        _TEXT_PPO_TESTS,
    ),
    Mutation(
        "the texts of PPO-ptx are unlearned",
        _TEXT_PPO,
        "loss = loss + self.mix.coef * ptx_loss",
        "loss = loss - self.mix.coef * ptx_loss",
        _TEXT_PPO_TESTS,
    ),
    Mutation(
        "the reward keeps the KL that the loss charges",
        "llm_env/task.py",
        "if not self.kl.in_reward:",
        "if False:",
        _TEXT_PPO_TESTS,
    ),
    Mutation(
        "values are clipped around themselves",
        _TEXT_PPO,
        "torch.clamp(values - data.old_values, -clip_vf, clip_vf)",
        "(values - data.old_values)",
        (_ORDINARY_PPO,),
    ),
    Mutation(
        "an update that runs out of memory loses the gradients of other terms",
        "agents/policies/micro_batches.py",
        "parameter.grad = before if parameter.grad is None else before.add_(parameter.grad)",
        "parameter.grad = before if parameter.grad is None else parameter.grad",
        ("tests/agents/policies/test_micro_batches.py",),
    ),
    Mutation(
        "old log-probs of mixed precision are not scored again",
        "agents/rollouts/scoring.py",
        "if policy.rescores_log_probs:",
        "if False:",
        ("tests/test_invariants.py", "tests/llm_env/test_masks.py"),
    ),
    Mutation(
        "an evaluation on the training environment is paid NaN",
        "agents/rollouts/vec_env.py",
        'return self.scoring == "deferred" and self.collecting and not self._wrapped',
        'return self.scoring == "deferred"',
        _VEC_ENV_TESTS,
    ),
    Mutation(
        "a wrapper's rewards are NaN",
        "agents/rollouts/vec_env.py",
        "self._wrapped = bool(readers)",
        "self._wrapped = False",
        _VEC_ENV_TESTS,
    ),
    Mutation(
        "log-probs are lost in a pipe",
        "agents/policies/sampled_actions.py",
        "return (SampledAction.carry, (int(self), self.log_prob, self.temperature))",
        "return (np.int64, (int(self),))",
        _VEC_ENV_TESTS,
    ),
    Mutation(
        "masks from an older actor are never refreshed",
        "agents/callbacks/mask_refresh.py",
        "if self.rollouts and self.rollouts % self.every == 0:",
        "if False:",
        MASK_TESTS,
    ),
    Mutation(
        "a critic that is not the actor's moves the actor",
        "agents/policies/critic.py",
        "return hidden.detach() if self.detach else hidden",
        "return hidden",
        ("tests/agents/policies/test_actor_critic.py",),
    ),
]

_WORLD_TESTS = ("tests/agents/rollouts/test_world_rollouts.py",)
WORLDS = [
    Mutation(
        "what a world said is left out of the segments",
        "agents/rollouts/buffer.py",
        'segment.ids += obs["input_ids"][slot, len(segment.ids) : length].tolist()',
        "pass",
        _WORLD_TESTS,
    ),
    Mutation(
        "the value behind a rollout is of the state without the answer",
        "agents/rollouts/buffer.py",
        "[self.segments[i].ids_after for i in unfinished]",
        "[self.segments[i].ids for i in unfinished]",
        _WORLD_TESTS,
    ),
    Mutation(
        "slots that wait for their worlds are trained on",
        "agents/rollouts/vec_env.py",
        "[None if slot in waited else e for slot, e in enumerate(self.batch.episodes)]",
        "list(self.batch.episodes)",
        _WORLD_TESTS,
    ),
]
