"""Reward models with several heads: helpful, polite, …, put together into one score.

The folder is a sequence classifier with a label for each head. Its ``config.json`` names them (``reward_heads``) and says
how much each counts (``reward_head_weights``); or ``gate.safetensors`` beside it holds a linear map from the hidden state at
the prompt's last token to the logits of the weights, so that what counts depends on the prompt (Wang et al. 2024,
"Interpretable Preferences via Multi-Objective Reward Modeling", https://arxiv.org/abs/2406.12845).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from llm_env.lm.weights import read_tensors

GATE_FILE = "gate.safetensors"


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
