"""Weight files that lack something, hold too much, are damaged, or hold code; tokenizers that do not fit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from agents.policies.recurrent import load_recurrent_actor
from agents.runs.checkpoint_actor import load_checkpoint_actor
from agents.supervised.reward_model.model import load_base
from agents.supervised.settings import RewardSettings
from llm_env.default_task import DEFAULT_MODEL, DEFAULT_REWARD_MODEL
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.loading import load_tokenizer, load_weights
from llm_env.lm.names import LoadSettings
from llm_env.reward.heads import load_gate
from llm_env.reward.models import load_reward_model
from tests.conftest import save_model

LOAD = LoadSettings("float32", "cpu")
LAYER = "model.layers.1.mlp.up_proj.weight"


def copy(tmp_path: Path, source: str = DEFAULT_MODEL) -> Path:
    shutil.copytree(source, tmp_path / "m")
    return tmp_path / "m"


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def edit_json(path: Path, **values: Any) -> str:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")
    return str(path.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(LAYER), rf"{re.escape(LAYER)} would be random"),
        (lambda w: w.update(extra=torch.zeros(2)), r"extra would be left over"),
        (lambda w: w.update({LAYER: torch.zeros(3, 3)}), rf"{re.escape(LAYER)} \(3, 3\) instead of \(352, 128\)"),
    ],
)
def test_weights_that_are_not_exactly_the_models_are_named(tmp_path: Path, change: Any, message: str) -> None:
    folder = edit(copy(tmp_path), change)
    with pytest.raises(ValueError, match=rf"^model='{folder}' \(LlamaForCausalLM\) is no complete.*{message}"):
        load_causal_lm(folder, LOAD)
    if "extra" not in message:  # the trunk of a reward model that is to be trained must be whole too
        with pytest.raises(ValueError, match=message):
            load_base(folder, RewardSettings(preferences="-", output_dir=Path("unused")), load_tokenizer(folder))


def test_only_what_older_versions_saved_may_be_left_over(tmp_path: Path) -> None:
    harmless = ("model.layers.0.self_attn.rotary_emb.inv_freq", "h.0.attn.bias", "v_head.summary.weight")
    folder = edit(copy(tmp_path), lambda w: w.update({name: torch.zeros(2) for name in harmless}))
    weights, whole = (load_causal_lm(f, LOAD).model.state_dict() for f in (folder, DEFAULT_MODEL))
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole.items())
    assert not any(name.startswith("v_head") for name in weights)


def test_a_reward_model_without_its_head_neither_scores_nor_trains(tmp_path: Path) -> None:
    folder = edit(copy(tmp_path, DEFAULT_REWARD_MODEL), lambda w: w.pop("score.weight"))
    tokenizer = load_tokenizer(folder)
    with pytest.raises(ValueError, match=r"^reward_model=.*score.weight would be random"):
        load_reward_model(folder, LOAD, tokenizer)
    with pytest.raises(ValueError, match=r"^model=.*score.weight would be random"):
        load_base(folder, RewardSettings(preferences="-", output_dir=Path("unused")), tokenizer)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi", "opt", "bloom"])
def test_a_new_head_may_replace_an_old_one(model_folder: Callable[..., str], family: str) -> None:
    folder = model_folder(family)
    model = load_weights(AutoModelForSequenceClassification, folder, "model", "model", LOAD, num_labels=1)
    assert model.config.num_labels == 1


@pytest.mark.parametrize("name", ["Bert", "Roberta", "DistilBert", "DebertaV2"])
def test_an_encoder_may_get_a_new_head_and_pooler(tmp_path: Path, name: str) -> None:
    size = {"vocab_size": 1024, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(transformers, f"{name}Config")(**size, intermediate_size=32)
    folder = save_model(tmp_path / "m", AutoModelForMaskedLM.from_config(config))
    load_weights(AutoModelForSequenceClassification, folder, "model", "model", LOAD, num_labels=1)
    with pytest.raises(ValueError, match="would be random"):  # as a reward model it is not complete
        load_weights(AutoModelForSequenceClassification, folder, "reward model", "reward_model", LOAD)


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 100])
@pytest.mark.parametrize("kind", [DEFAULT_MODEL, DEFAULT_REWARD_MODEL])
def test_a_damaged_weight_file_is_named(tmp_path: Path, kind: str, content: bytes | None) -> None:
    folder = copy(tmp_path, kind)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    auto_class = AutoModelForCausalLM if kind == DEFAULT_MODEL else AutoModelForSequenceClassification
    with pytest.raises(ValueError, match=rf"^actor='{folder}': .*model.safetensors is cut off or damaged"):
        load_weights(auto_class, str(folder), "model", "actor", LOAD)


def test_damaged_files_of_our_own_are_named(tmp_path: Path) -> None:
    for name in ("gate.safetensors", "policy.safetensors"):
        (tmp_path / name).write_bytes(b"garbage" * 10)
    with pytest.raises(ValueError, match=r"gate.safetensors' is cut off or damaged"):
        load_gate(str(tmp_path), 8, 2)
    checkpoint = tmp_path / "checkpoints" / "step_000000001"
    checkpoint.mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("{}\n", encoding="utf-8")
    (checkpoint / "policy.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"step_000000001/policy.safetensors' is cut off or damaged"):
        load_checkpoint_actor(checkpoint, LOAD)
    (tmp_path / "policy.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"policy.json' is not what a recurrent actor is saved as"):
        load_recurrent_actor(tmp_path, task=None)  # type: ignore[arg-type]  # is not looked at


class Opens:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Opens(tmp_path / "was_run")}, folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"weights are in pytorch_model.bin, .* only safetensors is read.*save_pretrained"
    ):
        load_causal_lm(str(folder), LOAD)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("model_type", ["unheard_of", "llama"])
def test_code_in_a_model_folder_is_not_run(tmp_path: Path, model_type: str) -> None:
    folder = copy(tmp_path)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n", encoding="utf-8")
    names = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    edit_json(folder / "config.json", model_type=model_type, auto_map=names)
    if model_type == "llama":  # transformers' own class is taken
        load_causal_lm(str(folder), LOAD)
    else:
        with pytest.raises(ValueError, match=r"^model=.*Python code of its own.*turn trust_remote_code on\.$"):
            load_causal_lm(str(folder), LOAD)
    edit_json(folder / "config.json", model_type="llama", auto_map={})
    edit_json(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": [None, "own.Own"]})
    with pytest.raises(ValueError, match=r"^model=.*no tokenizer.*Python code of its own"):
        load_tokenizer(str(folder))
    assert not (tmp_path / "was_run").exists()


def test_a_tokenizer_larger_than_the_model_is_refused_with_both_numbers(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens(["largeword"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"gives ids up to 1024, the model has 1024 embeddings.*embeddings to 1025"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a valid JSON"),
        ('{"model_type": "nosuch"}', "nosuch"),
        ('{"model_type": "llama", "hidden_size": "x"}', "expected int, got str"),
    ],
)
def test_a_broken_configuration_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    folder = copy(tmp_path)
    (folder / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        load_causal_lm(str(folder), LOAD)
    assert "\n" not in str(caught.value)
