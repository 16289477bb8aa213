"""Builds the model of the second embedded task from nothing, in about two minutes on one core.

    python scripts/lab/build_guess_the_number.py --output-dir llm_env/guess_the_number/assets

1. Transcripts: players who guess at random in `llm_env.guess_the_number.world`. One in two guesses any number, whatever the
   answers; the others any number that is possible still.
2. Tokenizer: the digits, the world's answers, the opening; one token each.
3. Actor: a Llama of 0.1 million parameters, trained on the transcripts (next-token cross-entropy on all tokens): it knows the
   game's form and what answers follow which guesses, and plays at random, as one of the two.

What was measured goes to `build.json` beside the model.
"""

from __future__ import annotations

import random
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.progress import track
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agents.console import PlainConsole
from agents.files import write_json
from llm_env.guess_the_number import game_settings
from llm_env.guess_the_number.world import (
    HIGHER,
    LOWER,
    NOT_A_GUESS,
    OPENING,
    RIGHT,
    GuessTheNumber,
    listening_play,
    random_play,
)
from llm_env.lm.loading import quiet_loading
from llm_env.rollout import respond
from llm_env.settings import task_settings
from llm_env.task import TextTask
from llm_env.text.turns import TurnEncoder

console = PlainConsole(soft_wrap=False)
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = [OPENING, HIGHER, LOWER, RIGHT, NOT_A_GUESS, "\n"]
BATCH = 128
PEAK_LR = 3e-3


@dataclass
class Args:
    """Build the model that guesses at random."""

    output_dir: Path = Path("llm_env/guess_the_number/assets")
    """Folder to write actor/ and build.json into."""
    games: int = 80_000
    """Games that the model is trained on, each once."""
    measured: int = 2000
    """Games that the finished model plays, in the environment."""
    seed: int = 0
    """Seed of the games and the weights."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each digit and each word of the world; a start token before every text."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *"0123456789", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*map(re.escape, WORDS), "[0-9]"])), "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def transcript(tokenizer: PreTrainedTokenizerFast, world: GuessTheNumber, rng: random.Random) -> list[int]:
    """The ids of a game of a random player, as the environment lays them out: opening, then guess, end token and answer."""
    turns = TurnEncoder(tokenizer, frozenset({tokenizer.eos_token_id}), max_world_tokens=8)
    text, _ = world.reset(seed=rng.randrange(2**31))
    ids: list[int] = tokenizer.encode(text)
    listens = rng.random() < 0.5
    low, high, done = 1, world.largest, False
    while not done:
        guess = rng.randint(low, high) if listens else rng.randint(1, world.largest)
        answer, _, done, _, _ = world.step(str(guess))
        low, high = (guess + 1, high) if answer == HIGHER else (low, guess - 1)
        ids += [*tokenizer.encode(str(guess), add_special_tokens=False), tokenizer.eos_token_id]
        ids += turns.suffix(answer, tokenizer.eos_token_id, goes_on=not done).ids
    return ids


def train(tokenizer: PreTrainedTokenizerFast, games: list[list[int]], seed: int) -> tuple[LlamaForCausalLM, float]:
    """One pass over the games with AdamW and a cosine to zero; returns the model and its last loss, in nats a token."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=176,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        )
    )
    groups = [games[i : i + BATCH] for i in range(0, len(games), BATCH)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=len(groups), pct_start=0.05)
    model.train()
    losses = []
    for group in track(groups, description="model", console=console, disable=not console.is_terminal):
        batch = tokenizer.pad({"input_ids": group}, return_tensors="pt", padding_side="right")
        ids = batch["input_ids"]
        labels = ids.masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=ids, attention_mask=batch["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model, sum(losses[-20:]) / len(losses[-20:])


def main(args: Args) -> None:
    """Builds and writes everything; prints the measurements and four games."""
    start = time.time()
    rng = random.Random(args.seed)
    tokenizer = make_tokenizer()
    games = [transcript(tokenizer, GuessTheNumber(), rng) for _ in range(args.games)]
    model, loss = train(tokenizer, games, args.seed)
    with quiet_loading():
        model.save_pretrained(args.output_dir / "actor")
        tokenizer.save_pretrained(args.output_dir / "actor")
    task = TextTask(task_settings(game_settings(str(args.output_dir / "actor"))))
    games_played = respond(task.model.lm, task, [None] * args.measured, args.seed)
    world = GuessTheNumber()
    players = [play(world.largest, world.guesses) for play in (random_play, listening_play)]
    report = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss_nats_per_token": loss,
        "found": statistics.mean(game.world_return for game in games_played),
        "guesses": statistics.mean(len(game.turns) for game in games_played),
        "players_found": [found for found, _ in players],
        "players_guesses": [made for _, made in players],
        "games": args.games,
        "seed": args.seed,
    }
    write_json(args.output_dir / "build.json", report)
    console.print_json(data=report)
    for game in games_played[:4]:
        console.print(" ".join(f"{turn.text} {turn.reply}" for turn in game.turns))
    console.print(f"built {args.output_dir} in {time.time() - start:.0f} s")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
