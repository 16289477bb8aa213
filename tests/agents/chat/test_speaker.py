"""Actors that answer: the KL and the value of each token, and where reference and critic come from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from agents import make_algorithm
from agents.chat.speaker import Speaker, SpeakerSettings, find_actor
from agents.flat_settings import write_settings
from agents.runs.checkpoint import save_checkpoint
from agents.runs.checkpoint_actor import load_checkpoint_actor
from agents.runs.settings import AlgorithmSettings, RunSettings, TaskOptions
from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.loading import load_tokenizer
from llm_env.lm.names import LoadSettings
from llm_env.lm.packing import pack
from llm_env.rendering import END
from tests.conftest import short_model

SETTINGS = SpeakerSettings(0.8, 64, 12, LoadSettings("float32", "cpu"))
ASK = [{"role": "user", "content": "How was the hotel?"}]


def made(folder: Path, critic: str) -> tuple[Path, object]:
    """A run with a checkpoint of weights that moved, and its algorithm."""
    torch.manual_seed(0)
    task = {"max_new_tokens": 6, "reward_shift": 2.0, "reward_scale": 0.5}
    model = make_algorithm("ppo", n_envs=2, rounds=1, critic=critic, env_kwargs=task, seed=0)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.learn(0)
    save_checkpoint(model, folder / "checkpoints")
    settings = RunSettings(TaskOptions(**task), algorithm=AlgorithmSettings(critic=critic))
    write_settings(settings, folder / "config.yaml")
    return folder, model.policy


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def __len__(self) -> int:
        return 256

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


def test_a_character_of_several_tokens_stands_with_the_last_of_them() -> None:
    speaker = object.__new__(Speaker)
    speaker.model = SimpleNamespace(tokenizer=Bytes(), eos_ids=frozenset({0}))  # type: ignore[assignment]
    assert speaker._texts([*"aé😀b".encode(), 0]) == ["a", "", "é", "", "", "", "😀", "b", END]
    assert speaker._texts([97, 0xC3]) == ["a", "\ufffd"]  # cut off within one


@pytest.mark.parametrize("critic", ["reward_model", "actor", "head", "top_layers"])
def test_tokens_have_the_kl_and_the_values_of_the_policy(critic: str, tmp_path: Path) -> None:
    run, policy = made(tmp_path, critic)
    place = find_actor(str(run), "actor")
    assert place.run == run
    speaker = Speaker("mine", place, SETTINGS)
    assert speaker.notes == []
    answer = speaker.answer(ASK, seed=3)
    assert answer == speaker.answer(ASK, seed=3)
    assert answer != speaker.answer(ASK, seed=4)
    assert "".join(t.text for t in answer.tokens).removesuffix(END) == answer.text
    assert answer.finished == (answer.tokens[-1].text == END)
    # by other means: the policy's own values, and log-probs from a plain forward pass
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    prompt = list(tokenizer("How was the hotel?")["input_ids"])
    with speaker.model.frozen() as lm:
        ids = [tokenizer.convert_tokens_to_ids(t) for t in tokenizer.tokenize(answer.text)]
        ids += [next(iter(speaker.model.eos_ids))] if answer.finished else []
        assert len(ids) == len(answer.tokens)
        sequence = torch.tensor([[*prompt, *ids]])
        with torch.no_grad():
            ours = torch.log_softmax(lm.model(sequence).logits[0, len(prompt) - 1 : -1] / 0.8, -1)
            with speaker.reference.frozen() as reference:
                theirs = torch.log_softmax(reference.model(sequence).logits[0, len(prompt) - 1 : -1] / 0.8, -1)
            places = torch.arange(len(ids)), torch.tensor(ids)
            values = policy.predict_values(pack([[*prompt, *ids]], [len(prompt)], "cpu"))[:, 0]
    assert [t.kl for t in answer.tokens] == pytest.approx((ours - theirs)[places].tolist(), abs=1e-4)
    assert [t.value for t in answer.tokens] == pytest.approx(values.tolist(), abs=1e-4)
    assert any(abs(t.kl or 0) > 0.01 for t in answer.tokens)


def test_a_long_conversation_is_cut_to_what_the_model_can_read(tmp_path: Path) -> None:
    place = find_actor(short_model(tmp_path), "actor")
    speaker = Speaker("x", place, SETTINGS)
    answer = speaker.answer([{"role": "user", "content": "How was the hotel? " * 30}], 0)
    assert 0 < len(answer.tokens) <= 12
    with pytest.raises(ValueError, match=r"max_new_tokens=48 leaves no room for a prompt: .* can read 48 tokens"):
        Speaker("x", place, SpeakerSettings(0.8, 64, 48, LoadSettings("float32", "cpu")))


def test_a_q_networks_checkpoint_answers(tmp_path: Path) -> None:
    model = make_algorithm("dqn", n_envs=2, env_kwargs={"max_new_tokens": 6}, seed=0)
    with torch.no_grad():
        for parameter in model.policy.q_net.actor.parameters():  # type: ignore[union-attr]
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_checkpoint(model, tmp_path / "checkpoints")
    write_settings(RunSettings(algorithm=AlgorithmSettings(algo="dqn")), tmp_path / "config.yaml")
    (folder,) = (tmp_path / "checkpoints").iterdir()
    ours, theirs = load_checkpoint_actor(folder, SETTINGS.load).lm.model, model.policy.q_net.actor  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    plain = Speaker("x", find_actor(None, "actor"), SETTINGS)
    assert [t.kl for t in plain.answer(ASK, 0).tokens].count(None) == len(plain.answer(ASK, 0).tokens)
    assert "no reference" in plain.notes[0]
    assert "no critic" in plain.notes[1]
    with_reference = Speaker(
        "x", find_actor(None, "actor"), SpeakerSettings(*[*vars(SETTINGS).values()][:4], DEFAULT_MODEL)
    )
    assert all(t.kl == pytest.approx(0, abs=1e-5) for t in with_reference.answer(ASK, 0).tokens)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(FileNotFoundError, match="no actor yet"):
        find_actor(str(tmp_path), "actor")
    (tmp_path / "actor").mkdir()
    assert find_actor(str(tmp_path), "actor").actor == str(tmp_path / "actor")
    assert find_actor(str(tmp_path / "actor"), "actor").run == tmp_path
    assert find_actor("some/hub-id", "actor").actor == "some/hub-id"


def test_a_chat_template_reads_the_whole_conversation(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    talk = [*ASK, {"role": "assistant", "content": "Fine."}, {"role": "user", "content": "And the food?"}]
    plain = Speaker("x", find_actor(None, "actor"), SETTINGS)
    assert plain.prompt(talk) == "And the food?"
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}assistant:"
    load_causal_lm(DEFAULT_MODEL, SETTINGS.load).model.save_pretrained(tmp_path / "chatty")
    tokenizer.save_pretrained(tmp_path / "chatty")
    chatty = Speaker("x", find_actor(str(tmp_path / "chatty"), "actor"), SETTINGS)
    assert chatty.prompt(talk) == talk
    assert [chatty.answer(talk, s).text for s in range(9)] != [chatty.answer(talk[2:], s).text for s in range(9)]
