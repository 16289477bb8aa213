"""A training run and its folder.

RUN/config.yaml           every setting, resolved
RUN/command.txt           the command line that started it (one line for each time it was resumed)
RUN/versions.json         Python, packages, platform
RUN/train_prompts.jsonl   with a prompt file of your own: what is trained on …
RUN/heldout_prompts.jsonl … and what is held out for samples and evaluation
RUN/progress.csv          one row an iteration
RUN/tensorboard/          the same for TensorBoard
RUN/samples.jsonl         prompt, response, score, KL at the start, during and at the end
RUN/report.png            score, KL, entropy, length
RUN/checkpoints/          the newest two, complete
RUN/actor/                the model, for from_pretrained
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat
from stable_baselines3.common.utils import LinearSchedule

from agents.algorithms.factory import make_algorithm
from agents.algorithms.table import algorithm, checked_settings
from agents.callbacks.adaptive_kl import AdaptiveKL
from agents.callbacks.metrics import GoldFunction, TextMetricsCallback
from agents.callbacks.reference_refresh import ReferenceRefresh
from agents.figures import can_draw
from agents.policies.actor_critic import LLMActorCriticPolicy
from agents.policies.text_policy import respond_with, save_actor
from agents.rollouts.vec_env import text_env
from agents.runs.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from agents.runs.csv_log import CsvRows
from agents.runs.figure import draw_report, read_progress
from agents.runs.settings import RunSettings
from llm_env.default_task import DEFAULT_GOLD, DEFAULT_HELDOUT_PROMPTS
from llm_env.extras import installed
from llm_env.reward.models import FunctionReward
from llm_env.task import TextTask
from llm_env.text.prompts import PromptSet, RawPrompt, read_prompts
from llm_env.text.split import hold_out

PACKAGES = ("llm-env", "torch", "transformers", "gymnasium", "stable-baselines3", "peft", "numpy", "tokenizers")
HELD_OUT_LEAST_PROMPTS = 10
SAMPLE_SEED = 12_345


class Interrupted(Exception):  # noqa: N818
    """The user asked the run to stop; everything is saved."""


class RunCallback(TextMetricsCallback):
    """After each iteration: progress display, samples, checkpoint, and a stop where one was asked for."""

    def __init__(self, run: TrainingRun) -> None:
        super().__init__(gold=run.gold)
        self.run = run

    def _on_training_start(self) -> None:
        super()._on_training_start()
        if self.iteration == 0:
            self.run.sample(0)

    def before_row(self) -> None:
        """Evaluates where it is time."""
        every = self.run.settings.eval_every
        last = self.model.num_timesteps >= self.model._total_timesteps
        if every and (last or self.iteration % every == 0):
            for name, value in self.run.evaluate(self.model.num_timesteps).items():
                self.logger.record(name, value)

    def after_iteration(self) -> None:
        """Shows, samples, saves."""
        settings = self.run.settings
        self.run.show(self)
        last = self.model.num_timesteps >= self.model._total_timesteps
        if last or self.iteration % settings.sample_every == 0:
            self.run.sample(self.model.num_timesteps)
        saves = algorithm(settings.algo).reason("resume") is None
        if saves and (last or self.run.stop_asked or self.iteration % settings.checkpoint_every == 0):
            self.run.save(self)
        if self.run.stop_asked and not last:
            raise Interrupted


def algorithm_settings(settings: RunSettings) -> dict[str, Any]:
    """The algorithm's own arguments, its learning rate as a schedule.

    Raises:
        ValueError, TypeError: an unknown algorithm, a setting that it does not have, or a combination that it excludes.
    """
    chosen = checked_settings(settings.algo, settings.algorithm_arguments())
    rate = chosen.setdefault("learning_rate", algorithm(settings.algo).defaults["learning_rate"])
    if settings.lr_schedule == "linear":
        chosen["learning_rate"] = LinearSchedule(rate, 0.0, 1.0)
    return chosen


class TrainingRun:
    """Sets a run up, trains, and leaves a folder that describes itself.

    Args:
        settings: What to do.
        folder: Where to write.
        console: Where to print.
        resume: Go on with the run in `folder`, whose settings these are.

    Raises:
        FileExistsError: `folder` holds a run already, and `resume` is off.
        FileNotFoundError, ValueError, TypeError: something cannot be loaded, or a setting breaks its rule. Nothing has
            been written then.
    """

    def __init__(self, settings: RunSettings, folder: Path, console: Console, resume: bool = False) -> None:
        self.settings = settings
        self.folder = folder
        self.console = console
        self.resumed = resume
        self.stop_asked = False
        self.progress: Progress | None = None
        if not resume and folder.exists() and any(folder.iterdir()):
            raise FileExistsError(
                f"output_dir={str(folder)!r} is not empty. Choose another folder, or go on with the run in it: "
                f"--resume {folder}"
            )
        if resume and (reason := algorithm(settings.algo).reason("resume")) is not None:
            raise ValueError(f"{settings.algo} cannot be resumed: {reason}. Start it again in another folder.")
        gold_name = settings.gold
        if gold_name is None and settings.model is None and settings.reward_model is None:
            gold_name = DEFAULT_GOLD
        self.gold: GoldFunction | None = FunctionReward(gold_name).function if gold_name else None
        self._split = None if resume else self._split_prompts()
        self.model = self._make_model()
        self.task = text_env(self.model.env).task
        self.eval_prompts = self._load_eval_prompts()
        self.callback = RunCallback(self)
        self.best: dict[str, float] | None = None
        """The best evaluation so far."""
        self.refresh: ReferenceRefresh | None = None
        self.callbacks: list[BaseCallback] = [self.callback]
        if settings.ref_refresh_every:
            if not isinstance(self.model.policy, LLMActorCriticPolicy):
                raise ValueError(
                    f"ref_refresh_every: {settings.algo}'s policy is no language model that a reference could follow."
                )
            self.refresh = ReferenceRefresh(settings.ref_refresh_every, settings.ref_refresh_share)
            self.callbacks.append(self.refresh)
        if settings.kl_target is not None:
            self.callbacks.append(AdaptiveKL(self.callback, settings.kl_target, settings.kl_gain))

    # ------------------------------------------------------------------------------------------------ set-up
    def _split_prompts(self) -> tuple[list[RawPrompt], list[RawPrompt]] | None:
        """(train, held out) for a prompt source of the user's own without `eval_prompts`."""
        settings = self.settings
        if settings.prompts is None or settings.eval_prompts is not None:
            return None
        prompts = read_prompts(settings.prompts)
        if len(prompts) < HELD_OUT_LEAST_PROMPTS:
            return prompts, []
        return hold_out(prompts, settings.seed)

    def _train_prompts(self) -> Any:
        if self._split is not None:
            return self._split[0]
        path = self.folder / "train_prompts.jsonl"
        return str(path) if self.resumed and path.is_file() else self.settings.prompts

    def _make_model(self) -> BaseAlgorithm:
        s = self.settings
        return make_algorithm(
            s.algo,
            n_envs=s.n_envs,
            rounds=s.rounds,
            episodes=s.episodes,
            env_kwargs=s.task_arguments(prompts=self._train_prompts()),
            seed=s.seed,
            device=s.device,
            **algorithm_settings(s),
        )

    def _load_eval_prompts(self) -> PromptSet:
        held_out = self.folder / "heldout_prompts.jsonl"
        source: Any
        if self.settings.eval_prompts is not None:
            source = self.settings.eval_prompts
        elif self.settings.prompts is None:
            source = DEFAULT_HELDOUT_PROMPTS
        elif self.resumed:
            source = str(held_out) if held_out.is_file() else self._train_prompts()
        else:
            assert self._split is not None
            source = self._split[1] or self._split[0]
        return PromptSet(source, self.task.tokenizer, self.settings.max_prompt_length)

    def _open_folder(self) -> None:
        """Creates the folder, or goes back to the newest checkpoint in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = CsvRows(self.folder / "progress.csv")
        if self.resumed:
            self._go_back(rows)
        else:
            self.settings.write(self.folder / "config.yaml")
            (self.folder / "versions.json").write_text(json.dumps(versions(), indent=1) + "\n", encoding="utf-8")
            if self._split is not None:
                write_prompts(self.folder / "train_prompts.jsonl", self._split[0])
                if self._split[1]:
                    write_prompts(self.folder / "heldout_prompts.jsonl", self._split[1])
        with (self.folder / "command.txt").open("a", encoding="utf-8") as file:
            file.write(shlex.join([Path(sys.executable).name, *sys.argv]) + "\n")
        formats: list[KVWriter] = [rows]
        if installed("tensorboard"):
            formats.append(TensorBoardOutputFormat(str(self.folder / "tensorboard")))
        else:
            warnings.warn(
                "tensorboard is not installed, so its log is left out: pip install 'llm-env[plots]'", stacklevel=2
            )
        self.model.set_logger(Logger(str(self.folder), formats))

    def _go_back(self, rows: CsvRows) -> None:
        checkpoints = list_checkpoints(self.folder / "checkpoints")
        if not checkpoints:  # stopped before its first checkpoint: from the beginning
            rows.drop_after(-1)
            (self.folder / "samples.jsonl").unlink(missing_ok=True)
            return
        extra = load_checkpoint(self.model, checkpoints[-1])
        self.callback.iteration, self.callback.tokens = extra["iteration"], extra["tokens"]
        self.best = extra.get("best")
        if self.refresh is not None:
            self.refresh.rollouts = extra["rollouts"]
        rows.drop_after(self.model.num_timesteps)
        samples = self.folder / "samples.jsonl"
        if samples.is_file():
            lines = samples.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [
                line
                for line in lines
                if line.endswith("\n") and json.loads(line)["timestep"] <= self.model.num_timesteps
            ]
            samples.write_text("".join(kept), encoding="utf-8")

    # ------------------------------------------------------------------------------------------------ the run
    def train(self) -> None:
        """Trains to the end, and writes the actor and the report.

        Raises:
            Interrupted: the user asked for a stop (Ctrl-C or SIGTERM); a checkpoint is written.
            RewardModelError: the reward model failed; the newest checkpoint stands.
            OSError: the disk is full or cannot be written; the newest checkpoint stands.
        """
        self._open_folder()
        total = self.settings.total_timesteps
        left = total - self.model.num_timesteps
        if left <= 0:
            self.console.print(f"The run in {self.folder} has already reached {total:,} timesteps.")
            self.finish()
            return
        handlers = {s: signal.signal(s, self._ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        columns = (
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        try:
            with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as self.progress:
                self._bar = self.progress.add_task("first rollout …", total=total, completed=self.model.num_timesteps)
                self.model.learn(
                    left,
                    self.callbacks,
                    log_interval=None,  # type: ignore[arg-type]  # the callback writes the log
                    reset_num_timesteps=not self.model.num_timesteps,
                )
        finally:
            self.progress = None
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if (self.folder / "progress.csv").is_file():
                self.draw()
        self.finish()

    def _ask_to_stop(self, number: int, frame: Any) -> None:
        if self.stop_asked:  # a second time: at once
            raise KeyboardInterrupt
        self.stop_asked = True
        self.console.print("Stopping after this iteration, to save a checkpoint (once more: stop at once) …")

    def show(self, callback: TextMetricsCallback) -> None:
        """One line, or the display's new numbers, for an iteration."""
        last = callback.last
        text = (
            f"score {last.get('rollout/rm_score', float('nan')):6.2f}  KL {last.get('rollout/kl', float('nan')):5.2f}"
        )
        if "rollout/gold_score" in last:
            text += f"  gold {last['rollout/gold_score']:5.2f}"
        text += f"  {callback.tokens_per_second:6.0f} tokens/s"
        if self.progress is not None and self.console.is_terminal:
            self.progress.update(self._bar, completed=self.model.num_timesteps, description=text)
        elif callback.iteration % 5 == 1 or self.model.num_timesteps >= self.model._total_timesteps:
            done = self.model.num_timesteps / max(1, self.model._total_timesteps)
            self.console.print(f"iteration {callback.iteration:4d}  {done:4.0%}  {text}", highlight=False)

    def sample(self, timestep: int) -> None:
        """Appends responses to the first held-out prompts to ``samples.jsonl``."""
        prompts = self.eval_prompts.spread(self.settings.n_samples)
        if not prompts:
            return
        episodes = respond_with(self.model.policy, self.task, prompts, SAMPLE_SEED)
        with (self.folder / "samples.jsonl").open("a", encoding="utf-8") as file:
            for episode in episodes:
                record = {
                    "timestep": timestep,
                    "prompt": episode.prompt.text,
                    "response": episode.response_text,
                    "rm_score": episode.rm_score,
                    "kl": sum(episode.log_probs) - sum(episode.ref_log_probs),
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def save(self, callback: TextMetricsCallback) -> None:
        """Writes a checkpoint."""
        extra = {"iteration": callback.iteration, "tokens": callback.tokens, "best": self.best}
        if self.refresh is not None:
            extra["rollouts"] = self.refresh.rollouts
        save_checkpoint(self.model, self.folder / "checkpoints", extra)

    def draw(self) -> None:
        """Draws ``report.png``."""
        progress = read_progress(self.folder / "progress.csv")
        if progress and can_draw():
            draw_report(progress, self.folder / "report.png", f"{self.settings.algo.upper()}, {self.folder.name}")

    def evaluate(self, timestep: int) -> dict[str, float]:
        """Scores responses to held-out prompts; the best actor so far is kept in ``best/``.

        The prompts and the sampler's seed are the same every time, and the KL is to the reference that the run began with.
        """
        s = self.settings
        task = TextTask(self.task.settings)  # shares the models, has the first reference
        episodes = respond_with(self.model.policy, task, self.eval_prompts.spread(s.n_eval), SAMPLE_SEED)
        scores = [e.rm_score for e in episodes if e.rm_score is not None]
        kl = float(np.mean([sum(e.log_probs) - sum(e.ref_log_probs) for e in episodes]))
        found = {"rm_score": float(np.mean(scores)), "kl": kl}
        found["objective"] = found["rm_score"] - s.kl_coef * kl
        if self.gold is not None:
            golden = self.gold([e.prompt.text for e in episodes], [e.response_text for e in episodes])
            found["gold_score"] = float(np.mean(golden))
        if self.best is None or found[s.best_by] > self.best[s.best_by]:
            self.best = {"timestep": timestep, **found}
            self._save_actor("best")
            (self.folder / "best" / "best.json").write_text(json.dumps(self.best, indent=1) + "\n", encoding="utf-8")
        return {f"eval/{name}": value for name, value in found.items()}

    def _save_actor(self, name: str) -> None:
        """Writes the actor to a folder in the run's, in whose place it comes when it is whole."""
        partial = self.folder / f".partial-{name}"
        save_actor(self.model.policy, self.task, partial)
        target = self.folder / name
        if target.exists():
            for path in partial.iterdir():
                path.replace(target / path.name)
            partial.rmdir()
        else:
            partial.rename(target)

    def finish(self) -> None:
        """Writes ``actor/`` and ``report.png``."""
        self._save_actor("actor")
        if (self.folder / "progress.csv").is_file():
            self.draw()


def versions() -> dict[str, str]:
    """Python, platform and the packages that matter."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "cpus": str(os.cpu_count())}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_prompts(path: Path, prompts: list[RawPrompt]) -> None:
    """Writes prompts as JSONL that `read_prompts` reads."""
    key = {True: "prompt", False: "messages"}
    lines = [json.dumps({key[isinstance(p, str)]: p}, ensure_ascii=False) + "\n" for p in prompts]
    path.write_text("".join(lines), encoding="utf-8")
