"""A causal language model on this machine as a judge: the probabilities of its answers, read off without generating."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from llm_env.lm.generate import continue_prompts
from llm_env.lm.loading import autocast
from llm_env.lm.names import LoadSettings
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import in_groups, pack
from llm_env.lm.registry import shared_causal_lm
from llm_env.reward.judges.names import local_name
from llm_env.reward.judges.reading import Reply, without_thoughts
from llm_env.reward.scores import RewardModelError
from llm_env.text.encoding import text_ids
from llm_env.text.prompts import Prompt, encode_prompt

CHUNK = 16
"""Questions that are answered together, and kept together."""
READ_TOKENS = 16_384
"""Tokens that are read at once, padding included."""
UNLIMITED = 10**9
Ids = tuple[int, ...]


class LocalJudge:
    """A causal language model whose probabilities of a few possible answers are read.

    A question is put as a user's message where the tokenizer has a chat template, and as plain text otherwise. The probability
    of an answer is that of the reply beginning with it: "1" does not count where the model would go on to "10", and the letter
    with and without a space before it is the same answer.

    Args:
        name: ``llm:NAME``.
        load: dtype, device and whether remote code may run.
        option: The option that it came from, for error messages.
        mixed_precision: ``no``, or ``bf16``: the model computes under autocast.

    Raises:
        FileNotFoundError, ValueError: the model cannot be loaded.
    """

    def __init__(self, name: str, load: LoadSettings, option: str = "judge", mixed_precision: str = "no") -> None:
        self.name = name
        self.label = f"{option}={name!r}"
        self.model = shared_causal_lm(local_name(name), load, option)
        self.mixed_precision = mixed_precision

    def replies(self, questions: Sequence[str], options: Sequence[str]) -> Iterator[tuple[int, Reply]]:
        """Answers questions.

        Args:
            questions: The questions, whole instructions.
            options: What may be answered.

        Yields:
            The place of a question, and the reply; in order.

        Raises:
            ValueError: a question is longer than the model can read.
            RewardModelError: the model's probabilities are not finite.
        """
        spellings = [option_ids(option, lambda text: text_ids(text, self.model.tokenizer)) for option in options]
        for start in range(0, len(questions), CHUNK):
            longest = max(len(ids) for s in spellings for ids in s)
            contexts = [self._prompt(question, longest - 1).ids for question in questions[start : start + CHUNK]]
            for i, logs in enumerate(self._log_probs(contexts, spellings)):
                highest = logs.max()
                if not np.isfinite(highest):
                    raise RewardModelError(f"{self.label}: its probabilities are not finite.")
                weights = np.exp(logs - highest)
                shares = weights / weights.sum()
                mass = float(min(1.0, math.exp(highest) * weights.sum()))
                yield start + i, Reply(dict(zip(options, shares.tolist(), strict=True)), mass)

    def written(self, questions: Sequence[str], max_new_tokens: int) -> Iterator[tuple[int, Reply]]:
        """Writes an answer to each question, the likeliest token each time.

        Args:
            questions: The questions, whole instructions.
            max_new_tokens: Length cap of an answer, in tokens.

        Yields:
            The place of a question, and the reply with its text; in order.

        Raises:
            ValueError: a question is longer than the model can read.
            FloatingPointError: the model's logits are NaN.
        """
        tokenizer = self.model.tokenizer
        for start in range(0, len(questions), CHUNK):
            prompts = [self._prompt(question, max_new_tokens) for question in questions[start : start + CHUNK]]
            with self.model.frozen() as lm, autocast(lm.device, self.mixed_precision):
                answers = continue_prompts(lm, prompts, self.model.eos_ids, max_new_tokens, seed=0, greedy=True)
            for i, ids in enumerate(answers):
                text = str(tokenizer.decode([t for t in ids if t < len(tokenizer)], skip_special_tokens=True))
                yield start + i, Reply(text=without_thoughts(text), finished=ids[-1] in self.model.eos_ids)

    def _prompt(self, question: str, room: int) -> Prompt:
        """A question, up to where the model's answer begins, of which `room` tokens will be read too."""
        tokenizer = self.model.tokenizer
        has_template = tokenizer.chat_template is not None
        prompt, _ = encode_prompt(
            [{"role": "user", "content": question}] if has_template else question, tokenizer, UNLIMITED
        )
        limit = self.model.lm.max_positions
        if limit is not None and len(prompt.ids) + room > limit:
            raise ValueError(
                f"{self.label}: a question has {len(prompt.ids):,} tokens, its answer {room:,}, and the model can read "
                f"{limit:,}. "
                f"Take shorter responses, or a shorter instruction. It begins {question[:60]!r}."
            )
        return prompt

    def _log_probs(self, contexts: Sequence[Ids], spellings: Sequence[set[Ids]]) -> NDArray[np.float64]:
        """Log-probability of each option behind each context, shape (questions, options), in nats."""
        whole = {ids for s in spellings for ids in s}
        # The model is read behind every beginning of an answer: behind "1" too, where "10" is two tokens.
        heads = {ids[:n] for ids in whole for n in range(len(ids))}
        following = {h: sorted({ids[len(h)] for ids in whole if ids[: len(h)] == h and ids != h}) for h in heads}
        # One pass over the longest ones reads the shorter ones too.
        longest = sorted(h for h in heads if not any(h != other and other[: len(h)] == h for other in heads))
        reads = [(c, head) for c in range(len(contexts)) for head in longest]
        steps: list[dict[Ids, dict[int, float]]] = [{} for _ in contexts]

        def run(group: list[int]) -> None:
            members = [reads[g] for g in group]
            # The token behind a head is not read; whatever stands there makes the head's last token a place that is scored.
            sequences = [(*contexts[c], *head, 0) for c, head in members]
            batch = pack(sequences, [len(contexts[c]) for c, _ in members], self.model.lm.device)
            rows = iter(packed_states(lm.trunk, batch)[batch.index])  # of each sequence len(head) + 1, each (H,)
            for c, head in members:
                for n in range(len(head) + 1):
                    log_probs = torch.log_softmax(lm.logits(next(rows)[None])[0].double(), -1)  # (V,)
                    tokens = following[head[:n]]
                    steps[c][head[:n]] = dict(zip(tokens, log_probs[tokens].tolist(), strict=True))

        with self.model.frozen() as lm, autocast(lm.device, self.mixed_precision):
            in_groups([len(contexts[c]) + len(head) for c, head in reads], READ_TOKENS, lm.device, run)
        return np.array([[option_log_prob(s, spellings, of_context) for s in spellings] for of_context in steps])


def option_ids(option: str, encode: Callable[[str], list[int]]) -> set[Ids]:
    """The token sequences by which a model may begin an answer, as it may stand behind a line's end or behind a space.

    Args:
        option: The answer, for example ``A``.
        encode: Gives a text's ids without the tokenizer's frame.
    """
    found = {tuple(encode(option)), tuple(encode(f" {option}"))}
    # Some tokenizers put a mark of a word's beginning before every text; behind a line's end a model writes none.
    for before, text in (("\n", option), (":", f" {option}")):
        head, both = encode(before), encode(before + text)
        if len(both) > len(head) and both[: len(head)] == head:
            found.add(tuple(both[len(head) :]))
    return {ids for ids in found if ids}


def option_log_prob(own: set[Ids], spellings: Sequence[set[Ids]], steps: dict[Ids, dict[int, float]]) -> float:
    """Log-probability that a reply begins with an option, and not with a longer one.

    Args:
        own: The token sequences of the option.
        spellings: Those of all options.
        steps: Log-probability of the next token behind each beginning of a sequence.

    Returns:
        The log of Σ over the option's sequences of (its probability - that of the sequences that go on from it).
    """

    def log_prob(ids: Ids) -> float:
        return sum(steps[ids[:n]][token] for n, token in enumerate(ids))

    everything = set(itertools.chain.from_iterable(spellings))

    def nearest_longer(ids: Ids) -> list[Ids]:
        longer = [other for other in everything if len(other) > len(ids) and other[: len(ids)] == ids]
        return [o for o in longer if not any(o != p and o[: len(p)] == p for p in longer)]

    highest = max(log_prob(ids) for ids in own)
    total = 0.0
    for ids in own:
        total += math.exp(log_prob(ids) - highest)
        total -= sum(math.exp(log_prob(longer) - highest) for longer in nearest_longer(ids))
    return highest + math.log(total) if total > 0 else -math.inf
