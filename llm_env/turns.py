"""Episodes with a world: how one begins, how the world answers a turn, and how one that was saved goes on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from llm_env.episode import Episode, Turn
from llm_env.reward.shown import quoted
from llm_env.task import TextTask
from llm_env.text.messages import check_response_template, response_message
from llm_env.text.prompts import Prompt, PromptRecord, RawPrompt, encode_prompt
from llm_env.worlds.base import Answer, Fault, WorldError
from llm_env.worlds.calls import Call, WorldCalls
from llm_env.worlds.make import world_name

logger = logging.getLogger(__name__)


class WorldStart(NamedTuple):
    """Where a world's episode starts.

    Attributes:
        slot: The slot that it is in.
        record: The prompt that the world is told of; None without prompts.
        seed: The world's seed.
    """

    slot: int
    record: Prompt | None
    seed: int


def record_of(prompt: Prompt) -> PromptRecord:
    """A prompt as it was before it was encoded, with the other fields of its record."""
    messages = [{"role": role, "content": content} for role, content in prompt.messages or ()]
    return PromptRecord(messages or prompt.text, prompt.columns)


def row_of(prompt: Prompt | None) -> dict[str, Any] | None:
    """What a world finds under ``options["row"]``: the prompt, and the other fields of its record."""
    return None if prompt is None else {"prompt": record_of(prompt).prompt, **prompt.columns}


class WorldTurns:
    """The worlds of N slots.

    Args:
        task: The task, which has a world.
        n_slots: Number of slots N.

    Raises:
        WorldError: the first world could not be made.
        ValueError: the worlds take chat messages, which the tokenizer cannot read out of turns.
    """

    def __init__(self, task: TextTask, n_slots: int) -> None:
        assert task.make_world is not None
        assert task.settings.world is not None
        self.task = task
        self.settings = task.settings
        self.calls = WorldCalls(
            task.make_world, world_name(task.settings.world), n_slots, float(task.settings.world_timeout)
        )
        if self.calls.takes_messages:
            check_response_template(task.tokenizer)

    def begin(self, starts: Sequence[WorldStart]) -> list[Episode]:
        """Episodes that begin with what the worlds say at their resets, which run side by side.

        Raises:
            WorldError: one failed, and `world_errors` is ``raise``; or it could not be made.
        """
        calls = [self.calls.reset(s.slot, s.seed, row_of(s.record)) for s in starts]
        answers = [self.calls.wait(s.slot, call) for s, call in zip(starts, calls, strict=True)]
        return [self._episode(start, answer) for start, answer in zip(starts, answers, strict=True)]

    def call(self, slot: int, episode: Episode) -> Call | None:
        """Hands a slot's world the turn that has just ended; None where the world is gone already."""
        if episode.fault:
            return None
        turn = episode.response_ids[episode.turn_start :]
        return self.calls.step(slot, self._told(turn, episode.ids[: -len(turn)]))

    def _told(self, turn: Sequence[int], before: Sequence[int]) -> str | dict[str, Any]:
        """A turn as the world takes it.

        Args:
            turn: The turn's tokens.
            before: The tokens before it.
        """
        if self.calls.takes_messages:
            return response_message(self.task.tokenizer, turn, before, self.calls.tools)
        return self.task.decode(turn)

    def answer(self, slot: int, episode: Episode, call: Call | None) -> list[int]:
        """Waits for the answer to `call`, and adds the turn and the answer to the episode.

        Returns:
            The tokens that the state grew by.

        Raises:
            WorldError: the world failed, and `world_errors` is ``raise``.
        """
        if call is None:  # it failed at its reset: this turn is the episode's first and last
            self._end_turn(episode, Answer(""))
            episode.finish(episode.end)
            return []
        answer = self.calls.wait(slot, call)
        if isinstance(answer, Answer):
            try:
                return self._reply(episode, answer)
            except ValueError as error:  # messages that the chat template refuses
                answer = Fault("world_error", f"{world_name(self.settings.world or '')}: {error}")
        self._end_turn(episode, Answer(""))
        self._note(episode, answer)
        episode.finish(answer.end)
        return []

    def _reply(self, episode: Episode, answer: Answer) -> list[int]:
        """Appends the world's text to the state, as far as it fits, and ends the episode where it is time."""
        rules = self.settings
        if answer.ended:
            end = "world"
        elif len(episode.response_ids) >= rules.max_new_tokens:
            end = "response_cap"
        else:
            end = "turn_cap" if len(episode.turns) + 1 >= rules.max_turns else ""
        assert self.task.turns is not None
        suffix = self.task.turns.suffix(answer.text, episode.response_ids[-1], goes_on=not end)
        room = self.task.max_length - episode.length
        # Another turn needs room for one token at least.
        if not end and len(suffix.ids) >= room:
            end = "context_full"
        turn = self._end_turn(episode, answer)
        turn.reply = suffix.text
        # Nobody answers a last text: of an empty one nothing is left, of a long one what fits.
        turn.reply_ids = suffix.ids[:room] if suffix.text or not end else []
        episode.world_cut += suffix.cut
        if end:
            episode.finish(end)
        return turn.reply_ids

    def _end_turn(self, episode: Episode, answer: Answer) -> Turn:
        """Adds the turn under way to those that have ended."""
        start, end = episode.turn_start, len(episode.response_ids)
        turn = Turn(start, end, self.task.decode(episode.response_ids[start:]), answer.reward)
        episode.turns.append(turn)
        episode.world_info = answer.info
        return turn

    def _episode(self, start: WorldStart, answer: Answer | Fault) -> Episode:
        """An episode at its beginning."""
        if isinstance(answer, Answer):
            try:
                prompt, cut = self._first_state(answer, start.record)
            except ValueError as error:  # no text, or messages that cannot be rendered
                answer = Fault("world_error", f"{world_name(self.settings.world or '')}: {error}")
            else:
                return Episode(
                    prompt, world_seed=start.seed, record=start.record, world_info=answer.info, world_cut=cut
                )
        # Something has to be there that a policy can act on once: the episode ends with its first token.
        tokenizer = self.task.tokenizer
        token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else min(self.task.eos_ids)
        text = "" if start.record is None else start.record.text
        episode = Episode(Prompt(text, (int(token),)), world_seed=start.seed, record=start.record)
        self._note(episode, answer)
        episode.end = answer.end
        return episode

    def _first_state(self, answer: Answer, record: Prompt | None) -> tuple[Prompt, int]:
        """The state that an episode begins with: what the world says, or the prompt where it says nothing."""
        text: RawPrompt = answer.text
        if isinstance(text, str) and not text.strip():
            if record is None:
                raise ValueError("reset gave an empty text, and there are no prompts to begin with")
            text = record_of(record).prompt
        assert self.task.turns is not None
        first = self.task.turns.first(text)
        prompt, cut = encode_prompt(first, self.task.tokenizer, self.settings.max_prompt_length, tools=answer.tools)
        return _of_record(prompt, record), cut

    def _note(self, episode: Episode, fault: Fault) -> None:
        """Keeps what went wrong.

        Raises:
            WorldError: `world_errors` is ``raise``.
        """
        if self.settings.world_errors == "raise":
            said = f" to {quoted(episode.turns[-1].text)}" if episode.turns else " at its reset"
            raise WorldError(
                f"{fault.message}{said} (seed {episode.world_seed}). world_errors='end' would end such episodes and go on."
            )
        episode.fault = fault.message

    def restore(self, slot: int, saved: Mapping[str, Any], record: Prompt | None) -> Episode:
        """An episode under way as `world_state` saved it: the world is reset with its seed, and the turns are played again.

        Where the world says something else than it did then, the log says so in a line, and the episode goes on with the state
        that was saved.
        """
        start = WorldStart(slot, record, int(saved["world_seed"]))
        episode = self.begin([start])[0]
        turns = [Turn(**turn) for turn in saved["turns"]]
        said = [episode.prompt.text]
        if not episode.fault:
            before = list(saved["first_ids"])
            for turn in turns:
                ids = saved["response_ids"][turn.start : turn.end]
                answer = self.calls.wait(slot, self.calls.step(slot, self._told(ids, before)))
                before += [*ids, *turn.reply_ids]
                if isinstance(answer, Fault):
                    said.append(answer.message)
                    self._note(episode, answer)
                    episode.end = answer.end  # with its next token, for its world is gone
                    break
                said.append(self.task.turns.suffix(answer.text, 0, goes_on=True).text)  # type: ignore[union-attr]
                episode.world_info = answer.info
        messages = saved.get("first_messages")  # checkpoints of before have none
        first = None if messages is None else tuple((role, content) for role, content in messages)
        prompt = _of_record(Prompt(saved["first_text"], tuple(saved["first_ids"]), first), record)
        then = [prompt.text, *(turn.reply for turn in turns)]
        if said != then:
            logger.warning(
                "Slot %d: the world with seed %d says something else than before the checkpoint (%s), so this episode goes on "
                "otherwise than it would have. A world repeats itself if all its randomness comes from reset's seed.",
                slot,
                start.seed,
                quoted(next((new for new, old in zip(said, then, strict=False) if new != old), said[-1])),
            )
        return Episode(
            prompt,
            response_ids=list(saved["response_ids"]),
            log_probs=list(saved["log_probs"]),
            ref_log_probs=list(saved["ref_log_probs"]),
            exact_kl=list(saved["exact_kl"]),
            turns=turns,
            world_seed=start.seed,
            record=record,
            world_info=episode.world_info,
            fault=episode.fault,
            end=episode.end,
            world_cut=int(saved["world_cut"]),
        )


def world_state(episode: Episode) -> dict[str, Any]:
    """What is saved of an episode under way beside its record and its tokens, in plain values."""
    return {
        "world_seed": episode.world_seed,
        "turns": [vars(turn) for turn in episode.turns],
        "first_text": episode.prompt.text,
        "first_ids": list(episode.prompt.ids),
        "first_messages": episode.prompt.messages,
        "world_cut": episode.world_cut,
    }


def _of_record(prompt: Prompt, record: Prompt | None) -> Prompt:
    """A state that a world begins with, with the place and the fields of its record."""
    return prompt if record is None else replace(prompt, index=record.index, columns=record.columns)
