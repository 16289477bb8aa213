"""Weight files: read from safetensors alone, which holds no code, and checked against the model that they are for.

transformers fills what a file lacks with random numbers, and passes over what a file has too much; it only logs both. Here
either is an error, but for what is known to be harmless.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

HARMLESS = re.compile(
    r"attn\.(masked_)?bias$|attention\.(masked_)?bias$|rotary_emb\.inv_freq$|(^|\.)position_ids$|^v_head\."
)
"""Tensors that older versions saved though they are computed (masks, frequencies, positions), and TRL's value head."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
"""Weight files that are unpickled when they are loaded, which can run any code: they are never read."""

SHOWN = 3  # names of tensors in an error


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Args:
        path: A ``.safetensors`` file.
        device: Where the tensors are put.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off or damaged.
    """
    try:
        return load_file(path, device=device)
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is cut off or damaged ({error}). Copy or write it again.") from error


def damaged_weights(name: str) -> Path | None:
    """The first safetensors file in a model folder that is cut off or damaged; None where none is, or for a hub id."""
    folder = Path(name).expanduser()
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        try:
            # Only the header is read: it says how long the file is.
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError):
            return path
    return None


def pickle_only(name: str) -> Path | None:
    """A pickled weight file in a model folder that has no safetensors file; None where there is no such case."""
    folder = Path(name).expanduser()
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return None
    return next((path for pattern in PICKLES for path in sorted(folder.glob(pattern))), None)


def refuse_other_weights(
    loading: Mapping[str, Any], model: PreTrainedModel, label: str, kind: str, option: str, new_head: bool = False
) -> None:
    """Refuses a model whose folder does not hold exactly its weights.

    Args:
        loading: What `from_pretrained(output_loading_info=True)` says about them.
        model: The model that was loaded.
        label: The option and the folder, and what the configuration calls the model, for the error.
        kind: What the folder should hold, in words.
        option: The option that the name came from.
        new_head: Whether the model gets a new head on the trunk of another: what lies outside of the trunk, and its pooler,
            may then be missing or left over.

    Raises:
        ValueError: tensors are missing, left over or of another shape; their names are given.
    """
    missing = [name for name in loading["missing_keys"] if not (new_head and _outside_trunk(name, model))]
    left_over = [
        name
        for name in loading["unexpected_keys"]
        if not HARMLESS.search(name) and not (new_head and _outside_trunk(name, model))
    ]
    shapes = [f"{name} {tuple(there)} instead of {tuple(want)}" for name, there, want in loading["mismatched_keys"]]
    problems = []
    if missing:
        problems.append(f"{_names(missing)} would be random, because the folder's weights do not have them")
    if left_over:
        problems.append(
            f"{_names(left_over)} would be left over, because the model that config.json describes has none such"
        )
    if shapes:
        problems.append(f"other shapes than config.json says: {_names(shapes)}")
    if loading["error_msgs"]:
        problems.append(str(loading["error_msgs"][0]))
    if problems:
        raise ValueError(
            f"{label} is no complete {kind}: {'; '.join(problems)}. Give {option} a folder that was saved as a {kind}."
        )


def _outside_trunk(name: str, model: PreTrainedModel) -> bool:
    """Whether a tensor belongs to a head (or to a pooler, which only some heads need) instead of the trunk."""
    if "pooler" in name:
        return True
    first = name.split(".")[0]
    # The names of a trunk that was saved alone begin with its own modules, as ``layers.0.…``.
    return first != model.base_model_prefix and first not in dict(model.base_model.named_children())


def _names(names: Iterable[str]) -> str:
    """The first few of many names, sorted."""
    ordered = sorted(names)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(ordered[:SHOWN]) + more
