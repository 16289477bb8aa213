"""Mistakes around comparisons: A/B tests, arenas, strengths, regrets."""

from __future__ import annotations

from tests.mistakes import Mutation

_SEQUENTIAL = ("tests/agents/evaluation/test_sequential.py",)
_STRENGTHS = ("tests/agents/evaluation/test_strengths.py",)
_PLAY = ("tests/agents/iteration/test_arena.py",)
_AB = ("tests/agents/preferences/test_ab.py",)

_CHAT = ("tests/agents/chat/test_chat.py",)
_SPEAKER = ("tests/agents/chat/test_speaker.py",)

CHAT = [
    Mutation(
        "an answer on the chat page is markup",
        "agents/chat/page.py",
        "        text = html.escape(token.text)\n",
        "        text = token.text\n",
        _CHAT,
    ),
    Mutation(
        "a user's message on the chat page is markup",
        "agents/chat/page.py",
        "{html.escape(turn.message)}</div>",
        "{turn.message}</div>",
        _CHAT,
    ),
    Mutation(
        "the left answer is the first actor's",
        "agents/chat/log.py",
        "np.random.default_rng(seed).permutation(count)",
        "np.arange(count + 0 * seed)",
        _CHAT,
    ),
    Mutation(
        "a thumb is for what stands at its place in the file",
        "agents/chat/session.py",
        "return conversation.order(len(conversation.turns) - 1)[shown]",
        "return shown",
        _CHAT,
    ),
    Mutation(
        "the conversation goes on with the worse answer",
        "agents/chat/log.py",
        "return max(0, self.better or 0)",
        "return 0 if self.better in (None, TIE) else 1 - (self.better or 0)",
        _CHAT,
    ),
    Mutation(
        "files that follow from the events are not made again",
        "agents/chat/log.py",
        'Remove the line.") from error\n            self._write()',
        'Remove the line.") from error',
        _CHAT,
    ),
    Mutation(
        "somebody reads another's conversation",
        "agents/chat/page.py",
        "conversation is not None and conversation.person == person",
        "conversation is not None and person",
        _CHAT,
    ),
    Mutation(
        "the KL's sign is turned",
        "agents/chat/speaker.py",
        "kls = (both[0][0] - both[1][0]).tolist()",
        "kls = (both[1][0] - both[0][0]).tolist()",
        _SPEAKER,
    ),
    Mutation(
        "values are those of a critic as it began",
        "agents/chat/speaker.py",
        "            critic.load_state_dict(tensors)\n",
        "            assert tensors\n",
        _SPEAKER,
    ),
    Mutation(
        "half a character is drawn",
        "llm_env/rendering.py",
        'if now.endswith("\\ufffd") and i + 1 < len(ids) and ids[i + 1] not in ends:',
        "if False:",
        ("tests/llm_env/test_env.py::test_a_character_of_several_tokens_is_drawn_with_the_last_of_them",),
    ),
]

_TOP = ("tests/agents/policies/test_top_layers.py",)

CRITIC = [
    Mutation(
        "a critic on the lower layers sends its loss into them",
        "agents/policies/top_layers.py",
        "        with torch.no_grad():\n            return self.shared",
        "        with torch.enable_grad():\n            return self.shared",
        _TOP,
    ),
    Mutation(
        "a critic's own blocks are the actor's",
        "agents/policies/top_layers.py",
        "    top = list(theirs)[-count:]\n",
        "    top = list(shared)[-count:]\n    assert theirs\n",
        _TOP,
    ),
    Mutation(
        "a critic's own blocks are the first ones",
        "agents/policies/top_layers.py",
        "    top = list(theirs)[-count:]\n",
        "    top = list(theirs)[:count]\n",
        _TOP,
    ),
    Mutation(
        "the actor's layers are saved with its critic",
        "agents/policies/top_layers.py",
        'object.__setattr__(self, "shared", shared)',
        "self.shared = shared",
        _TOP,
    ),
    Mutation(
        "a reward model of the actor's shape is left aside",
        "agents/policies/critic.py",
        "if same_shape(config, source.trunk.config):",
        "if not same_shape(config, source.trunk.config):",
        _TOP,
    ),
    Mutation(
        "a critic that begins as the reward model does not know the scores' shift",
        "agents/policies/critic.py",
        "mean - source.reward_shift * std",
        "mean",
        ("tests/agents/policies/test_actor_critic.py",),
    ),
]

ARENA = [
    Mutation(
        "the sequential test is one for a single look",
        "agents/evaluation/sequential.py",
        "        if log_e_value(wins, losses) >= limit:",
        "        if abs(wins - losses) ** 2 > 3.84 * (wins + losses):",
        _SEQUENTIAL,
    ),
    Mutation(
        "the mixture lacks its normalization",
        "agents/evaluation/sequential.py",
        "_log_beta(wins + spread, losses + spread) - _log_beta(spread, spread)",
        "_log_beta(wins + spread, losses + spread)",
        _SEQUENTIAL,
    ),
    Mutation(
        "the loser is called better",
        "agents/evaluation/sequential.py",
        '"a" if wins > losses else "b"',
        '"b" if wins > losses else "a"',
        _SEQUENTIAL,
    ),
    Mutation(
        "a tie counts as a loss in the test",
        "agents/evaluation/sequential.py",
        "losses + (outcome < 0.5)",
        "losses + (outcome <= 0.5)",
        _SEQUENTIAL,
    ),
    Mutation(
        "strengths leave out how hard the opponents were",
        "agents/evaluation/strengths.py",
        "expected = _sigmoid(theta[:, None] - theta[None, :])",
        "expected = _sigmoid(theta[:, None] - 0 * theta[None, :])",
        _STRENGTHS,
    ),
    Mutation(
        "games on one prompt count as independent",
        "agents/evaluation/strengths.py",
        "matrices = np.array([score_matrix(games, players) for games in by_prompt])",
        "matrices = np.array([score_matrix([g], players) for games in by_prompt for g in games])",
        _STRENGTHS,
    ),
    Mutation(
        "A's wins are B's",
        "agents/preferences/ab.py",
        "return float(ranks[A] < ranks[B])",
        "return float(ranks[A] > ranks[B])",
        _AB,
    ),
    Mutation(
        "a prompt that two people compared counts twice",
        "agents/preferences/ab.py",
        "first.setdefault(ranking.candidates.id, ranking)",
        "first[ranking.candidates.id + ranking.annotator] = ranking",
        _AB,
    ),
    Mutation(
        "a test that was interrupted answers anew",
        "agents/preferences/ab.py",
        "            if i >= len(kept):\n",
        "            if True:\n",
        _AB,
    ),
    Mutation(
        "best of n keeps the first",
        "agents/preferences/sampling.py",
        "key=s.__getitem__",
        "key=lambda i: -i",
        _AB,
    ),
    Mutation(
        "a schedule's second round has the first's method",
        "agents/iteration/settings.py",
        "self.schedule[(number - 1) % len(self.schedule)]",
        "self.schedule[0]",
        ("tests/agents/iteration/test_arena.py::test_each_round_has_its_method_and_its_settings",),
    ),
    Mutation(
        "the arena trains on what was won too",
        "agents/iteration/settings.py",
        'select = self.select or (("lost",) if self.opponent else ())',
        "select = self.select",
        _PLAY,
    ),
    Mutation(
        "only the last round's games count for the strengths",
        "agents/iteration/arena.py",
        "    for n in range(number + 1):\n        for _, record in read_records",
        "    for n in range(number, number + 1):\n        for _, record in read_records",
        _PLAY,
    ),
    Mutation(
        "the winner of a game is its loser",
        "agents/iteration/arena.py",
        "float(ranks[i] < ranks[j])",
        "float(ranks[i] > ranks[j])",
        ("tests/agents/iteration/test_arena.py::test_games_come_from_ranks_and_strengths_from_games",),
    ),
    Mutation(
        "a schedule's DPO is held to the first actor",
        "agents/iteration/settings.py",
        'reference = self.reference or "previous"',
        "reference = self.reference",
        ("tests/agents/iteration/test_arena.py::test_each_round_has_its_method_and_its_settings",),
    ),
    Mutation(
        "people may not find two responses equally good",
        "agents/preferences/page.py",
        "if len(set(ranks)) == 1 and not self.answers.may_tie:",
        "if len(set(ranks)) == 1:",
        ("tests/agents/preferences/test_page.py",),
    ),
    Mutation(
        "a worker goes on when its parent was killed",
        "scripts/lab/comparison/jobs.py",
        "        os._exit(1)\n",
        "        pass\n",
        ("tests/scripts/test_compare.py::test_a_worker_ends_with_the_process_that_made_it",),
    ),
    Mutation(
        "regret is to the worst of a cell",
        "scripts/lab/comparison/regret.py",
        "= max(means.values()) - mean",
        "= min(means.values()) - mean",
        ("tests/scripts/test_suite.py",),
    ),
    Mutation(
        "a run of other settings passes for a candidate's",
        "scripts/lab/comparison/pool.py",
        'wanted |= {"params": json.loads(json.dumps(job.params)), "tokens": job.tokens}',
        'wanted |= {"tokens": job.tokens}',
        ("tests/scripts/test_suite.py",),
    ),
]
