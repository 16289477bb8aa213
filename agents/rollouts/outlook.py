"""What an `LLMTextVecEnv` can foresee while a rollout is collected: how long turns can be, what ends them, what comes then."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agents.rollouts.vec_env import LLMTextVecEnv
from llm_env.lm.writer import MaskRules, Outlook


def foresee(venv: LLMTextVecEnv, steps_left: int, ids: Tensor, lengths: Tensor) -> Outlook | None:
    """What comes after an observation.

    Args:
        venv: The environment.
        steps_left: Steps until the rollout is over, and with it the weights that write.
        ids: Observed token ids, on the CPU, shape (N, L).
        lengths: Their lengths, shape (N,).

    Returns:
        None where nothing can be foreseen: the observation is not the environment's present one, what may be chosen depends on
        a model, or a turn ends with a text.
    """
    rules, observation = venv.task.masks, venv.batch.observation()
    if not venv.collecting or rules.looks_at_a_model or venv.task.ends.stop_strings:
        return None
    if not np.array_equal(observation["input_ids"], ids.numpy()):
        return None
    if not np.array_equal(observation["length"][:, 0], lengths.numpy()):
        return None
    masks = None
    if rules.active:
        table = torch.from_numpy(np.stack([rules.allowed, rules.allowed & ~rules.eos]))
        written = [0 if e is None else len(e.response_ids) - e.turn_start for e in venv.batch.episodes]
        masks = MaskRules(table, rules.min_new_tokens - torch.tensor(written))
    is_end = torch.zeros(venv.task.vocab_size, dtype=torch.bool)
    is_end[[i for i in venv.task.eos_ids if i < venv.task.vocab_size]] = True
    room = torch.tensor(_room(venv))
    # With a world the next state is the world's; a slot that takes the next prompt at once has that.
    goes_on = venv.episodes == "continuous" or venv.task.make_world is not None
    return Outlook(min(steps_left, venv.calm_steps), room, is_end, goes_on, masks)


def _room(venv: LLMTextVecEnv) -> list[int]:
    """Tokens that each slot's turn can have still: 0 where it takes no action, and at least one where it does."""
    rules, waiting = venv.task.settings, venv.batch.waiting
    room = []
    for slot, episode in enumerate(venv.batch.episodes):
        if episode is None or slot in waiting:
            room.append(0)
            continue
        left = rules.max_new_tokens - len(episode.response_ids)
        if episode.world_seed is not None:
            cap = rules.max_new_tokens if rules.max_turn_tokens is None else rules.max_turn_tokens
            turn = cap - (len(episode.response_ids) - episode.turn_start)
            # A world that failed at its reset answers the first token.
            left = 1 if episode.fault else min(left, turn, venv.task.max_length - episode.length)
        room.append(max(left, 1))
    return room
