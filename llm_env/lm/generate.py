"""Plain generation with a causal LM: no task, no scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llm_env.lm.causal_lm import CausalLM
from llm_env.lm.decoding import CachedDecoder
from llm_env.lm.sampling import check_log_probs, sample_tokens
from llm_env.text.prompts import Prompt


def prompt_room(lm: CausalLM, max_prompt_length: int, max_new_tokens: int) -> int:
    """Tokens of a prompt that are read: as many as are asked for, or what the model's positions leave beside a response.

    Args:
        lm: The model.
        max_prompt_length: Tokens of a prompt that are asked for.
        max_new_tokens: Length cap of a response, in tokens.

    Raises:
        ValueError: they leave none.
    """
    if lm.max_positions is None:
        return max_prompt_length
    room = min(max_prompt_length, lm.max_positions - max_new_tokens)
    if room < 1:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} leaves no room for a prompt: model={lm.name!r} can read {lm.max_positions} "
            "tokens. Lower it."
        )
    return room


@torch.no_grad()
def continue_prompts(
    lm: CausalLM,
    prompts: Sequence[Prompt],
    eos_ids: frozenset[int],
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    batch_size: int = 128,
    greedy: bool = False,
) -> list[list[int]]:
    """One sampled response to each prompt, end token included, without a task: nothing is scored.

    Args:
        lm: The model, in eval mode.
        prompts: The prompts to respond to.
        eos_ids: Tokens that end a response.
        max_new_tokens: Length cap of a response, in tokens.
        seed: Seed of the sampling.
        temperature: Divides the logits.
        batch_size: Number of prompts that are answered at once.
        greedy: Take the likeliest token each time instead of sampling.

    Returns:
        Token ids of each response, in the prompts' order.

    Raises:
        FloatingPointError: the model's logits are NaN.
    """
    generator = torch.Generator(device=lm.device).manual_seed(seed)
    finished: list[list[int]] = []
    for start in range(0, len(prompts), batch_size):
        group = prompts[start : start + batch_size]
        # Right-padded prefixes; a row of length 0 is finished.
        longest = max(len(p.ids) for p in group) + max_new_tokens
        ids = torch.zeros(len(group), longest, dtype=torch.long)
        lengths = torch.tensor([len(p.ids) for p in group])
        for row, prompt in enumerate(group):
            ids[row, : len(prompt.ids)] = torch.tensor(prompt.ids)
        responses: list[list[int]] = [[] for _ in group]
        decoder = CachedDecoder(lm, longest)
        steps: list[tuple[torch.Tensor, torch.Tensor]] = []  # each step's log-probs, and which rows count
        while lengths.any():
            logits = lm.logits(decoder.hidden(ids, lengths[:, None])).float() / temperature
            drawn, log_probs = sample_tokens(logits, greedy, generator)  # (rows,)
            steps.append((log_probs, lengths > 0))
            tokens = drawn.cpu()
            # Append each unfinished row's token; an end token or the cap finishes the row.
            for row in torch.nonzero(lengths)[:, 0].tolist():
                token = int(tokens[row])
                responses[row].append(token)
                ids[row, lengths[row]] = token
                lengths[row] += 1
                if token in eos_ids or len(responses[row]) == max_new_tokens:
                    lengths[row] = 0
        # At the end, so that a GPU hands over the tokens at each step and nothing else.
        log_probs, busy = (torch.stack(side).cpu() for side in zip(*steps, strict=True))
        check_log_probs(log_probs[busy].numpy())
        finished += responses
    return finished
