"""The rounds: sample with the current actor, rank, choose, train, evaluate, again.

OUT/settings.json              what was asked for
OUT/round_1/responses.jsonl    what the current actor (and an opponent) wrote
OUT/round_1/rankings.jsonl     what the judges thought of it
OUT/round_1/train.jsonl        what was chosen to train on
OUT/round_1/training/actor/    the actor after the round
OUT/round_1/evaluation.json    on held-out prompts
OUT/rounds.json, rounds.md, rounds.png, actor/   all rounds, and the last actor

Each step notes in ``round_N/steps.json`` that it is done; a step that was interrupted goes on, or starts again from the same
seeds, so that an interrupted run ends with the same result.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from agents.figures import can_draw
from agents.iteration.evaluate import evaluate_actor
from agents.iteration.report import draw_rounds, rounds_table
from agents.iteration.settings import PEOPLE, REJECTION_SAMPLING, IterationSettings
from agents.named_values import named_values
from agents.preferences.folder import Sampling, candidates_in, rank_in
from agents.preferences.judge import Judge
from agents.preferences.records import Ranking, read_candidates, read_rankings, write_jsonl
from agents.preferences.sampling import Source
from agents.preferences.selection import best_texts, clearest, disputed_first, lost, pairs_of
from agents.supervised.preference.methods import METHODS
from agents.supervised.preference.train import METHOD_OPTIONS, PreferenceSettings, optimise
from agents.supervised.trainer import TrainerSettings
from llm_env.default_task import (
    DEFAULT_GOLD,
    DEFAULT_HELDOUT_PROMPTS,
    DEFAULT_MODEL,
    DEFAULT_PROMPTS,
    DEFAULT_REWARD_MODEL,
)
from llm_env.lm.loading import resolve_device
from llm_env.lm.names import LoadSettings
from llm_env.lm.registry import forget_shared_model
from llm_env.text.prompts import RawPrompt, read_prompts
from llm_env.text.split import hold_out

FREE = ("output_dir", "rounds", "host", "port", "evaluate_every")
"""Settings that may be other ones when a run is gone on with."""


def iterate(settings: IterationSettings, console: Console | None = None) -> list[dict[str, Any]]:
    """Runs the rounds that are missing, and writes the table, the picture and the last actor.

    Returns:
        One evaluation a round, the starting model's first.

    Raises:
        FileNotFoundError, ValueError: something cannot be loaded, a setting breaks its rule, or the folder holds rounds with
            other settings.
    """
    settings.check()
    console = console or Console(quiet=True)
    run = Rounds(settings, console)
    evaluations = [run.evaluate_start()]
    for number in range(1, settings.rounds + 1):
        if (found := run.round(number)) is not None:
            evaluations.append(found)
    folder = settings.output_dir
    (folder / "rounds.json").write_text(json.dumps(evaluations, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "rounds.md").write_text(rounds_table(evaluations), encoding="utf-8")
    if can_draw():
        draw_rounds(evaluations, folder / "rounds.png", settings.method)
    partial = folder / ".partial-actor"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(run.actor(settings.rounds), partial)
    shutil.rmtree(folder / "actor", ignore_errors=True)
    partial.rename(folder / "actor")
    return evaluations


class Rounds:
    """The rounds of a folder.

    Args:
        settings: What to do, checked.
        console: Where to print.

    Raises:
        FileNotFoundError, ValueError: as `iterate`.
    """

    def __init__(self, settings: IterationSettings, console: Console) -> None:
        self.settings = settings
        self.console = console
        self.folder = settings.output_dir
        self.first = settings.model or DEFAULT_MODEL
        self.judges = settings.judge or (DEFAULT_REWARD_MODEL,)
        self.load = LoadSettings("float32", str(resolve_device(settings.device)), settings.trust_remote_code)
        self.prompts, self.held_out = self._prompts()
        self._keep_settings()

    def _prompts(self) -> tuple[list[RawPrompt], list[RawPrompt]]:
        s = self.settings
        prompts = read_prompts(s.prompts or DEFAULT_PROMPTS)
        if s.eval_prompts is not None:
            return prompts, read_prompts(s.eval_prompts)
        if s.prompts is None:
            return prompts, read_prompts(DEFAULT_HELDOUT_PROMPTS)
        if len(prompts) < 2:
            raise ValueError(f"prompts={s.prompts!r} has {len(prompts)}; with fewer than two none can be held out.")
        return hold_out(prompts, s.seed)

    def _keep_settings(self) -> None:
        own = {k: v for k, v in dataclasses.asdict(self.settings).items() if k not in FREE}
        own = json.loads(json.dumps(own))
        path = self.folder / "settings.json"
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            changed = [k for k, v in own.items() if before.get(k) != v]
            if not changed:
                return
            if any(self.folder.glob("round_*/*")):
                raise ValueError(
                    f"output_dir={str(self.folder)!r} has rounds with other settings ({', '.join(changed)}). Choose another "
                    "folder, or the same settings."
                )
            for name in ("settings.json", "steps.json", "evaluation.json"):  # a first attempt that came to no round
                (self.folder / name).unlink(missing_ok=True)
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(
                f"output_dir={str(self.folder)!r} is not empty and holds no rounds. Choose another folder."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")

    # ------------------------------------------------------------------------------------------------ steps
    def actor(self, number: int) -> Path:
        """The actor after a round; before the first, where all began."""
        return self.folder / f"round_{number}" / "training" / "actor" if number else Path(self.first)

    def _step(self, folder: Path, name: str, run: Callable[[], None]) -> None:
        """Runs a step unless it is done."""
        path = folder / "steps.json"
        done = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if name in done:
            return
        started = time.perf_counter()
        run()
        done[name] = round(time.perf_counter() - started, 1)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(done) + "\n", encoding="utf-8")
        partial.replace(path)

    def evaluate_start(self) -> dict[str, Any]:
        """The evaluation of the model that the rounds start from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._step(self.folder, "evaluation", lambda: self._evaluate(0, self.folder))
        return self._read_evaluation(self.folder)

    def round(self, number: int) -> dict[str, Any] | None:
        """Runs what is missing of a round; its evaluation, where it has one."""
        s = self.settings
        folder = self.folder / f"round_{number}"
        folder.mkdir(exist_ok=True)
        path = folder / "steps.json"
        if not path.is_file() or "training" not in json.loads(path.read_text(encoding="utf-8")):
            self.console.rule(f"round {number} of {s.rounds}", align="left")
        if s.is_algorithm and PEOPLE not in self.judges:
            self._step(folder, "training", lambda: self._train_algorithm(number, folder, self.judges[0]))
        else:
            self._step(folder, "responses", lambda: self._respond(number, folder))
            self._step(folder, "rankings", lambda: self._rank(number, folder))
            if s.is_algorithm:
                self._step(folder, "reward model", lambda: self._train_reward_model(number, folder))
                judge = str(folder / "reward_modelling" / "reward_model")
                self._step(folder, "training", lambda: self._train_algorithm(number, folder, judge))
            else:
                self._step(folder, "selection", lambda: self._select(number, folder))
                self._step(folder, "training", lambda: self._train(number, folder))
        found = None
        if number % s.evaluate_every == 0 or number == s.rounds:
            self._step(folder, "evaluation", lambda: self._evaluate(number, folder))
            found = self._read_evaluation(folder)
        forget_shared_model("causal_lm", str(self.actor(number - 1)))
        return found

    def _respond(self, number: int, folder: Path) -> None:
        s = self.settings
        own = Source(str(self.actor(number - 1)), s.temperature)
        sources = (own,) if s.opponent is None else (own, Source(s.opponent, s.temperature))
        seed = s.seed + 7919 * number
        sampling = Sampling(sources, s.n_responses, s.max_prompt_length, s.max_new_tokens, seed)
        asked = self._asked(number)
        candidates_in(folder, asked, sampling, self.load, {"round": number}, self.console)

    def _asked(self, number: int) -> list[RawPrompt]:
        """A round's prompts: others each time, until all were used."""
        size = self.settings.prompts_per_round or len(self.prompts)
        places = range((number - 1) * size, number * size)
        orders: dict[int, list[int]] = {}
        found = []
        for place in places:
            lap, index = divmod(place, len(self.prompts))
            if lap not in orders:
                orders[lap] = np.random.default_rng([self.settings.seed, lap]).permutation(len(self.prompts)).tolist()
            found.append(self.prompts[orders[lap][index]])
        return found

    def _rank(self, number: int, folder: Path) -> None:
        s = self.settings
        candidates = read_candidates(folder / "responses.jsonl")
        for i, name in enumerate(self.judges):
            if name == PEOPLE:
                from agents.preferences.page import serve

                path = folder / "rankings.jsonl"
                serve(candidates, path, (), s.host, s.port, self.console, until_complete=True)
            else:
                judge = Judge(name, self.load, s.noise, s.seed + 104_729 * number + i)
                rank_in(folder, candidates, judge)

    def _select(self, number: int, folder: Path) -> None:
        s = self.settings
        rankings = read_rankings(folder / "rankings.jsonl")
        counts = {"rankings": len(rankings)}
        for name in s.select:
            if name == "lost":
                rankings = lost(rankings, str(self.actor(number - 1)))
            elif name == "disputed":
                ordered = disputed_first(rankings)
                rankings = ordered[: math.ceil(len(ordered) * s.select_share)]
            counts[name] = len(rankings)
        path = folder / "train.jsonl"
        if s.method == REJECTION_SAMPLING:
            given = read_rankings(s.first_preferences) if s.first_preferences and number == 1 else []
            texts = best_texts([*given, *rankings])
            counts["texts"] = len(texts)
            records = [{"prompt": t.prompt, "response": t.response, "finished": t.finished} for t in texts]
        else:
            pairs = pairs_of(rankings, s.pairs)
            counts["pairs"] = len(pairs)
            if "margin" in s.select:
                pairs = clearest(pairs, s.select_share)
                counts["margin"] = len(pairs)
            if s.first_preferences and number == 1:
                given = pairs_of(read_rankings(s.first_preferences), "all")
                counts["given"] = len(given)
                pairs = [*given, *pairs]
            records = [pair.to_json() for pair in pairs]
        if not records:
            raise ValueError(f"Round {number}: nothing is left to train on ({counts}). Select less strictly.")
        write_jsonl(path, records)
        (folder / "selection.json").write_text(json.dumps(counts) + "\n", encoding="utf-8")
        told = ", ".join(f"{v:,} {k}" for k, v in counts.items())
        self.console.print(f"chosen: {told}", highlight=False)

    def _kept(self, number: int) -> list[Path]:
        """Files to train on: this round's, and earlier ones'."""
        first = max(1, number - self.settings.keep_rounds)
        return [self.folder / f"round_{n}" / "train.jsonl" for n in range(first, number + 1)]

    def _trainer_settings(self, number: int, folder: Path, rate: float) -> dict[str, Any]:
        s = self.settings
        target = folder / "training"
        shutil.rmtree(target / "actor", ignore_errors=True)  # half written
        return {
            "output_dir": target,
            "model": str(self.actor(number - 1)),
            "epochs": s.epochs,
            "learning_rate": s.learning_rate or rate,
            "lr_schedule": s.lr_schedule,
            "batch_size": s.batch_size,
            "micro_batch_size": s.micro_batch_size,
            "lora_rank": s.lora_rank,
            "mixed_precision": s.mixed_precision,
            "evaluations": s.checkpoints,
            "resume": target.is_dir() and any(target.iterdir()),
            "device": s.device,
            "trust_remote_code": s.trust_remote_code,
            "seed": s.seed + number,
        }

    def _train(self, number: int, folder: Path) -> None:
        s = self.settings
        lines = [line for path in self._kept(number) for line in path.read_text(encoding="utf-8").splitlines(True)]
        data = folder / "training_data.jsonl"
        data.write_text("".join(lines), encoding="utf-8")
        if s.method == REJECTION_SAMPLING:
            from agents.supervised.sft import fine_tune

            settings = TrainerSettings(**self._trainer_settings(number, folder, 1e-3))
            length = s.max_prompt_length + s.max_new_tokens + 1
            fine_tune(settings, str(data), max_length=length, n_samples=0, console=self.console)
        else:
            given = named_values("method_kwargs", s.method_kwargs)
            own = {k: v for k, v in given.items() if k in METHOD_OPTIONS}
            optimise(
                PreferenceSettings(
                    **self._trainer_settings(number, folder, 3e-4),
                    preferences=str(data),
                    loss=s.method,
                    beta=s.beta,
                    ref_model=self.first if s.takes_reference == "first" and METHODS[s.method].reference else None,
                    max_prompt_length=s.max_prompt_length,
                    max_length=max(512, s.max_prompt_length + s.max_new_tokens + 1),
                    n_samples=0,
                    trl_kwargs=tuple(k for k in s.method_kwargs if k.partition("=")[0].strip() not in own),
                    **own,
                ),
                self.console,
            )
        _drop(folder / "training" / "checkpoints")

    def _train_reward_model(self, number: int, folder: Path) -> None:
        """On what people said in all rounds so far."""
        from agents.supervised.reward_model.train import RewardSettings, train_reward_model

        s = self.settings
        rankings: list[Ranking] = []
        for n in range(1, number + 1):
            rankings += read_rankings(self.folder / f"round_{n}" / "rankings.jsonl")
        data = folder / "all_rankings.jsonl"
        write_jsonl(data, [r.to_json() for r in rankings])
        target = folder / "reward_modelling"
        settings = TrainerSettings(
            output_dir=target,
            model=self.first,
            batch_size=s.batch_size,
            micro_batch_size=s.micro_batch_size,
            resume=target.is_dir() and any(target.iterdir()),
            device=s.device,
            trust_remote_code=s.trust_remote_code,
            seed=s.seed + number,
        )
        train_reward_model(settings, RewardSettings(str(data)), self.console)

    def _train_algorithm(self, number: int, folder: Path, judge: str) -> None:
        from agents.runs.run import TrainingRun
        from agents.runs.settings import RunSettings

        s = self.settings
        target = folder / "training"
        config = target / "config.yaml"
        if config.is_file():
            settings = RunSettings.read(config)
        else:
            shutil.rmtree(target, ignore_errors=True)
            files = []
            for name, prompts in (("prompts", self.prompts), ("eval_prompts", self.held_out)):
                path = folder / f"{name}.jsonl"
                write_jsonl(path, [{"prompt": p} if isinstance(p, str) else {"messages": p} for p in prompts])
                files.append(str(path))
            settings = RunSettings(
                algo=s.method,
                model=str(self.actor(number - 1)),
                reward_model=(_function(judge),),
                prompts=files[0],
                eval_prompts=files[1],
                gold=self._gold,
                kl_coef=RunSettings.kl_coef if s.beta is None else s.beta,
                total_timesteps=s.total_timesteps,
                n_envs=s.n_envs,
                max_prompt_length=s.max_prompt_length,
                max_new_tokens=s.max_new_tokens,
                temperature=s.temperature,
                learning_rate=s.learning_rate,
                algo_kwargs=s.method_kwargs,
                lora_rank=s.lora_rank,
                mixed_precision=s.mixed_precision,
                device=s.device,
                trust_remote_code=s.trust_remote_code,
                seed=s.seed + number,
            ).checked()
        TrainingRun(settings, target, self.console, resume=config.is_file()).train()
        _drop(target / "checkpoints")

    # ------------------------------------------------------------------------------------------------ evaluation
    @property
    def _gold(self) -> str | None:

        if self.settings.gold is not None:
            return self.settings.gold
        return DEFAULT_GOLD if self.settings.prompts is None else None

    def _evaluate(self, number: int, folder: Path) -> None:
        s = self.settings
        scorer = s.reward_model or next((_function(j) for j in self.judges if j != PEOPLE), None)
        if scorer is None and s.model is not None:
            raise ValueError("reward_model: people ranked; say what scores the evaluation.")
        found = evaluate_actor(self.actor(number), self.first, scorer, self._gold, self.held_out, s, self.load)
        earlier = [n for n in range(number) if self._evaluation_path(n).is_file()]
        before = json.loads(self._evaluation_path(earlier[-1]).read_text(encoding="utf-8")) if earlier else None
        found = {"round": number, **found, **_gains(found, before)}
        partial = folder / "evaluation.partial"
        partial.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(folder / "evaluation.json")
        line = f"round {number}: score {found['rm_score']:.2f}, KL {found['kl']:.2f}"
        if "gold_score" in found:
            line += f", gold {found['gold_score']:.2f}"
            if (gain := found.get("gold_gain")) is not None:
                line += f" ({gain[0]:+.2f} ± {gain[1]:.2f})"
        self.console.print(line, highlight=False)

    def _evaluation_path(self, number: int) -> Path:
        return (self.folder / f"round_{number}" if number else self.folder) / "evaluation.json"

    def _read_evaluation(self, folder: Path) -> dict[str, Any]:
        return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def _drop(folder: Path) -> None:
    """Removes a folder, so that an interruption leaves no part of it under its name."""
    if folder.is_dir():
        old = folder.with_name(f".old-{folder.name}")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        shutil.rmtree(old)


def _function(judge: str) -> str:
    """A judge as a reward model's name."""
    return DEFAULT_GOLD if judge == "gold" else judge


def _gains(found: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """How much higher than the evaluation before, prompt by prompt: mean and half-width of its 95 % interval."""
    from agents.evaluation.statistics import Estimate

    gains: dict[str, Any] = {}
    for name in ("rm_score", "gold_score"):
        if before is not None and name in found:
            pairs = zip(found["values"][name], before["values"][name], strict=True)
            estimate = Estimate.of([a - b for a, b in pairs])
            gains[f"{name.removesuffix('_score')}_gain"] = [estimate.mean, estimate.half_width]
    return gains
