"""Reward models with other heads than one linear one: several heads (helpful, polite, …) put together, or a small MLP.

Of several heads the folder is a sequence classifier with a label for each. Its ``config.json`` names them (``reward_heads``)
and says how much each counts (``reward_head_weights``); or ``gate.safetensors`` beside it holds a linear map from the hidden
state at the prompt's last token to the logits of the weights, so that what counts depends on the prompt (Wang et al. 2024,
"Interpretable Preferences via Multi-Objective Reward Modeling", https://arxiv.org/abs/2406.12845).

With an MLP the folder is a sequence classifier whose labels are the M units of the hidden layer, before their activation: its
own `forward` gives exactly these, and whoever expects one label is told that there are M. ``mlp_head.safetensors`` beside it
makes one score of them, and ``reward_mlp`` in ``config.json`` says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from llm_env.lm.weights import read_tensors

GATE_FILE = "gate.safetensors"
MLP_FILE = "mlp_head.safetensors"


class Gate(nn.Module):
    """Weights of a reward model's heads, computed from the hidden state at the prompt's end.

    Args:
        hidden_size: Size H of the reward model's hidden states.
        n_heads: Number of heads that are weighted.
    """

    def __init__(self, hidden_size: int, n_heads: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, n_heads)
        nn.init.zeros_(self.linear.weight)  # equal weights before training
        nn.init.zeros_(self.linear.bias)

    def forward(self, prompt_states: Tensor) -> Tensor:
        """Hidden states (n, H) to weights (n, n_heads) that sum to 1 in each row."""
        return torch.softmax(self.linear(prompt_states).float(), -1)

    def save(self, folder: Path) -> None:
        """Writes ``gate.safetensors`` into a model folder."""
        state = {k: v.detach().cpu().contiguous() for k, v in self.linear.state_dict().items()}
        save_file(state, folder / GATE_FILE)


def load_gate(folder: str, hidden_size: int, n_heads: int) -> Gate | None:
    """Loads the gate of a model folder, frozen.

    Args:
        folder: The reward model's folder.
        hidden_size: Size H of its hidden states.
        n_heads: Number of its heads.

    Returns:
        None where the folder has no ``gate.safetensors``.

    Raises:
        ValueError: the file is damaged, or the gate does not fit the model.
    """
    path = Path(folder).expanduser() / GATE_FILE
    if not path.is_file():
        return None
    gate = Gate(hidden_size, n_heads)
    try:
        gate.linear.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model beside it: {str(error).splitlines()[-1].strip()}.") from error
    gate.requires_grad_(False)
    return gate.eval()


class MLPHead(nn.Module):
    """The second half of an MLP head: from the hidden units to the score, w · gelu(z + b) + c.

    The first half, z = W h, is the classifier's own linear layer.

    Args:
        size: Number M of hidden units.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        # No `nn.Linear`: LoRA would put an adapter on it, and readers of the classifier look for its layers by their kind.
        self.bias = nn.Parameter(torch.zeros(size))
        self.weight = nn.Parameter(torch.randn(size) / (size + 1) ** 0.5)
        self.offset = nn.Parameter(torch.zeros(1))

    def forward(self, units: Tensor) -> Tensor:
        """Hidden units before their activation, (n, M), to scores (n, 1), float32."""
        active = nn.functional.gelu(units.float() + self.bias.float())
        return (active @ self.weight.float() + self.offset.float())[:, None]

    def save(self, folder: Path) -> None:
        """Writes ``mlp_head.safetensors`` into a model folder."""
        save_file({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, folder / MLP_FILE)


class ScoreHead(nn.Module):
    """A decoder's linear layer with an MLP's second half behind it: from hidden states to scores.

    Args:
        linear: From the hidden size H to the M units.
        mlp: From the units to the score.
    """

    def __init__(self, linear: nn.Linear, mlp: MLPHead) -> None:
        super().__init__()
        self.linear = linear
        self.mlp = mlp
        self.in_features = linear.in_features

    def forward(self, states: Tensor) -> Tensor:
        """Hidden states (n, H) to scores (n, 1)."""
        scores: Tensor = self.mlp(self.linear(states))
        return scores


def mlp_size(config: Any) -> int:
    """Number of hidden units of a reward model's MLP head, by its configuration; 0 for a linear head.

    Raises:
        ValueError: ``reward_mlp`` is no number of units, or not the number of labels.
    """
    size = getattr(config, "reward_mlp", None) or 0
    if isinstance(size, bool) or not isinstance(size, int) or size < 0 or size not in (0, config.num_labels):
        raise ValueError(f"config.json has reward_mlp={size!r} and {config.num_labels} labels, which must be as many.")
    return size


def load_mlp_head(name: str, config: Any, option: str) -> MLPHead | None:
    """Loads the second half of a reward model's MLP head.

    Args:
        name: The reward model's folder or hub id.
        config: Its configuration.
        option: The option that it came from, for error messages.

    Returns:
        None where the head is linear.

    Raises:
        ValueError: the file is missing or damaged, or does not fit the model.
    """
    size = mlp_size(config)
    if not size:
        return None
    folder = Path(name).expanduser()
    found = (
        folder / MLP_FILE
        if folder.is_dir()
        else cached_file(name, MLP_FILE, _raise_exceptions_for_missing_entries=False)
    )
    if found is None or not Path(found).is_file():
        raise ValueError(
            f"{option}={name!r} is a reward model with an MLP head of {size} units, and its {MLP_FILE} is missing. Without it "
            "there is no score: copy it, or train the model again."
        )
    head = MLPHead(size)
    try:
        head.load_state_dict(read_tensors(Path(found)))
    except RuntimeError as error:
        raise ValueError(f"{found} does not fit the model beside it: {str(error).splitlines()[-1].strip()}.") from error
    return head.eval()


def head_names(config: Any) -> list[str] | None:
    """The heads' names in a model's configuration, or None for a reward model with one score."""
    names = getattr(config, "reward_heads", None)
    return list(names) if names else None


def head_weights(config: Any) -> list[float]:
    """How much each head counts by a model's configuration; equal parts where it has no ``reward_head_weights``.

    Raises:
        ValueError: there are not as many weights as heads.
    """
    names = head_names(config) or [""]
    weights = getattr(config, "reward_head_weights", None) or [1 / len(names)] * len(names)
    if len(weights) != len(names):
        raise ValueError(f"config.json has {len(weights)} reward_head_weights for {len(names)} reward_heads.")
    return [float(w) for w in weights]


def combined_head(head: nn.Linear, weights: list[float]) -> nn.Linear:
    """One linear head whose output is the weighted sum of several: Σ_h w_h (W_h x + b_h)."""
    factors = torch.tensor(weights, dtype=head.weight.dtype, device=head.weight.device)  # (n_heads,)
    combined = nn.Linear(head.in_features, 1, bias=head.bias is not None).to(head.weight)
    with torch.no_grad():
        combined.weight.copy_((factors @ head.weight)[None])  # (1, H)
        if head.bias is not None:
            combined.bias.copy_((factors @ head.bias)[None])
    # A critic that starts from this head trains it; a reward model's head is frozen, and stays so.
    combined.weight.requires_grad_(head.weight.requires_grad)
    return combined
