"""A training run: it makes the algorithm, trains it, and leaves a folder that describes itself (`agents.runs.folder`)."""

from __future__ import annotations

import contextlib
import math
import signal
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

from agents.algorithms.factory import make_algorithm
from agents.algorithms.table import algorithm
from agents.callbacks.alarms import Alarms
from agents.callbacks.best_gold import BestGold
from agents.callbacks.mask_refresh import MaskRefresh
from agents.callbacks.metrics import TextMetricsCallback
from agents.callbacks.reference_refresh import ReferenceRefresh
from agents.console import say
from agents.distributed import ranks
from agents.evaluation.gold import load_gold
from agents.files import write_json
from agents.flat_settings import to_flat
from agents.output_folder import locked
from agents.policies.actor_critic import LLMActorCriticPolicy
from agents.policies.text_policy import TextPolicy
from agents.rates import rate_note
from agents.rollouts.sample_tokens import token_critic
from agents.rollouts.vec_env import text_env
from agents.runs.arguments import algorithm_settings, check_length
from agents.runs.beta import beta_callbacks
from agents.runs.checkpoint import extra_tensors, load_checkpoint, save_checkpoint
from agents.runs.csv_log import CsvRows
from agents.runs.display import RunDisplay
from agents.runs.ending import Ending, Kept
from agents.runs.folder import RunFolder
from agents.runs.held_out import HeldOutPrompts
from agents.runs.hub import push_actor
from agents.runs.imports import import_nothing_from
from agents.runs.joint_log import JointLogger
from agents.runs.learning_rate import fall_linearly
from agents.runs.model_files import write_actor, write_adapter
from agents.runs.prompts import run_prompts, shared_prompts
from agents.runs.report.page import write_report
from agents.runs.report_to import check_installed, writers
from agents.runs.settings import RunSettings
from llm_env.lm.runtime import be_deterministic
from llm_env.text.prompts import NoPrompts, PromptSet


class Interrupted(KeyboardInterrupt):
    """The user asked the run to stop, and it did so after an iteration; everything is saved."""


class RunCallback(TextMetricsCallback):
    """After each iteration: evaluation, progress display, samples, checkpoint, and the stop that a signal asked for."""

    def __init__(self, run: TrainingRun) -> None:
        super().__init__(gold=run.gold)
        self.run = run

    @property
    def is_last(self) -> bool:
        """Whether the run is at its end, or an alarm ends it."""
        return self.model.num_timesteps >= self.model._total_timesteps or self.run.alarms.stopped is not None

    def _on_training_start(self) -> None:
        super()._on_training_start()
        if self.iteration == 0:
            self.run.sample(0)

    def before_row(self) -> None:
        """Evaluates, where it is time, so that the row of the log has the numbers."""
        every = self.run.settings.folder.eval_every
        if every and (self.is_last or self.iteration % every == 0):
            for name, value in self.run.evaluate(self.run.timestep).items():
                self.logger.record(name, value)

    def after_iteration(self) -> None:
        """Shows the iteration, samples and saves where it is time, and stops where a signal asked for it."""
        run, settings = self.run, self.run.settings.folder
        run.stop_requested = ranks().any(run.stop_requested)  # a signal reaches processes at different moments
        run.display.show(self)
        # After each iteration, not only with a checkpoint: Ctrl-C may put a checkpoint after any, and must not change the rest.
        text_env(self.training_env).clear_caches()
        if self.is_last or self.iteration % settings.sample_every == 0:
            run.sample(run.timestep)
        can_resume = algorithm(run.settings.algorithm.algo).reason("resume") is None
        if can_resume and (self.is_last or run.stop_requested or self.iteration % settings.checkpoint_every == 0):
            run.save()
        if run.stop_requested and not self.is_last:
            raise Interrupted


class TrainingRun:
    """Sets a run up, trains, and leaves a folder that describes itself.

    Args:
        settings: The run's settings, checked.
        folder: Folder of the run; new or empty unless `resume`.
        console: Terminal that progress and errors are printed on.
        resume: Go on with the run in `folder`, which has the same settings.

    Raises:
        FileExistsError: `folder` is not empty, and `resume` is off.
        FileNotFoundError, ValueError, TypeError: something cannot be loaded, or a setting breaks its rule. Nothing has
            been written then.
    """

    def __init__(self, settings: RunSettings, folder: Path, console: Console, resume: bool = False) -> None:
        self.settings = settings
        self.console = console
        self.stop_requested = False
        self.world = ranks().world
        if not ranks().first:  # rank 0 speaks, and writes, for all
            console.quiet = True
        self.folder = RunFolder(folder, resume)
        if resume:
            import_nothing_from(folder)
        name = settings.algorithm.algo
        if resume and (reason := algorithm(name).reason("resume")) is not None:
            raise ValueError(f"{name} cannot be resumed: {reason}. Start it again in another folder.")
        if resume and ranks().first:
            self.folder.check_resumable(settings)
        check_length(settings)
        if ranks().first:
            check_installed(settings.folder.report_to)
        if settings.training.deterministic:
            be_deterministic()
        self.rows = CsvRows(self.folder.progress)
        # What can fail comes first: nothing is written before all of it is loaded.
        self.gold = load_gold(settings.gold_name, settings.task.reward_limits)
        self.prompts = shared_prompts(lambda: run_prompts(settings, self.folder.path, resume))
        self.model = self._make_model()
        # SB3 counts the steps of this process's slots.
        self._total = math.ceil(settings.training.total_timesteps / self.world)
        self._rate = float(cast(float, self.model.learning_rate))
        """The learning rate at the start."""
        if settings.algorithm.lr_schedule == "linear":
            fall_linearly(self.model, self._total)
        self.task = text_env(self.model.env).task
        if self.gold is not None:
            self.gold.check_prompts(self.task.prompts.records)
        self.policy = cast(TextPolicy, self.model.policy)
        held_out: PromptSet | NoPrompts = NoPrompts(self.task.tokenizer, settings.task.max_prompt_length)
        if self.prompts.held_out is not None:
            held_out = PromptSet(
                self.prompts.held_out, self.task.tokenizer, settings.task.max_prompt_length, "eval_prompts"
            )
        self.held_out = HeldOutPrompts(held_out, self.task, self.gold)
        self.display = RunDisplay(console, self._total)
        self.best: dict[str, float] | None = None
        """The best evaluation so far."""
        self.refresh: ReferenceRefresh | None = None
        self.mask_refresh: MaskRefresh | None = None
        self.callback = RunCallback(self)
        self.alarms = Alarms(self.callback, settings.training.alarms_that_stop)
        self.best_gold = BestGold(self.callback) if settings.keeps_best_gold else None
        self.callbacks = self._make_callbacks()

    def _make_model(self) -> BaseAlgorithm:
        training = self.settings.training
        return make_algorithm(
            self.settings.algorithm.algo,
            n_envs=training.n_envs,
            rounds=training.rounds,
            episodes=training.episodes,
            env_kwargs=self.settings.task.task_arguments(self.prompts.train),
            seed=training.seed,
            device=self.settings.task.device,
            **algorithm_settings(self.settings),
        )

    def _make_callbacks(self) -> list[BaseCallback]:
        """The run's callbacks in the order in which they are called: faults before the log's row, and that before β moves."""
        training = self.settings.training
        callbacks: list[BaseCallback] = [self.alarms, self.callback]
        if self.best_gold is not None:
            callbacks.append(self.best_gold)
        if training.ref_refresh_every:
            self.refresh = ReferenceRefresh(training.ref_refresh_every, training.ref_refresh_share)
            callbacks.append(self.refresh)
        if self.settings.algorithm.mask_refresh:
            self.mask_refresh = MaskRefresh(self.settings.algorithm.mask_refresh)
            callbacks.append(self.mask_refresh)
        callbacks += beta_callbacks(self.settings, self.callback)
        # As `learn` will; here, so that what does not fit is refused before anything is written.
        for callback in callbacks:
            callback.init_callback(self.model)
        return callbacks

    def _open_folder(self) -> None:
        """Begins the folder, or goes back to the newest checkpoint in it; then opens the log."""
        if not ranks().first:
            if self.folder.resume:
                self._load_newest_checkpoint()
            self.model.set_logger(JointLogger(None, []))
            return
        if not self.folder.resume:
            self.folder.begin(self.settings, self.prompts)
        else:
            for name, (then, now) in self.folder.changed_versions().items():
                self.say(
                    f"note: {name} was {then} when the run began and is {now} now: the result may differ in its digits."
                )
            # Rows and samples behind the checkpoint are written again, by the same steps.
            self.folder.drop_after(self._load_newest_checkpoint(), self.rows)
        self.folder.note_command()
        told = writers(self.settings.folder.report_to, self.folder.path, to_flat(self.settings))
        formats: list[KVWriter] = [self.rows, *told]
        self.model.set_logger((JointLogger if self.world > 1 else Logger)(str(self.folder.path), formats))

    def _load_newest_checkpoint(self) -> int:
        """Puts the algorithm and the callbacks where the newest checkpoint left them; returns its timestep, or -1."""
        checkpoint = self.folder.newest_checkpoint(self.say) if ranks().first else None
        if not ranks().any(checkpoint is not None):
            return -1
        extra = load_checkpoint(self.model, checkpoint, check=False)
        self.callback.iteration, self.callback.tokens = extra["iteration"], extra["tokens"]
        self.best = extra.get("best")
        self.callback.constant_scores.load(extra.get("constant_scores", {}))  # checkpoints of before have none
        if "alarms" in extra:  # not in checkpoints of earlier versions
            self.alarms.load_state_dict(extra["alarms"])
        if self.best_gold is not None and extra.get("best_gold") is not None:
            self.best_gold.load_state_dict(extra["best_gold"], extra_tensors(checkpoint))
        if self.refresh is not None:
            self.refresh.rollouts = extra["rollouts"]
        if self.mask_refresh is not None:
            self.mask_refresh.rollouts = extra["mask_rollouts"]
        return self.timestep

    @property
    def timestep(self) -> int:
        """Environment steps so far, those of all processes together."""
        return self.model.num_timesteps * self.world

    def say(self, text: str) -> None:
        """Prints a line."""
        say(self.console, text)

    def train(self) -> None:
        """Trains to the end, and writes the actor and the report.

        Raises:
            Interrupted: the user asked for a stop (Ctrl-C or SIGTERM); a checkpoint is written.
            FileExistsError: another process is writing to the folder.
            RewardModelError: the reward model failed; the newest checkpoint stands.
            FloatingPointError: rewards, gradients or weights are not finite any more; the newest checkpoint stands.
            OSError: the disk is full or cannot be written; the newest checkpoint stands.
        """
        with locked(self.folder.path) if ranks().first else contextlib.nullcontext():
            self._train()

    def _train(self) -> None:
        self._open_folder()
        steps_left = self._total - self.model.num_timesteps
        if steps_left <= 0:
            reached, total = self.model.num_timesteps, self.settings.training.total_timesteps
            self.say(
                f"The run in {self.folder.path} has reached {reached:,} timesteps, of {total:,}: nothing is left to train."
            )
            self.finish()
            return
        self._say_rate()
        if self.alarms.stopped is not None:  # before, and the process ended before it had written everything
            self.finish()
            return
        # Ctrl-C and SIGTERM wait for the iteration's end, where a checkpoint can be written.
        handlers = {s: signal.signal(s, self._request_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            with self.display.running(self.model.num_timesteps):
                self.model.learn(
                    steps_left,
                    self.callbacks,
                    log_interval=None,  # type: ignore[arg-type]  # the callback writes the log
                    reset_num_timesteps=not self.model.num_timesteps,
                )
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.model.logger.close()  # TensorBoard's file, which a process with many runs would collect
            self.draw()
        self.finish()

    def _say_rate(self) -> None:
        """Says what the learning rate is, where the model's width or LoRA has decided it."""
        table = algorithm(self.settings.algorithm.algo).defaults["learning_rate"]
        if "learning_rate" not in self.settings.algorithm_arguments() and not math.isclose(self._rate, table):
            self.say(rate_note(self._rate, table, bool(self.settings.algorithm.lora_rank)))

    def _end_by_alarm(self) -> Ending | None:
        """Says which alarm has ended the run, if one has; where it is `gold`, goes back to the actor of before the fall."""
        kind = self.alarms.stopped
        if kind is None:
            return None
        ending = Ending(kind, self.callback.iteration, self._go_back() if kind == "gold" else None)
        self.say(
            f"note: {ending.sentence()}. To go on from iteration {ending.iteration:,} to the end: "
            f"--resume {self.folder.path} --stop-on none"
        )
        return ending

    def _go_back(self) -> Kept | None:
        """Takes the actor that had the best gold score, with samples and evaluation of it; None where none was kept."""
        best = self.best_gold
        if best is None or best.kept is None:  # it goes on from a checkpoint of before weights were kept
            return None
        best.restore()
        iteration, timestep, gold = best.kept
        if not ranks().from_first(self.folder.has_samples(timestep)):  # else they are of these very weights
            self.sample(timestep)
        values = self._score_held_out() if self.settings.folder.eval_every else {}
        return Kept(iteration, timestep, gold, values)

    def _request_stop(self, number: int, frame: Any) -> None:
        """Handles a signal: the first stops the run after its iteration, the second at once."""
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
        self.console.print("Stopping after this iteration, to save a checkpoint (once more: stop at once) …")

    def sample(self, timestep: int) -> None:
        """Appends responses to the first held-out prompts to ``samples.jsonl``."""
        self._refresh()
        if not ranks().first:
            return
        critic = token_critic(self.model)
        records = self.held_out.sample(self.policy, timestep, self.settings.folder.n_samples, critic)
        if records:
            self.folder.add_samples(records)

    def evaluate(self, timestep: int) -> dict[str, float]:
        """Scores responses to held-out prompts, and keeps the best actor so far in ``best/``.

        Returns:
            The log's ``eval/`` values.
        """
        values = self._score_held_out()
        best_by = self.settings.folder.best_by
        if self.best is None or values[best_by] > self.best[best_by]:
            self.best = {"timestep": timestep, **values}
            write_actor(self.folder, "best", self.policy, self.task.tokenizer, self.settings)
            if ranks().first:
                write_json(self.folder.path / "best" / "best.json", self.best)
        return {f"eval/{name}": value for name, value in values.items()}

    def _score_held_out(self) -> dict[str, float]:
        self._refresh()
        values: dict[str, float] = {}
        if ranks().first:
            values = self.held_out.evaluate(self.policy, self.settings.folder.n_eval, self.settings.task.kl_coef)
        return cast(dict[str, float], ranks().from_first(values))

    def _refresh(self) -> None:
        """Has what decodes brought up to date, before rank 0 uses it alone."""
        if ranks().shards:
            cast(LLMActorCriticPolicy, self.policy).refresh()

    def save(self) -> None:
        """Writes a checkpoint."""
        extra: dict[str, Any] = {
            "iteration": self.callback.iteration,
            "tokens": self.callback.tokens,
            "best": self.best,
            "constant_scores": self.callback.constant_scores.state(),
            "alarms": self.alarms.state_dict(),
            "best_gold": self.best_gold and self.best_gold.state_dict(),
        }
        if self.refresh is not None:
            extra["rollouts"] = self.refresh.rollouts
        if self.mask_refresh is not None:
            extra["mask_rollouts"] = self.mask_refresh.rollouts
        best = None if self.best_gold is None else self.best_gold.weights
        save_checkpoint(self.model, self.folder.checkpoints, extra, tensors=best)

    def draw(self) -> None:
        """Writes ``report.png`` and ``report.html``, once an iteration has ended."""
        if ranks().first and self.folder.progress.is_file():
            self.folder.draw(f"{self.settings.algorithm.algo.upper()}, {self.folder.path.name}")
            write_report(self.folder.path)

    def finish(self) -> None:
        """Writes ``actor/``, with LoRA ``adapter/`` too, picture and page; uploads the actor, if that was asked for."""
        ending = self._end_by_alarm()
        if self.settings.algorithm.lora_rank:
            write_adapter(self.folder, cast(LLMActorCriticPolicy, self.policy), self.settings, ending)
        write_actor(self.folder, "actor", self.policy, self.task.tokenizer, self.settings, ending)
        self.draw()
        repo = self.settings.folder.push_to_hub
        if repo is not None and ranks().first:
            self.say(f"Uploaded: {push_actor(self.folder.path / 'actor', repo, self.settings.folder.hub_private)}")
