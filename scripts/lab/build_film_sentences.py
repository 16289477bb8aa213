"""Builds a second task for measurements from sentences of real film reviews: tokenizer, actor, reward model, prompts.

    python scripts/lab/build_film_sentences.py --sentences cornell-movie-review-data/rotten_tomatoes

The sentences are the 10,662 of Pang and Lee 2005 ("Seeing stars", https://aclanthology.org/P05-1015), half of them praise;
they are not part of this project. A tenth is held out. The tokenizer is a byte-level BPE of 1,024 tokens, the actor a Llama
of a million parameters, trained on the others for some passes with an end token behind each, and the reward model the
actor's trunk with a scalar head, trained with the logistic loss on the labels; its scores are normalized to mean 0 and
standard deviation 1 over the actor's responses. Prompts are the first four words of sentences. What was measured goes to
`build.json` beside the models. A few minutes on one core.
"""

from __future__ import annotations

import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from transformers import GenerationConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from agents.console import PlainConsole, print_error
from agents.files import write_json, write_text
from build_default_models import BATCH, batches, decode, llama_config, optimize, pad, respond, score, train_tokenizer
from llm_env.lm.loading import quiet_loading
from llm_env.text.records import read_records

console = PlainConsole(soft_wrap=False)
PROMPT_WORDS = 4
LONGEST = 96  # tokens of a sentence that is learned from


@dataclass
class Args:
    """Build a tiny language model of film sentences, and a reward model of praise."""

    sentences: str
    """Dataset id, or file of records, with `text` and `label` (1 praises, 0 pans)."""
    output_dir: Path = Path("runs/film_sentences")
    """Folder to write actor/, reward_model/, prompts.jsonl, heldout_prompts.jsonl and build.json into."""
    passes: int = 8
    """Passes of the actor over the sentences that are not held out."""
    reward_passes: int = 3
    """Passes of the reward model over them."""
    normalized: int = 2000
    """Responses that the scores are normalized with."""
    seed: int = 0
    """Seed of the split, the weights and the batches."""
    threads: int = 0
    """CPU threads; 0 takes torch's default."""


def read_sentences(source: str) -> list[tuple[str, int]]:
    """Texts and labels.

    Raises:
        ValueError: a record lacks one of them.
    """
    found = []
    for where, record in read_records(source, "sentences"):
        if not isinstance(record, dict) or record.get("label") not in (0, 1) or not str(record.get("text", "")).strip():
            raise ValueError(f"{where}: a record must have a text and a label, 0 or 1; it is {record!r}.")
        found.append((str(record["text"]).strip(), int(record["label"])))
    return found


def train_actor(
    tokenizer: PreTrainedTokenizerFast, sentences: list[tuple[str, int]], args: Args, rng: random.Random
) -> tuple[LlamaForCausalLM, float]:
    """Next-token training on sentences and their end tokens; returns the model, and its last loss in nats a token."""
    items = [([*tokenizer.encode(text)[:LONGEST], tokenizer.eos_token_id],) for text, _ in sentences]
    torch.manual_seed(args.seed)
    model = LlamaForCausalLM(llama_config(tokenizer, layers=4))

    def loss_of(group: list[tuple[list[int]]]) -> torch.Tensor:
        ids, lengths = pad([row for (row,) in group])
        labels = ids.masked_fill(torch.arange(ids.shape[1]) >= lengths[:, None], -100)
        return model(input_ids=ids, labels=labels).loss

    groups = [group for _ in range(args.passes) for group in batches(items, BATCH, rng)]
    loss = optimize(model, groups, loss_of, 3e-3, "actor")
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model, loss


def train_reward_model(
    actor: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    split: tuple[list[tuple[str, int]], list[tuple[str, int]]],
    args: Args,
    rng: random.Random,
) -> tuple[LlamaForSequenceClassification, float]:
    """The logistic loss on labels; returns the model, and its accuracy on held-out sentences."""
    torch.manual_seed(args.seed + 1)
    model = LlamaForSequenceClassification(llama_config(tokenizer, layers=4, num_labels=1))
    model.model.load_state_dict(actor.model.state_dict())
    # One in two is cut short, for responses are.
    items = []
    for text, label in split[0]:
        ids = tokenizer.encode(text)[:LONGEST]
        cut = rng.randrange(8, len(ids)) if len(ids) > 8 and rng.random() < 0.5 else len(ids)
        items.append((ids[:cut] + [tokenizer.eos_token_id] * (cut == len(ids)), label))

    def loss_of(group: list[tuple[list[int], int]]) -> torch.Tensor:
        labels = torch.tensor([float(label) for _, label in group])
        return torch.nn.functional.binary_cross_entropy_with_logits(score(model, [row for row, _ in group]), labels)

    groups = [group for _ in range(args.reward_passes) for group in batches(items, BATCH, rng)]
    optimize(model, groups, loss_of, 5e-4, "reward model")
    with torch.no_grad():
        rows = [[*tokenizer.encode(text)[:LONGEST], tokenizer.eos_token_id] for text, _ in split[1]]
        right = (score(model, rows) > 0) == torch.tensor([label == 1 for _, label in split[1]])
    return model, float(right.float().mean())


def main(args: Args) -> int:
    """Builds and writes everything; prints the measurements and eight samples. Returns the exit status."""
    if args.threads:
        torch.set_num_threads(args.threads)
    start = time.time()
    rng = random.Random(args.seed)
    try:
        sentences = read_sentences(args.sentences)
    except (ValueError, OSError) as error:
        print_error(error)
        return 1
    rng.shuffle(sentences)
    held_out, kept = sentences[: len(sentences) // 10], sentences[len(sentences) // 10 :]
    tokenizer = train_tokenizer([text for text, _ in kept])
    actor, loss = train_actor(tokenizer, kept, args, rng)
    reward_model, accuracy = train_reward_model(actor, tokenizer, (kept, held_out), args, rng)

    prompts = [
        sorted({" ".join(text.split()[:PROMPT_WORDS]) for text, _ in part if len(text.split()) > 2 * PROMPT_WORDS})
        for part in (kept, held_out)
    ]
    drawn = [rng.choice(prompts[0]) for _ in range(args.normalized)]
    with torch.no_grad():
        responses = respond(actor, tokenizer, drawn)
        scores = score(reward_model, [tokenizer.encode(p) + r for p, r in zip(drawn, responses, strict=True)])
    reward_model.config.score_mean, reward_model.config.score_std = float(scores.mean()), float(scores.std())

    out = args.output_dir
    out.mkdir(parents=True, exist_ok=True)
    models: dict[str, Any] = {"actor": actor, "reward_model": reward_model}
    with quiet_loading():
        for name, model in models.items():
            model.save_pretrained(out / name)
            tokenizer.save_pretrained(out / name)
    for name, members in zip(("prompts", "heldout_prompts"), prompts, strict=True):
        write_text(out / f"{name}.jsonl", "".join(json.dumps({"prompt": p}) + "\n" for p in members))
    report = {
        "sentences": len(sentences),
        "actor_parameters": sum(p.numel() for p in actor.parameters()),
        "actor_loss_nats_per_token": loss,
        "reward_model_heldout_accuracy": accuracy,
        "prompts": len(prompts[0]),
        "heldout_prompts": len(prompts[1]),
        "seed": args.seed,
    }
    write_json(out / "build.json", report)
    console.print_json(data=report)
    for prompt, ids in list(zip(drawn, responses, strict=True))[:8]:
        console.print(f"{prompt}{decode(tokenizer, ids)}")
    console.print(f"built {out} in {time.time() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
