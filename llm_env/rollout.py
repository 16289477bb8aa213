"""Responses of a causal LM to given prompts, as scored episodes, for evaluation and samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llm_env.episode import Episode
from llm_env.lm.causal_lm import CausalLM
from llm_env.lm.decoding import CachedDecoder
from llm_env.lm.sampling import restrict, sample_tokens
from llm_env.slots import EpisodeSlots, Start
from llm_env.task import TextTask
from llm_env.text.prompts import Prompt


@torch.no_grad()
def respond(
    lm: CausalLM,
    task: TextTask,
    prompts: Sequence[Prompt | None],
    seed: int,
    batch_size: int = 128,
    deterministic: bool = False,
    mixed_precision: bool = False,
    mask: str = "none",
) -> list[Episode]:
    """One response to each prompt, with log π, log π_ref and score; torch's global random state is not touched.

    Args:
        lm: The actor.
        task: Has the end tokens, the length cap, the temperature, the reference and the reward model.
        prompts: The prompts to respond to; with a world, what each is told of, None where there is none.
        seed: Seed of the sampling, and of the worlds.
        batch_size: Number of prompts that are answered at once.
        deterministic: Whether to take the likeliest token instead of sampling.
        mixed_precision: Whether the actor computes under bf16 autocast.
        mask: ``none``; ``reference`` or ``actor``: the task's masks apply, with top-k and top-p of that model.

    Returns:
        Ended episodes, in the prompts' order.
    """
    generator = torch.Generator(device=lm.device).manual_seed(seed)
    masked = mask != "none" and task.masks.active
    was_training = lm.model.training
    lm.model.eval()
    finished: list[Episode] = []
    with torch.autocast(lm.device.type, torch.bfloat16, enabled=mixed_precision):
        for start in range(0, len(prompts), batch_size):
            group = prompts[start : start + batch_size]
            # A group has slots and a cache for itself; it takes as many steps as its longest response has tokens.
            batch = EpisodeSlots(task, len(group), score_steps=False)
            batch.seed(np.random.default_rng([seed, start]))
            episodes = batch.begin_all([Start(slot, prompt) for slot, prompt in enumerate(group)])
            decoder = CachedDecoder(lm, task.max_length)
            while any(episode is not None for episode in batch.episodes):
                observation = batch.observation()
                hidden = decoder.hidden(
                    torch.from_numpy(observation["input_ids"]), torch.from_numpy(observation["length"])
                )
                logits = lm.logits(hidden).float() / task.settings.temperature  # (slots, V); idle rows are ignored
                if masked:
                    # Top-k and top-p look at the actor's logits here, or, with None, at the task's reference.
                    allowed = torch.from_numpy(batch.action_masks(logits if mask == "actor" else None))
                    logits = restrict(logits, allowed.to(logits.device))
                actions, log_probs = sample_tokens(logits, deterministic, generator)
                batch.step(actions.cpu().numpy(), log_probs.cpu().numpy().astype(np.float64))
                # Ended rows become idle, which the decoder skips; the episodes themselves are in `episodes`.
                for slot, episode in enumerate(batch.episodes):
                    if episode is not None and episode.done:
                        batch.idle(slot)
            batch.close()
            finished.extend(episodes)
    lm.model.train(was_training)
    # Whole responses are scored at once, in packed batches.
    task.score_reference(finished)
    task.score_responses(finished)
    return finished
