"""Mistakes around stars, corrections and what people say in conversations."""

from __future__ import annotations

from tests.mistakes import Mutation

_STARS = ("tests/agents/preferences/test_stars.py",)
_CORRECTIONS = ("tests/agents/preferences/test_corrections.py",)
_CONVERSATIONS = ("tests/agents/conversations/test_conversations.py",)
_HACKS = ("tests/agents/supervised/test_hacks.py",)
_MLP = ("tests/agents/supervised/test_mlp_head.py",)
_RECORDS = ("tests/agents/preferences/test_preferences.py",)
_PAGE = ("tests/agents/preferences/test_page.py",)
_STAR_LOSSES = ("tests/agents/supervised/test_stars.py",)

FEEDBACK = [
    Mutation(
        "lists of Parquet are arrays to those who read preferences",
        "llm_env/text/records.py",
        "for name in names if isinstance(name, str)]).to_pylist()",
        'for name in names if isinstance(name, str)]).to_pandas().to_dict("records")',
        _RECORDS,
    ),
    Mutation(
        "what a table does not say counts as said",
        "agents/preferences/fields.py",
        "if v is not None and (v",
        "if (v",
        _RECORDS,
    ),
    Mutation(
        "a pair's sides may begin with different messages",
        "agents/preferences/records.py",
        "starts == [start] * 2",
        "starts[0] == start",
        _RECORDS,
    ),
    Mutation(
        "a pair that is written forgets that its better side was cut off",
        "agents/preferences/selection.py",
        '{"chosen_finished": False}',
        "{}",
        _CORRECTIONS,
    ),
    Mutation(
        "a last record without its line end is dropped",
        "agents/preferences/records.py",
        'file.write(b"\\n")',
        "file.truncate(start)",
        _PAGE,
    ),
    Mutation(
        "few stars stand above many",
        "agents/preferences/stars.py",
        "sorted(set(stars.values()), reverse=True)",
        "sorted(set(stars.values()))",
        _STARS,
    ),
    Mutation(
        "stars of all annotators are one ranking",
        "agents/preferences/records.py",
        "(prompt_key(one.candidates.prompt), one.annotator, one.aspect)",
        "(prompt_key(one.candidates.prompt), '', one.aspect)",
        _STARS,
    ),
    Mutation(
        "stars go to the responses in the order of the page",
        "agents/preferences/page.py",
        "chosen[order[place]] = int(choice or 0)",
        "chosen[place] = int(choice or 0)",
        _STARS,
    ),
    Mutation(
        "a ranking that was there counts as stars",
        "agents/preferences/answers.py",
        "if self.in_stars and ranking.stars is None:",
        "if False:",
        _STARS,
    ),
    Mutation(
        "ranking and stars may contradict each other",
        "agents/preferences/records.py",
        "if by_stars is not None and list(map(set, tiers)) != list(map(set, by_stars)):",
        "if False:",
        _STARS,
    ),
    Mutation(
        "the lower threshold of a number of stars is that of the next",
        "agents/supervised/reward_model/stars.py",
        "lower = thresholds[(stars - 2).clamp(min=0)] - scores",
        "lower = thresholds[(stars - 1).clamp(max=MOST - 2)] - scores",
        _STAR_LOSSES,
    ),
    Mutation(
        "thresholds may cross",
        "agents/supervised/reward_model/stars.py",
        "self.first + softplus(self.steps).cumsum(0)",
        "self.first + self.steps.cumsum(0)",
        _STAR_LOSSES,
    ),
    Mutation(
        "expected stars begin at none",
        "agents/supervised/reward_model/stars.py",
        "return 1 + (1 / (1 + np.exp(",
        "return 0 + (1 / (1 + np.exp(",
        _STAR_LOSSES,
    ),
    Mutation(
        "under LoRA the thresholds stay where they began",
        "agents/supervised/reward_model/train.py",
        'for name in ("thresholds", "mlp_head") if',
        'for name in ("mlp_head",) if',
        _STAR_LOSSES,
    ),
    Mutation(
        "the response is preferred to its correction",
        "agents/preferences/corrections.py",
        "((better.id,), (original.id,))",
        "((original.id,), (better.id,))",
        _CORRECTIONS,
    ),
    Mutation(
        "a text that was left as it is counts as a correction",
        "agents/preferences/corrections.py",
        "return bool(text.strip()) and text.strip() != response.text.strip()",
        "return bool(text.strip())",
        _CORRECTIONS,
    ),
    Mutation(
        "corrections go to the responses in the order of the page",
        "agents/preferences/page.py",
        'texts[order[place]] = text or ""',
        'texts[place] = text or ""',
        _CORRECTIONS,
    ),
    Mutation(
        "a corrector is asked again",
        "agents/preferences/corrector.py",
        "for q in questions if journal.reply(q) is None}",
        "for q in questions}",
        _CORRECTIONS,
    ),
    Mutation(
        "a rewritten text that was cut off ends there",
        "agents/preferences/corrector.py",
        "reply.finished is not False",
        "True",
        _CORRECTIONS,
    ),
    Mutation(
        "a corrector samples",
        "llm_env/reward/judges/local.py",
        "seed=0, greedy=True",
        "seed=0",
        _CORRECTIONS,
    ),
    Mutation(
        "rounds leave corrections out",
        "agents/iteration/judging.py",
        "first = correction_rankings(read_corrections(folder / CORRECTIONS_FILE))",
        "first = correction_rankings(read_corrections(folder / CORRECTIONS_FILE)[:0])",
        _CORRECTIONS,
    ),
    Mutation(
        "a refusal with thanks around it is praise",
        "agents/conversations/classifiers.py",
        "next((rule.label for rule in self.rules if",
        "next((rule.label for rule in reversed(self.rules) if",
        _CONVERSATIONS,
    ),
    Mutation(
        "a user's turn is said of the answer behind it",
        "agents/conversations/log.py",
        "before, answer, reply = messages[: place - 1], messages[place - 1], messages[place]",
        "before, answer, reply = messages[: place - 1], messages[(place + 1) % len(messages)], messages[place]",
        _CONVERSATIONS,
    ),
    Mutation(
        "what says nothing is a bad response",
        "agents/conversations/collect.py",
        "if label not in (POSITIVE, NEGATIVE):",
        "if label is None:",
        _CONVERSATIONS,
    ),
    Mutation(
        "precision and recall are one another",
        "agents/conversations/report.py",
        '"precision": proportion(hit, sum(counts[true, label] for true in LABELS)),',
        '"precision": proportion(hit, sum(counts[label, true] for true in LABELS)),',
        _CONVERSATIONS,
    ),
    Mutation(
        "the letters of the two opinions are swapped",
        "agents/conversations/classifiers.py",
        'BY_LETTER = {"A": POSITIVE, "B": NEGATIVE, "C": NONE}',
        'BY_LETTER = {"A": NEGATIVE, "B": POSITIVE, "C": NONE}',
        _CONVERSATIONS,
    ),
    Mutation(
        "single responses of one label are all good",
        "agents/supervised/rows.py",
        '"label": one.is_good})',
        '"label": True})',
        _CONVERSATIONS,
    ),
    Mutation(
        "a hidden unit is the score",
        "llm_env/reward/classifier.py",
        "return mlp(values)[:, 0]",
        "return values[:, 0]",
        _MLP,
    ),
    Mutation(
        "a critic starts as half of an MLP head",
        "llm_env/reward/classifier.py",
        "return ScoreHead(head, mlp)",
        "return head",
        _MLP,
    ),
    Mutation(
        "under LoRA half of an MLP head stays as it was drawn",
        "agents/supervised/reward_model/train.py",
        'for name in ("thresholds", "mlp_head") if',
        'for name in ("thresholds",) if',
        _MLP,
    ),
    Mutation(
        "an MLP head is trained as another than is scored",
        "agents/supervised/reward_model/trainer.py",
        "            values = mlp(values)\n",
        "            values = mlp(values * 2)\n",
        _MLP,
    ),
    Mutation(
        "the trick is preferred to the response",
        "agents/preferences/hacks.py",
        "((better.id,), (worse.id,)),",
        "((worse.id,), (better.id,)),",
        _HACKS,
    ),
    Mutation(
        "hacks are reported on the prompts that they were trained on",
        "agents/supervised/reward_model/hacks.py",
        "sides[prompt_key(hack.candidates.prompt) in held].append(hack)",
        "sides[1 - (prompt_key(hack.candidates.prompt) in held)].append(hack)",
        _HACKS,
    ),
    Mutation(
        "a policy's find is where the reward model agrees",
        "agents/preferences/hacks.py",
        "if by_id[worse.id] - by_id[better.id] >= least",
        "if by_id[better.id] - by_id[worse.id] >= least",
        _HACKS,
    ),
    Mutation(
        "a trick that was resisted counts as one that was not",
        "agents/supervised/reward_model/hacks.py",
        "difference = by_id[better.id] - by_id[worse.id]",
        "difference = by_id[worse.id] - by_id[better.id]",
        _HACKS,
    ),
]
