"""A case: models, prompts and the very tokens that every contender generates. Needs torch and transformers only.

The responses are scripted. A contender samples from its model as always, and what it drew is then replaced by the
script's token, so that all of them work on the same tokens, lengths included, and their log-probs, KL and scores can be
compared before their times are.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

EOS = 0
SHAPES: dict[str, dict[str, Any]] = {
    # the embedded default's
    "default": {
        "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 4,
    },
    # thirty million weights
    "30m": {
        "vocab_size": 16384, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 15,
        "num_attention_heads": 6, "num_key_value_heads": 2,
    },
    # SmolLM2-135M's
    "135m": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    # Llama-3.2-1B's
    "1b": {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One setting in which contenders are compared.

    Attributes:
        model: A key of `SHAPES` (random weights), or a model folder.
        batch: Prompts in an iteration, each with one response.
        prompt: Length of each prompt, in tokens.
        group: Responses to each prompt.
        response: Length of the longest response, in tokens.
        lengths: ``equal``: all responses are the longest. ``spread``: evenly from 1 to the longest.
        epochs: Passes over a rollout.
        mini_batches: Optimizer steps in an epoch.
        precision: ``no`` (float32) or ``bf16`` (autocast).
        iterations: Timed iterations.
        warmup: Untimed iterations before the timed ones.
        threads: CPU threads; 0 takes all.
        device: ``cpu`` or ``cuda``.
    """

    model: str = "default"
    batch: int = 8
    prompt: int = 32
    response: int = 32
    group: int = 1
    lengths: str = "equal"
    epochs: int = 4
    mini_batches: int = 2
    precision: str = "no"
    iterations: int = 3
    warmup: int = 1
    threads: int = 0
    device: str = "cpu"

    @property
    def name(self) -> str:
        """A short description, such as ``default 8x(32+32) fp32``."""
        model = self.model if self.model in SHAPES else Path(self.model).name
        spread = " spread" if self.lengths == "spread" else ""
        precision = "bf16" if self.precision == "bf16" else "fp32"
        groups = f" groups of {self.group}" if self.group > 1 else ""
        return f"{model} {self.batch}x({self.prompt}+{self.response}{spread}){groups} {precision}"

    def response_lengths(self) -> list[int]:
        """Length of each response, in tokens."""
        if self.lengths == "equal":
            return [self.response] * self.batch
        return [int(n) for n in np.linspace(1, self.response, self.batch).round()]

    def tokens(self) -> int:
        """Response tokens in an iteration."""
        return sum(self.response_lengths())

    def script(self, vocab_size: int) -> tuple[list[list[int]], list[list[int]]]:
        """Prompts and responses: random ids; a response shorter than the longest ends with the end token."""
        rng = np.random.default_rng(0)
        # Without the last id, which is the padding: a reward model passes over it at a text's end.
        prompts = rng.integers(1, vocab_size - 1, (self.batch, self.prompt)).tolist()
        prompts = [prompts[i - i % self.group] for i in range(self.batch)]
        responses = rng.integers(1, vocab_size - 1, (self.batch, self.response)).tolist()
        cut = [
            [*r[: n - 1], EOS] if n < self.response else r
            for r, n in zip(responses, self.response_lengths(), strict=True)
        ]
        return prompts, cut


def read_case(path: str) -> tuple[Case, dict[str, str]]:
    """Reads a case and the folders of its models, as `write_case` wrote them."""
    loaded = json.loads(Path(path).read_text(encoding="utf-8"))
    return Case(**loaded["case"]), loaded["models"]


def write_case(path: Path, case: Case, models: dict[str, str]) -> None:
    """Writes what a contender's process needs: the case, and the folders of actor, reference and reward model."""
    path.write_text(json.dumps({"case": dataclasses.asdict(case), "models": models}), encoding="utf-8")


def build_models(name: str, folder: Path) -> dict[str, str]:
    """Makes an actor, a reference that differs from it a little (so that the KL is not 0), and a reward model.

    Args:
        name: A key of `SHAPES`, or the folder of a Llama-like causal LM.
        folder: Folder to write them into; one that is complete is left as it is.

    Returns:
        The folders of ``actor``, ``reference`` and ``reward``.
    """
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        LlamaConfig,
        PreTrainedTokenizerFast,
    )

    folders = {part: str(folder / part) for part in ("actor", "reference", "reward")}
    if (folder / "complete").is_file():
        return folders
    torch.manual_seed(0)
    if name in SHAPES:
        config = LlamaConfig(
            **SHAPES[name], max_position_embeddings=8192, tie_word_embeddings=True,
            bos_token_id=EOS, eos_token_id=EOS, pad_token_id=None,
        )  # fmt: skip
        actor = AutoModelForCausalLM.from_config(config)
    else:
        actor = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, local_files_only=True)
        actor.generation_config.eos_token_id = EOS
    # Ids are scripted, never text: the tokenizer only has to be of the right size.
    vocab_size = actor.config.vocab_size
    words = Tokenizer(WordLevel({f"t{i}": i for i in range(vocab_size)}, unk_token="t0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t0", unk_token="t0")
    actor.config.eos_token_id = EOS
    actor.save_pretrained(folders["actor"])
    # The reference: 2 % of noise on every weight.
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02 * parameter.abs().mean())
    actor.save_pretrained(folders["reference"])
    reward = AutoModelForSequenceClassification.from_pretrained(
        folders["actor"], num_labels=1, dtype=torch.float32, pad_token_id=vocab_size - 1
    )
    reward.save_pretrained(folders["reward"])
    for path in folders.values():
        tokenizer.save_pretrained(path)
    (folder / "complete").touch()
    return folders


class Stopwatch:
    """Wall and CPU seconds of named phases, one record an iteration.

    Args:
        device: ``cpu`` or ``cuda``; the GPU's queue is emptied before the clock is read.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.rows: list[dict[str, list[float]]] = []
        self._last = self.now()

    def now(self) -> tuple[float, float]:
        """Wall and CPU seconds since some moment."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def start(self) -> None:
        """Begins an iteration, whose phases follow one another without gaps."""
        self.rows.append({})
        self._last = self.now()

    def lap(self, phase: str) -> None:
        """Adds the time since the last call to a phase."""
        now = self.now()
        row = self.rows[-1].setdefault(phase, [0.0, 0.0])
        row[0] += now[0] - self._last[0]
        row[1] += now[1] - self._last[1]
        self._last = now


def peak_memory_mb(device: str) -> float:
    """The most memory that this process ever held, in MiB: allocated on the GPU if it uses one, else resident."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_result(path: str, case: Case, watch: Stopwatch, objective: dict[str, float], **extra: Any) -> None:
    """Writes the result of a contender's process.

    Args:
        path: JSON file to write.
        case: The case that was run.
        watch: Its times, those of the warm-up first; these are left out.
        objective: Means over the first iteration's responses: ``log_prob`` and ``kl`` (sums over the response, nats),
            ``score``; a contender leaves out what it cannot measure.
        extra: Further entries.
    """
    import torch
    import transformers

    result = {
        "iterations": watch.rows[case.warmup :],
        "peak_mb": peak_memory_mb(case.device),
        "threads": torch.get_num_threads(),
        "objective": objective,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **extra,
    }
    Path(path).write_text(json.dumps(result, indent=1), encoding="utf-8")
