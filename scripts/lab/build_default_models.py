"""Builds the embedded default from nothing: tokenizer, actor, reward model and prompts, in a few minutes on two cores.

    python scripts/lab/build_default_models.py --output-dir llm_env/default_task/assets

1. Text: reviews from `llm_env.default_task.grammar`.
2. Tokenizer: byte-level BPE of 1,024 tokens, so that it can also write text that the grammar never saw.
3. Actor: a Llama of about one million parameters, trained on the reviews (plain next-token cross-entropy).
4. Reward model: the actor's trunk with a scalar head, trained with the Bradley-Terry loss
   (InstructGPT, Ouyang et al. 2022, eq. 1, https://arxiv.org/abs/2203.02155) on pairs that a noisy annotator
   ordered: text 1 wins with probability σ(gold 1 - gold 2), the Bradley-Terry model itself, so that the loss has
   a finite optimum, the gold score up to a shift. Half of the texts are the actor's own, the others from the
   grammar: as they come, the best of four, or spoiled. Scores are normalized to mean 0 and standard deviation 1 over the
   actor's responses; the two numbers are kept in the model's `config.json`.
5. Prompts: one topic in six is held out, from the reward model's pairs as well. The actor has read them all.

What was measured goes to `build.json` beside the models.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from agents.console import PlainConsole
from agents.files import write_json, write_text
from llm_env.default_task.gold import gold_score, score_review
from llm_env.default_task.grammar import HELD_OUT_TOPICS, all_prompts, spoil, topic_of, write_review
from llm_env.lm.loading import quiet_loading

console = PlainConsole(soft_wrap=False)
Item = TypeVar("Item", bound=tuple[Any, ...])
BATCH = 32  # reviews, or pairs: for models this small, more steps teach more than larger batches


@dataclass
class Args:
    """Build the embedded default models."""

    output_dir: Path = Path("llm_env/default_task/assets")
    """Folder to write actor/, reward_model/, prompts.jsonl, heldout_prompts.jsonl and build.json into."""
    reviews: int = 50_000
    """Reviews that the actor is trained on, each once."""
    pairs: int = 40_000
    """Ordered pairs that the reward model is trained on, each once."""
    measured: int = 2000
    """Held-out pairs that the reward model's accuracy is measured on, and responses that its scores are normalized with."""
    seed: int = 0
    """Seed of the text, the weights and the batches."""
    threads: int = 0
    """CPU threads; 0 takes torch's default."""


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 1,024 tokens that puts a start token before every text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def llama_config(tokenizer: PreTrainedTokenizerFast, layers: int, **extra: Any) -> LlamaConfig:
    """A Llama of width 128; `extra` are further entries of the configuration."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        **extra,
    )


def pad(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pads rows with 0; returns ids (n, longest) and lengths (n,)."""
    lengths = torch.tensor([len(r) for r in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, lengths


def batches(items: list[Item], size: int, rng: random.Random) -> list[list[Item]]:
    """Shuffled batches of members of similar length.

    Args:
        items: Tuples that begin with a list of token ids.
        size: Items in a batch.
        rng: Shuffles.
    """
    # by length in steps of four tokens, at random within a step
    order = sorted(items, key=lambda item: (len(item[0]) // 4, rng.random()))
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    rng.shuffle(groups)
    return groups


def optimize(
    model: torch.nn.Module,
    groups: list[list[Item]],
    loss_of: Callable[[list[Item]], torch.Tensor],
    peak_lr: float,
    label: str,
) -> float:
    """One pass over `groups` with AdamW, warm-up and a cosine to zero.

    Args:
        model: Model to train; left in eval mode.
        groups: Batches.
        loss_of: Loss of a batch, a scalar.
        peak_lr: Learning rate after the warm-up of a twentieth of the steps.
        label: Text beside the progress bar.

    Returns:
        Mean loss of the last tenth of the steps.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, weight_decay=0.01, fused=True)
    warm_up = max(1, len(groups) // 20)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=warm_up),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(groups) - warm_up),
        ],
        [warm_up],
    )
    losses = []
    model.train()
    for group in track(groups, description=label, console=console, disable=not console.is_terminal):
        loss = loss_of(group)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    return statistics.mean(losses[-max(1, len(losses) // 10) :])


def train_actor(tokenizer: PreTrainedTokenizerFast, args: Args, rng: random.Random) -> tuple[LlamaForCausalLM, float]:
    """Next-token training on prompt, review and end token; the loss is on the review."""
    prompts = all_prompts()
    items = []
    for _ in range(args.reviews):
        prompt = rng.choice(prompts)
        start = tokenizer.encode(prompt)
        end = tokenizer.encode(" " + write_review(rng, prompt), add_special_tokens=False)
        items.append(([*start, *end, tokenizer.eos_token_id], len(start)))
    torch.manual_seed(args.seed)
    model = LlamaForCausalLM(llama_config(tokenizer, layers=4))

    def loss_of(group: list[tuple[list[int], int]]) -> torch.Tensor:
        ids, lengths = pad([row for row, _ in group])
        starts = torch.tensor([start for _, start in group])
        place = torch.arange(ids.shape[1])
        labels = ids.masked_fill((place < starts[:, None]) | (place >= lengths[:, None]), -100)
        return model(input_ids=ids, labels=labels).loss

    loss = optimize(model, batches(items, BATCH, rng), loss_of, 3e-3, "actor")
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model, loss


@torch.no_grad()
def respond(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> list[list[int]]:
    """One sampled response of at most 32 tokens to each prompt, its end token included where it has one."""
    responses: list[list[int]] = []
    lm: Any = model  # transformers types `generate` for a subclass only
    for i in range(0, len(prompts), 256):
        batch = tokenizer(prompts[i : i + 256], return_tensors="pt", padding=True, padding_side="left")
        out = lm.generate(**batch, do_sample=True, max_new_tokens=32, top_k=0)
        for row in out[:, batch["input_ids"].shape[1] :].tolist():
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            responses.append(row[:end])
    return responses


def decode(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """The text of a response, without its end token."""
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def score(model: LlamaForSequenceClassification, rows: list[list[int]]) -> torch.Tensor:
    """The scalar head at each row's last token, shape (n,)."""
    ids, lengths = pad(rows)
    hidden = model.model(input_ids=ids).last_hidden_state
    return model.score(hidden[torch.arange(len(rows)), lengths - 1])[:, 0]


def make_pairs(
    actor: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], count: int, rng: random.Random
) -> list[tuple[list[int], list[int], float]]:
    """Pairs of the actor's response and a text of the grammar, in the order of a noisy annotator.

    Args:
        actor: Writes one side of each pair.
        tokenizer: Its tokenizer.
        prompts: Prompts to draw from.
        count: Number of pairs.
        rng: Draws prompts, texts and the annotator's choices.

    Returns:
        Ids of prompt and winner, ids of prompt and loser, and the winner's gold score less the loser's.
    """
    drawn = [rng.choice(prompts) for _ in range(count)]
    pairs = []
    for prompt, response in zip(drawn, respond(actor, tokenizer, drawn), strict=True):
        sides: list[tuple[float, list[int]]] = []
        for side in range(2):
            if side == 0:
                ids = response
            else:
                text = write_review(rng, prompt)
                kind = rng.random()
                if kind < 0.3:
                    text = spoil(rng, text)
                elif kind < 0.6:  # what a better policy will write must be in the data
                    text = max((write_review(rng, prompt) for _ in range(4)), key=score_review)
                ids = [*tokenizer.encode(" " + text, add_special_tokens=False)[:31], tokenizer.eos_token_id]
            sides.append((gold_score([prompt], [decode(tokenizer, ids)])[0], ids))
        (gold, first), (other_gold, second) = sides
        start = tokenizer.encode(prompt)
        # Bradley-Terry: the first wins with probability σ(gold - other_gold)
        if rng.random() < 1 / (1 + math.exp(other_gold - gold)):
            pairs.append((start + first, start + second, gold - other_gold))
        else:
            pairs.append((start + second, start + first, other_gold - gold))
    return pairs


def train_reward_model(
    actor: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, args: Args, rng: random.Random
) -> tuple[LlamaForSequenceClassification, dict[str, float]]:
    """Bradley-Terry on pairs for the training topics; accuracy on pairs for the held-out ones."""
    prompts = [p for p in all_prompts() if topic_of(p) not in HELD_OUT_TOPICS]
    held_out = [p for p in all_prompts() if topic_of(p) in HELD_OUT_TOPICS]
    torch.manual_seed(args.seed + 1)
    model = LlamaForSequenceClassification(llama_config(tokenizer, layers=3, num_labels=1))
    state = actor.model.state_dict()
    model.model.load_state_dict({k: v for k, v in state.items() if not k.startswith("layers.3.")})

    def loss_of(group: list[tuple[list[int], list[int], float]]) -> torch.Tensor:
        scores = score(model, [better for better, _, _ in group] + [worse for _, worse, _ in group])
        better, worse = scores.chunk(2)
        return -torch.nn.functional.logsigmoid(better - worse).mean()

    pairs = make_pairs(actor, tokenizer, prompts, args.pairs, rng)
    loss = optimize(model, batches(pairs, BATCH, rng), loss_of, 2e-3, "reward model")

    with torch.no_grad():
        test = make_pairs(actor, tokenizer, held_out, args.measured, rng)
        margins = score(model, [b for b, _, _ in test]) - score(model, [w for _, w, _ in test])
        gold_margins = torch.tensor([margin for _, _, margin in test])
        clear = gold_margins != 0
        # what scores are normalized with: the actor's responses to prompts that were trained on
        drawn = [rng.choice(prompts) for _ in range(args.measured)]
        responses = respond(actor, tokenizer, drawn)
        scores = score(model, [tokenizer.encode(p) + r for p, r in zip(drawn, responses, strict=True)])
    model.config.score_mean = float(scores.mean())
    model.config.score_std = float(scores.std())
    gold = gold_score(drawn, [decode(tokenizer, ids) for ids in responses])
    correlation = torch.corrcoef(torch.stack([scores, torch.tensor(gold)]))[0, 1]
    return model, {
        "reward_model_loss": loss,
        "reward_model_training_pairs": len(pairs),
        "reward_model_heldout_pairs": len(test),
        "reward_model_heldout_accuracy": float((margins > 0).float().mean()),
        "annotator_heldout_accuracy": float((gold_margins[clear] > 0).float().mean()),
        "reward_model_heldout_gold_accuracy": float((margins * gold_margins > 0)[clear].float().mean()),
        "reward_model_gold_correlation": float(correlation),
        "actor_gold_mean": statistics.mean(gold),
        "actor_gold_std": statistics.stdev(gold),
    }


def main(args: Args) -> None:
    """Builds and writes everything; prints the measurements and eight samples."""
    if args.threads:
        torch.set_num_threads(args.threads)
    start = time.time()
    rng = random.Random(args.seed)
    prompts = all_prompts()
    texts = [f"{p} {write_review(rng, p)}" for p in rng.choices(prompts, k=20_000)]
    tokenizer = train_tokenizer(texts)
    actor, actor_loss = train_actor(tokenizer, args, rng)
    reward_model, measured = train_reward_model(actor, tokenizer, args, rng)

    out = args.output_dir
    with quiet_loading():
        for name, model in (("actor", actor), ("reward_model", reward_model)):
            model.save_pretrained(out / name)
            tokenizer.save_pretrained(out / name)
    held_out = [p for p in prompts if topic_of(p) in HELD_OUT_TOPICS]
    kept = [p for p in prompts if topic_of(p) not in HELD_OUT_TOPICS]
    for name, members in (("prompts", kept), ("heldout_prompts", held_out)):
        write_text(out / f"{name}.jsonl", "".join(json.dumps({"prompt": p}) + "\n" for p in members))
    report = {
        "actor_parameters": sum(p.numel() for p in actor.parameters()),
        "reward_model_parameters": sum(p.numel() for p in reward_model.parameters()),
        "actor_loss_nats_per_token": actor_loss,
        **measured,
        "prompts": len(kept),
        "heldout_prompts": len(held_out),
        "heldout_topics": list(HELD_OUT_TOPICS),
        "seed": args.seed,
        "reviews": args.reviews,
    }
    write_json(out / "build.json", report)
    console.print_json(data=report)
    shown = rng.sample(held_out, 8)
    for prompt, ids in zip(shown, respond(actor, tokenizer, shown), strict=True):
        console.print(f"{prompt}{decode(tokenizer, ids)}")
    console.print(f"built {out} in {time.time() - start:.0f} s")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
