"""Mistakes in `llm_env`: decoding, probabilities, rewards, texts."""

from __future__ import annotations

from tests.mistakes import LEARNING, MASK_TESTS, Mutation

_DECODING = "llm_env/lm/decoding.py"
_DECODING_TESTS = ("tests/llm_env/lm/test_decoding.py",)
_FORMULA_TESTS = ("tests/llm_env/reward/test_formula.py",)

DECODING = [
    Mutation(
        "a row's cache is used for another text of the same length",
        _DECODING,
        "((ids[:, :width] == self._tokens[:, :width]) | ~inside).all(1) & (self._lengths > 0)",
        "self._lengths > 0",
        _DECODING_TESTS,
    ),
    Mutation(
        "the cache outlives a change of the weights",
        _DECODING,
        "        self._stale = True\n",
        '        if getattr(self, "_n_rows", 0):\n            return\n        self._stale = True\n',
        (*_DECODING_TESTS, "tests/test_invariants.py::test_at_learning_rate_zero_the_ratio_is_one"),
    ),
    Mutation(
        "rows change places when the cache is compacted",
        _DECODING,
        "self._row_of_slot[used] = torch.arange(n_used)",
        "self._row_of_slot[used] = torch.arange(n_used).flip(0)",
        _DECODING_TESTS,
    ),
    Mutation(
        "a new token is written over the one before",
        _DECODING,
        "columns[self._row_of_slot[used]] = self._lengths[used]",
        "columns[self._row_of_slot[used]] = (self._lengths[used] - 1).clamp(min=0)",
        _DECODING_TESTS,
    ),
    Mutation(
        "a token is predicted from itself",
        "llm_env/lm/packing.py",
        "_tensor(places) + p - 1 for",
        "(_tensor(places) + p).clamp(max=sum(read) - 1) for",
        ("tests/llm_env/lm/test_packing.py",),
    ),
    Mutation(
        "positions run on from one packed sequence to the next",
        "llm_env/lm/packed_attention.py",
        "torch.cat([torch.arange(n) for n in batch.lengths])",
        "torch.arange(sum(batch.lengths))",
        ("tests/llm_env/lm/test_packed_attention.py",),
    ),
    Mutation(
        "what three sequences have in common is shared by two",
        "llm_env/lm/prefixes.py",
        "= which[there : there + length]",
        "= np.arange(there, there + length)",
        ("tests/llm_env/lm/test_prefixes.py",),
    ),
    Mutation(
        "the tokens that are read stand where they are in the row, not in their sequence",
        "llm_env/lm/packed_attention.py",
        "positions[sequences.first]",
        "positions[: len(sequences.first)]",
        ("tests/llm_env/lm/test_prefixes.py",),
    ),
    Mutation(
        "a part of a batch has the prefixes of another part",
        "llm_env/lm/packing.py",
        "self.shared.part(start, stop)",
        "self.shared.part(0, stop - start)",
        ("tests/llm_env/lm/test_prefixes.py",),
    ),
    Mutation(
        "the kernel for packed sequences sees ahead",
        "llm_env/lm/varlen_attention.py",
        '{"window_size": (-1, 0), ',
        '{"window_size": (-1, -1), ',
        ("tests/llm_env/lm/test_varlen_attention.py",),
    ),
    Mutation(
        "the kernel for packed sequences is tried without gradients",
        "llm_env/lm/varlen_attention.py",
        "in zip((got, *gradients), (want, *want_gradients), strict=True)",
        "in zip((got,), (want,), strict=True)",
        ("tests/llm_env/lm/test_varlen_attention.py",),
    ),
]

PROBABILITIES = [
    Mutation(
        "the temperature is left out of log-probs",
        "llm_env/lm/log_probs.py",
        "            scaled = scaled / temperature\n",
        "            scaled = scaled / 1.0\n",
        ("tests/llm_env/lm/test_log_probs.py",),
    ),
    Mutation(
        "the temperature is left out of the reference's log-probs",
        "llm_env/reward/reference.py",
        "sequence_log_probs(lm, sequences, scored, self.temperature)",
        "sequence_log_probs(lm, sequences, scored, 1.0)",
        ("tests/test_invariants.py::test_at_learning_rate_zero_the_ratio_is_one",),
    ),
    Mutation(
        "masks are left out of log-probs",
        "llm_env/lm/log_probs.py",
        "logits = restrict(logits.float(), unpack_bits(bits, lm.vocab_size))",
        "logits = logits.float()",
        MASK_TESTS,
    ),
    Mutation(
        "masks are worked out and not handed on",
        "llm_env/slots.py",
        "masks[busy] = rules.of(",
        "rules.of(",
        (*MASK_TESTS, f"{LEARNING}[maskable_ppo]"),
    ),
    Mutation(
        "a response may end one token too late",
        "llm_env/masks.py",
        "< self.min_new_tokens] &= ~self.eos",
        "<= self.min_new_tokens] &= ~self.eos",
        MASK_TESTS,
    ),
    Mutation(
        "top-p leaves out the token that reaches p",
        "llm_env/lm/sampling.py",
        "keep = before < p",
        "keep = before + ordered.softmax(-1) < p",
        MASK_TESTS,
    ),
]

REWARDS = [
    Mutation(
        "the KL penalty is paid instead of charged",
        "llm_env/reward/formula.py",
        "rewards = -kl_coef * penalties",
        "rewards = kl_coef * penalties",
        _FORMULA_TESTS,
    ),
    Mutation(
        "k3 with the ratio upside down",
        "llm_env/reward/kl.py",
        "np.expm1(-k1) + k1",
        "np.expm1(k1) - k1",
        _FORMULA_TESTS,
    ),
    Mutation(
        "the score is paid on the first token",
        "llm_env/reward/formula.py",
        "rewards[-1] += final_score",
        "rewards[0] += final_score",
        _FORMULA_TESTS,
    ),
    Mutation(
        "a wrapper adds the policy's part of the KL with the wrong sign",
        "llm_env/wrappers.py",
        "reward - self.env.unwrapped.task.kl.coef *",
        "reward + self.env.unwrapped.task.kl.coef *",
        ("tests/llm_env/test_env.py",),
    ),
    Mutation(
        "the penalty for a missing end is dropped",
        "llm_env/task.py",
        "missing_end = 0.0 if episode.has_end else rules.missing_eos_penalty",
        "missing_end = 0.0",
        ("tests/llm_env/test_env.py",),
    ),
    Mutation(
        "a response goes on one token beyond the cap",
        "llm_env/episode.py",
        "len(self.response_ids) >= max_new_tokens",
        "len(self.response_ids) > max_new_tokens",
        ("tests/llm_env/test_episode.py",),
    ),
    Mutation(
        "observations are padded with an end token",
        "llm_env/task.py",
        "        return self.vocab_size\n",
        "        return min(self.eos_ids)\n",
        ("tests/llm_env/test_env.py",),
    ),
    Mutation(
        "the reward model does not see the end token",
        "llm_env/reward/classifier.py",
        "            return episode.ids\n",
        "            return [i for i in episode.ids if i != self.tokenizer.eos_token_id]\n",
        ("tests/llm_env/reward/test_models.py",),
    ),
    Mutation(
        "a reward model is read at its last token, whatever that is",
        "llm_env/reward/reading.py",
        "while pad is not None and length > 1 and ids[length - 1] == pad:",
        "while False:",
        ("tests/llm_env/reward/test_reading.py",),
    ),
    Mutation(
        "the trial of a reward model takes the first way",
        "llm_env/reward/reading.py",
        "    return bool((got - want).abs().max() <= allowed)\n",
        "    return True\n",
        ("tests/llm_env/reward/test_reading.py",),
    ),
    Mutation(
        "scores come back in the order in which they were grouped",
        "llm_env/reward/reading.py",
        "    return out[order.argsort()]\n",
        "    return out\n",
        ("tests/llm_env/reward/test_reading.py",),
    ),
    Mutation(
        "a reward model is trained at another token than it is read at",
        "agents/supervised/reward_model/trainer.py",
        "pooled_length(s, self.pad) for s in sequences",
        "len(s) for s in sequences",
        ("tests/agents/supervised/test_reward_model.py::test_what_is_trained_is_what_is_scored",),
    ),
    Mutation(
        "the reference is trained too",
        "llm_env/lm/registry.py",
        "        freeze(lm.model)\n",
        "",
        ("tests/test_invariants.py::test_frozen_models_are_bit_identical_after_training",),
    ),
    Mutation(
        "the exact KL has the gradient of its integrand only",
        "llm_env/lm/log_probs.py",
        "        pi = log_pi.exp()\n",
        "        pi = log_pi.exp().detach()\n",
        ("tests/agents/algorithms/test_kl.py",),
    ),
    Mutation(
        "the reference wears the policy's adapters",
        "llm_env/lm/registry.py",
        "layer._disable_adapters = True",
        "layer._disable_adapters = False",
        ("tests/agents/policies/test_actor_critic.py",),
    ),
    Mutation(
        "step scoring goes on with the reference of before a refresh",
        "llm_env/reward/reference.py",
        "if self._version != self.reference.version:",
        "if self._version > self.reference.version:",
        ("tests/agents/callbacks/test_reference_refresh.py::test_step_scoring_notices_a_refresh",),
    ),
]

TEXTS = [
    Mutation(
        "prompts are cut one token short",
        "llm_env/text/prompts.py",
        "cut = max(0, len(ids) - max_prompt_length)",
        "cut = max(0, len(ids) - max_prompt_length + 1)",
        ("tests/llm_env/text/test_prompts.py",),
    ),
    Mutation(
        "prompts are cut on the right",
        "llm_env/text/prompts.py",
        "tuple(ids[cut:])",
        "tuple(ids[: len(ids) - cut])",
        ("tests/llm_env/text/test_prompts.py",),
    ),
    Mutation(
        "the prompt's tokens are learned with the response's",
        "llm_env/text/texts.py",
        "return EncodedText([*ids, *end], len(prompt.ids))",
        "return EncodedText([*ids, *end], 1)",
        ("tests/llm_env/text/test_texts.py",),
    ),
]

_TURN_TESTS = ("tests/llm_env/test_turns.py",)
TURNS = [
    Mutation(
        "turns are paid with an episode's first token",
        "llm_env/task.py",
        "rewards[turn.end - 1 - start] += turn.reward",
        "rewards[0] += turn.reward",
        ("tests/llm_env/test_turns.py::test_deferred_scoring_pays_what_steps_pay",),
    ),
    Mutation(
        "deferred scoring forgets what earlier turns were paid",
        "llm_env/task.py",
        "for turn in episode.turns:",
        "for turn in episode.turns[-1:]:",
        (*_TURN_TESTS, "tests/agents/rollouts/test_world_rollouts.py"),
    ),
    Mutation(
        "the world's tokens are scored too",
        "llm_env/episode.py",
        "for span in self.spans if span.is_action for",
        "for span in self.spans[1:] for",
        _TURN_TESTS,
    ),
    Mutation(
        "a chunk looks at stale columns",
        "llm_env/lm/decoding.py",
        "<= positions.columns[:, :, None])[:, None]",
        "<= positions.columns[:, :, None] + 1)[:, None]",
        _DECODING_TESTS,
    ),
    Mutation(
        "a chunk's last state is that of the longest chunk",
        "llm_env/lm/decoding.py",
        "last = (after - before - 1).to(device)",
        "last = (after - before - 1).clamp(min=chunk - 1).to(device)",
        _DECODING_TESTS,
    ),
    Mutation(
        "a conversation is read from its start at each turn",
        "llm_env/lm/decoding.py",
        "if longer.any() and not self._can_read_chunks():",
        "if longer.any():",
        _DECODING_TESTS,
    ),
    Mutation(
        "a turn that was cut gets no end token in a chat",
        "llm_env/text/turns.py",
        "missing = [] if last_id == end_token else [end_token]",
        "missing: list[int] = []",
        _TURN_TESTS,
    ),
    Mutation(
        "templates that drop thoughts pass",
        "llm_env/text/turns.py",
        "                if whole[: len(frame)] != frame:",
        "                if False:",
        _TURN_TESTS,
    ),
    Mutation(
        "a group's worlds have seeds of their own",
        "llm_env/slots.py",
        "begun[slot] = begun[like]._replace(slot=slot)",
        "begun[slot] = begun[like]._replace(slot=slot, seed=begun[like].seed + slot)",
        _TURN_TESTS,
    ),
    Mutation(
        "a world is waited for without end",
        "llm_env/worlds/calls.py",
        "call.future.result(max(0.0, call.deadline - time.monotonic()))",
        "call.future.result()",
        ("tests/llm_env/test_turns.py::test_a_world_that_hangs_is_left_behind",),
    ),
    Mutation(
        "a failed world is used again",
        "llm_env/worlds/calls.py",
        "        self.drop(slot)\n        return fault",
        "        return fault",
        ("tests/llm_env/test_turns.py::test_a_world_that_hangs_is_left_behind", *_TURN_TESTS),
    ),
    Mutation(
        "after a checkpoint the world begins anew",
        "llm_env/turns.py",
        "for turn in turns:\n                ids =",
        "for turn in turns[:0]:\n                ids =",
        _TURN_TESTS,
    ),
]
