"""Decoding alone: every token of the responses but the first, which reads the prompt. No policy, no environment.

An iteration writes the responses, and their first tokens alone; the difference is noted, (response - 1) steps. What bounds it
is memory: a step reads all weights once, and each row's keys and values. ``reading`` notes how long that takes at the rate at
which this machine copies a large block, measured in the same process (a copy moves each byte twice).

python -m benchmarks.decode CASE.json RESULT.json ours|transformers|vllm|reading
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from agents.engines.engine import make_engine
from benchmarks.case import Case, Stopwatch, read_case, write_result
from llm_env.lm.causal_lm import CausalLM, load_causal_lm
from llm_env.lm.decoding import CachedDecoder
from llm_env.lm.names import LoadSettings
from llm_env.lm.sampling import choose_tokens, draw
from llm_env.lm.writer import Outlook, Writer

COPIED = 256 * 2**20
"""Bytes of the block that is copied; far more than a cache holds."""


def our_loop(lm: CausalLM, prompts: list[list[int]], longest: int) -> Callable[[int], None]:
    """Writes a number of tokens behind each prompt."""

    def choose(hidden: Tensor, drawn: Tensor | None, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        tokens, log_probs = choose_tokens(lm.logits(hidden).float(), drawn)
        return tokens, log_probs, torch.zeros_like(log_probs)

    decoder = CachedDecoder(lm, longest)
    writer, n = Writer(decoder, choose), len(prompts)
    ids, lengths = torch.tensor(prompts), torch.tensor([len(p) for p in prompts])
    never = torch.zeros(lm.vocab_size, dtype=torch.bool)

    def write(count: int) -> None:
        decoder.clear()
        decoder.ready()
        writer.write(ids, lengths, Outlook(count, torch.full((n,), count), never, goes_on=False), draw(count, n))

    return write


def an_engine(name: str, lm: CausalLM, prompts: list[list[int]], longest: int) -> Callable[[int], None]:
    """The same by an engine."""
    engine = make_engine(name, lm, longest, len(prompts))
    engine.load_weights(lm.model.named_parameters())

    def write(count: int) -> None:
        engine.generate(prompts, [count] * len(prompts), [], 1.0, 0)

    return write


def bytes_a_second(device: str) -> float:
    """The rate at which memory is read and written by a plain copy, the best of five."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    best = 0.0
    for _ in range(5):
        watch = Stopwatch(device)
        watch.start()
        target.copy_(source)
        watch.lap("copy")
        best = max(best, 2 * COPIED / watch.rows[0]["copy"][0])
    return best


def bytes_of_steps(lm: CausalLM, case: Case) -> int:
    """What (response - 1) steps must read: weights, of which an input embedding is a row, and keys and values so far."""
    config, item, model = lm.config, lm.model.dtype.itemsize, lm.model
    embedding: Any = model.get_input_embeddings().weight
    is_head = embedding is model.get_output_embeddings().weight
    weights = sum(p.nbytes for p in model.parameters()) - (0 if is_head else embedding.nbytes)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * size * item
    return sum(weights + case.batch * (case.prompt + step) * token for step in range(1, case.response))


def main(case_path: str, result_path: str, who: str) -> None:
    """Runs one contender on a case, and writes the result.

    Args:
        case_path: Case, as `benchmarks.case.write_case` wrote it.
        result_path: JSON file to write.
        who: ``ours``, ``reading``, or the name of an engine.
    """
    case, models = read_case(case_path)
    if case.threads:
        torch.set_num_threads(case.threads)
    lm = load_causal_lm(
        models["actor"], LoadSettings("bfloat16" if case.precision == "bf16" else "float32", case.device)
    )
    prompts, _ = case.script(lm.vocab_size)
    watch = Stopwatch(case.device)
    if who == "reading":
        seconds = bytes_of_steps(lm, case) / bytes_a_second(case.device)
        watch.rows = [{"generate": [seconds, seconds]} for _ in range(case.warmup + case.iterations)]
    else:
        longest = case.prompt + case.response
        write = our_loop(lm, prompts, longest) if who == "ours" else an_engine(who, lm, prompts, longest)
        for _ in range(case.warmup + case.iterations):
            taken = []
            for count in (1, case.response):
                before = watch.now()
                write(count)
                taken.append([b - a for a, b in zip(before, watch.now(), strict=True)])
            watch.rows.append({"generate": [whole - first for first, whole in zip(*taken, strict=True)]})
    write_result(result_path, case, watch, {})


if __name__ == "__main__":
    main(*sys.argv[1:])
