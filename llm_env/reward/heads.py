"""Reward models with several heads: helpful, polite, …, put together into one score.

The folder is a sequence classifier with a label for each head. Its ``config.json`` names them (``reward_heads``) and says
how much each counts (``reward_head_weights``); or ``gate.safetensors`` beside it holds a linear map from the hidden state at
the prompt's last token to the logits of the weights, so that what counts depends on what was asked (Wang et al. 2024,
"Interpretable Preferences via Multi-Objective Reward Modeling", https://arxiv.org/abs/2406.12845).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

GATE_FILE = "gate.safetensors"


class Gate(nn.Module):
    """Weights of the heads, from the hidden state at the prompt's end.

    Args:
        hidden_size: H.
        n_heads: Number of heads.
    """

    def __init__(self, hidden_size: int, n_heads: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, n_heads)
        nn.init.zeros_(self.linear.weight)  # at first all count the same
        nn.init.zeros_(self.linear.bias)

    def forward(self, prompt_states: Tensor) -> Tensor:
        """(n, H) to weights (n, heads) that sum to 1."""
        return torch.softmax(self.linear(prompt_states).float(), -1)

    def save(self, folder: Path) -> None:
        """Writes ``gate.safetensors``."""
        state = {k: v.detach().cpu().contiguous() for k, v in self.linear.state_dict().items()}
        save_file(state, folder / GATE_FILE)


def load_gate(folder: str, hidden_size: int, n_heads: int) -> Gate | None:
    """The gate of a model folder, or None where there is none.

    Raises:
        ValueError: it does not fit the model.
    """
    path = Path(folder).expanduser() / GATE_FILE
    if not path.is_file():
        return None
    gate = Gate(hidden_size, n_heads)
    try:
        gate.linear.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model beside it: {str(error).splitlines()[-1].strip()}.") from error
    gate.requires_grad_(False)
    return gate.eval()


def head_names(config: Any) -> list[str] | None:
    """The heads' names, or None for an ordinary reward model."""
    names = getattr(config, "reward_heads", None)
    return list(names) if names else None


def head_weights(config: Any) -> list[float]:
    """How much each head counts; equal parts where nothing is said.

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
    mix = torch.tensor(weights, dtype=head.weight.dtype, device=head.weight.device)
    one = nn.Linear(head.in_features, 1, bias=head.bias is not None).to(head.weight)
    with torch.no_grad():
        one.weight.copy_((mix @ head.weight)[None])
        if head.bias is not None:
            one.bias.copy_((mix @ head.bias)[None])
    one.weight.requires_grad_(head.weight.requires_grad)
    return one
