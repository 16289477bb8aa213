"""Episodes with a world: states, rewards, ends, faults, and what goes on after a checkpoint."""

from __future__ import annotations

import gc
import json
import logging
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check

from agents.policies.sampled_actions import ActionTensor
from agents.rollouts.vec_env import LLMTextVecEnv
from llm_env.env import LLMTextEnv
from llm_env.episode import ENDS, Episode
from llm_env.slots import EpisodeSlots
from llm_env.text.encoding import text_ids
from llm_env.vector_env import LLMTextVectorEnv
from llm_env.worlds import calls
from llm_env.worlds.base import WorldError
from llm_env.worlds.discrete import DiscreteWorld
from tests.conftest import count_dots
from tests.worlds import CHAT, ENDLESS, FORGETFUL, Bad, Echo, Texts, chat_model, echo

WORLD: dict[str, Any] = {
    "world": Echo,
    "max_new_tokens": 12,
    "max_turn_tokens": 4,
    "max_prompt_length": 16,
    "kl_coef": 0.2,
}
END = 2
N, STEPS = 3, 40


def actions(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    chosen = rng.integers(3, 1000, (STEPS, N))
    chosen[rng.random((STEPS, N)) < 0.2] = END
    return chosen


def played(env: LLMTextEnv, tokens: list[int]) -> tuple[list[float], dict[str, Any]]:
    """The rewards of some tokens, and the last information."""
    rewards, info = [], {}
    for token in tokens:
        _, reward, _, _, info = env.step(token)
        rewards.append(reward)
    return rewards, info


def the_episode(env: Any) -> Episode:
    episode = env.unwrapped.batch.episodes[0]
    assert isinstance(episode, Episode)
    return episode


def test_the_state_is_prompt_turn_and_answer_each_encoded_once() -> None:
    env = LLMTextEnv(**WORLD)
    env.reset(seed=1)
    tokens = [500, 501, END, 600, 601, 602, 603]
    _, info = played(env, tokens)
    episode = the_episode(env)
    tokenizer = env.task.tokenizer
    said = [turn.reply for turn in episode.turns]
    answers = [text_ids(f"\n{text}\n", tokenizer) for text in said]
    prompt = text_ids(episode.prompt.text, tokenizer, frame=True)
    assert said[0].startswith(f"Heard {len(tokenizer.decode([500, 501]))}, now ")
    assert episode.ids == [*prompt, *tokens[:3], *answers[0], *tokens[3:], *answers[1]]
    assert episode.length == len(episode.ids)
    kinds = [(span.is_action, span.end - span.start) for span in episode.spans]
    assert kinds == [(False, len(prompt)), (True, 3), (False, len(answers[0])), (True, 4), (False, len(answers[1]))]
    assert [episode.ids[place] for place in episode.places] == tokens
    assert info["end"] == "world"
    assert info["turns"] == 2
    assert info["response_length"] == 7
    assert info["response"] == env.task.decode(episode.ids[len(prompt) :])
    assert info["world_info"] == {"count": 2}


def test_the_observation_grows_by_the_token_and_the_answer() -> None:
    env = LLMTextEnv(**WORLD)
    before, _ = env.reset(seed=1)
    middle, *_ = env.step(500)
    after, *_ = env.step(END)
    assert middle["length"][0] == before["length"][0] + 1
    episode = the_episode(env)
    assert after["length"][0] == middle["length"][0] + 1 + len(episode.turns[0].reply_ids)
    assert after["input_ids"][: after["length"][0]].tolist() == episode.ids
    assert (after["input_ids"][after["length"][0] :] == env.task.pad_value).all()


def test_two_turns_pay_what_the_hand_computes() -> None:
    """Invariant 4 with turns: β·log π_ref on every token, the world's pay on each turn's last, the score on the very last."""
    env = LLMTextEnv(**WORLD, reward_model=count_dots, length_penalty=0.5)
    env.reset(seed=1)
    tokens = [500, 501, END, 600, END]
    rewards, info = played(env, tokens)
    episode = the_episode(env)
    with env.task.model.frozen() as lm:
        ids = torch.tensor([episode.ids])
        log_probs = torch.log_softmax(lm.logits(lm.hidden(ids).last_hidden_state)[0].float(), -1)
    reference = [float(log_probs[place - 1, token]) for place, token in zip(episode.places, tokens, strict=True)]
    dots = episode.response_text.count(".")
    assert dots == 2  # both of the world's
    want = [0.2 * value for value in reference]
    want[2] += 1.0
    want[4] += 2.0 + dots - 0.5 * 5
    np.testing.assert_allclose(rewards, want, atol=1e-4)
    assert info["rm_score"] == 3.0 + dots
    assert info["world_return"] == 3.0
    assert info["ref_log_prob"] == pytest.approx(sum(reference), abs=1e-3)


def single_faces() -> tuple[np.ndarray, list[dict[str, Any]]]:
    """N single environments whose worlds have the vector environment's seeds."""
    venv = LLMTextVectorEnv(N, **WORLD)
    venv.reset(seed=5)
    rewards, infos = np.zeros((STEPS, N)), []
    slots = [EpisodeSlots(venv.task, 1) for _ in range(N)]

    def begin(slot: int) -> None:
        seed = venv.batch.episodes[slot].world_seed  # type: ignore[union-attr]
        slots[slot].order.rng = Fixed(seed)  # type: ignore[assignment]
        slots[slot].begin(0)

    for slot in range(N):
        begin(slot)
    for t, row in enumerate(actions()):
        venv.step(row)
        for slot in range(N):
            rewards[t, slot] = slots[slot].step(row[slot : slot + 1])[0]
            episode = slots[slot].episodes[0]
            assert episode is not None
            if episode.done:
                infos.append({"t": t, "slot": slot, **venv.task.final_info(episode)})
                begin(slot)
    return rewards, infos


class Fixed:
    """A generator that draws one number."""

    def __init__(self, seed: Any) -> None:
        self.seed = seed

    def integers(self, most: int) -> Any:
        return self.seed


def test_the_three_faces_pay_the_same() -> None:
    want, want_infos = single_faces()
    assert {info["end"] for info in want_infos} == {"world"}
    venv = gym.make_vec("LLMText-v0", num_envs=N, **WORLD)
    venv.reset(seed=5)
    ended = []
    for t, row in enumerate(actions()):
        _, rewards, terminated, truncated, infos = venv.step(row)
        np.testing.assert_allclose(rewards, want[t], atol=1e-4)
        assert not truncated.any()
        ended += [(t, int(slot), infos["final_info"]["response"][slot]) for slot in np.flatnonzero(terminated)]
    assert ended == [(i["t"], i["slot"], i["response"]) for i in want_infos]
    sb3 = LLMTextVecEnv(N, **WORLD)
    sb3.seed(5)
    sb3.reset()
    for t, row in enumerate(actions()):
        np.testing.assert_allclose(sb3.step(row)[1], want[t], atol=1e-4)


def test_deferred_scoring_pays_what_steps_pay() -> None:
    step, deferred = LLMTextVecEnv(N, **WORLD), LLMTextVecEnv(N, scoring="deferred", **WORLD)
    log_probs = np.random.default_rng(1).uniform(-5, 0, (STEPS, N)).astype(np.float32)
    paid, promised, now, late = [], [], [], []
    for venv in (step, deferred):
        venv.seed(5)
        venv.reset()
    deferred.collecting = True
    for t, row in enumerate(actions()):
        sent = ActionTensor.carry(torch.from_numpy(row), torch.from_numpy(log_probs[t]), 1.0).cpu().numpy()
        _, rewards, dones, infos = step.step(sent)
        paid.append(rewards)
        now += [i for i, d in zip(infos, dones, strict=True) if d]
        _, rewards, dones, infos = deferred.step(sent)
        assert np.isnan(rewards).all()
        promised.append([(e, len(e.response_ids) - 1) for e in deferred.acted if e is not None])
        late += [i for i, d in zip(infos, dones, strict=True) if d]
    episodes = list({id(e): e for row in promised for e, _ in row}.values())
    deferred.task.score_reference(episodes)
    deferred.task.score_responses(episodes)
    for row, want in zip(promised, paid, strict=True):
        got = [deferred.task.rewards(e, i, e.log_probs[i:])[0] for e, i in row]
        np.testing.assert_allclose(got, want, atol=1e-4)
    for episode in episodes:
        deferred.task.complete_info(episode)
    assert len(now) > 3
    for one, other in zip(now, late, strict=True):
        assert one["response"] == other["response"]
        assert one["episode"]["r"] == pytest.approx(other["episode"]["r"], abs=1e-3)


@pytest.mark.parametrize("world", [Echo, "Texts-v0", "tests.worlds:echo", "tests.worlds:Texts-v0"])
def test_checkers_have_nothing_to_say(world: Any) -> None:
    """Invariant 6, with each kind of name."""
    settings = {**WORLD, "world": world, "world_kwargs": {"turns": 3}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gymnasium_check(gym.make("LLMText-v0", **settings).unwrapped, skip_render_check=True)
        sb3_check(LLMTextEnv(**settings), skip_render_check=True)
        for mode in ("vector_entry_point", "sync"):
            venv = gym.make_vec("LLMText-v0", num_envs=2, vectorization_mode=mode, **settings)
            venv.reset(seed=0)
            venv.action_space.seed(0)
            for _ in range(30):
                obs, *_ = venv.step(venv.action_space.sample())
                assert venv.observation_space.contains(obs)
            venv.close()


def test_a_world_is_told_of_the_prompts_record_and_seeds_reproduce() -> None:
    def texts(seed: int, **more: Any) -> list[tuple[str, int | None]]:
        venv = LLMTextVecEnv(4, episodes="synchronous", prompts=["Apples", "Pears", "Plums"], **WORLD, **more)
        venv.seed(seed)
        venv.reset()
        return [(e.prompt.text, e.prompt.index) for e in venv.batch.episodes if e is not None]

    assert texts(3) == texts(3)
    assert texts(3) != texts(4)
    assert len(set(texts(3))) == 4
    fruits = ("Apples", "Pears", "Plums")
    assert all(index is not None and text.startswith(fruits[index]) for text, index in texts(3))
    groups = texts(3, group_size=2)
    assert groups[0] == groups[1] != groups[2] == groups[3]


def test_a_world_finds_the_columns_and_so_does_a_reward() -> None:
    def answers(prompts: list[str], responses: list[str], answer: list[int]) -> list[float]:
        return [float(a) for a in answer]

    told = Echo(1)
    records = [{"prompt": "Apples", "answer": 3}]
    env = LLMTextEnv(**{**WORLD, "world": lambda: told, "prompts": records, "reward_model": answers, "kl_coef": 0.0})
    env.reset(seed=0)
    assert told.row == {"prompt": "Apples", "answer": 3}
    assert played(env, [5, END])[0] == [0.0, 4.0]


def test_options_name_the_record() -> None:
    env = LLMTextEnv(**WORLD)
    assert env.reset(seed=0, options={"prompt": "Cherries"})[1]["prompt"].startswith("Cherries ")
    assert env.reset(seed=0)[1]["prompt"].startswith("Number ")


class Quiet(Echo):
    """Leaves the beginning to the prompt, and says nothing."""

    def reset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
        super().reset(**kwargs)
        return "", {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", *super().step(text)[1:]


def test_a_world_that_says_nothing_leaves_the_prompt() -> None:
    env = LLMTextEnv(**{**WORLD, "world": Quiet, "prompts": ["Apples:"]})
    assert env.reset(seed=0)[1]["prompt"] == "Apples:"
    _, info = played(env, [500, END, 600, END])
    assert the_episode(env).turns[0].reply_ids == text_ids("\n", env.task.tokenizer)
    assert the_episode(env).turns[1].reply_ids == []  # nobody acts on it
    assert info["end"] == "world"


@pytest.mark.parametrize(
    ("end", "settings", "tokens"),
    [
        ("world", {}, [END, END]),
        ("response_cap", {"max_new_tokens": 4, "world": lambda: Echo(3)}, [5, 5, END, 5]),
        ("response_cap", {"max_new_tokens": 3, "max_turn_tokens": 3}, [5, 5, END]),
        ("turn_cap", {"max_turns": 1}, [5, 5, 5, 5]),
        ("context_full", {"max_length": 17, "max_prompt_length": 12}, [5, 5, END]),
        ("world_error", {"world": lambda: Bad("raises"), "world_errors": "end"}, [5, END, END]),
    ],
)
def test_each_end_has_its_name(end: str, settings: dict[str, Any], tokens: list[int]) -> None:
    env = LLMTextEnv(**{**WORLD, **settings})
    env.reset(seed=0)
    for token in tokens[:-1]:
        assert not env.step(token)[2]
    _, _, terminated, truncated, info = env.step(tokens[-1])
    assert terminated
    assert not truncated
    assert info["end"] == end
    assert info["end"] in ENDS
    assert the_episode(env).length <= env.task.max_length


def test_an_end_without_a_world_has_a_name_too() -> None:
    env = LLMTextEnv(max_new_tokens=2, max_prompt_length=16)
    env.reset(seed=0)
    assert env.step(END)[4]["end"] == "end_token"
    env.reset()
    assert played(env, [5, 6])[1]["end"] == "response_cap"


FAULTS = {
    "raises": "raised RuntimeError: out of apples",
    "times out itself": "raised TimeoutError: no answer from the server",
    "exits": "sys.exit",
    "number": "int 7 where its text should be",
    "none": "NoneType None",
    "short": "it returned tuple",
    "nan": "which is not a finite number",
    "words": "str 'much'",
    "flag": "terminated=str 'yes'",
    "surrogate": "half of a character",
    "messages": "message 0 needs",
    "info": "a dictionary",
}


@pytest.mark.parametrize(("what", "words"), FAULTS.items())
def test_a_fault_is_named_and_counted_or_stops_the_run(what: str, words: str) -> None:
    made: list[Bad] = []
    env = LLMTextEnv(**{**WORLD, "world": lambda: made.append(Bad(what)) or made[-1], "world_errors": "end"})
    env.reset(seed=0)
    _, info = played(env, [5, END, 6, END])
    assert info["end"] == "world_error"
    assert words in info["world_fault"]
    assert "\n" not in info["world_fault"]
    assert info["turns"] == 2
    assert info["rm_score"] == 1.0  # of the first turn
    env.reset()
    assert played(env, [5, END])[1] == {}
    assert len(made) == 2  # whatever the first was left in
    strict = LLMTextEnv(**{**WORLD, "world": lambda: Bad(what)})
    strict.reset(seed=0)
    played(strict, [5, END, 6])
    with pytest.raises(WorldError) as caught:
        strict.step(END)
    assert words in str(caught.value)
    assert "world_errors='end'" in str(caught.value)


@pytest.mark.parametrize("what", ["raises", "exits", "number", "none", "short", "surrogate"])
def test_a_world_that_fails_at_its_reset_ends_with_the_first_token(what: str) -> None:
    env = LLMTextEnv(**{**WORLD, "world": lambda: Bad(what, at_reset=True), "world_errors": "end"})
    env.reset(seed=0)
    _, _, terminated, _, info = env.step(500)
    assert terminated
    assert info["end"] == "world_error"
    assert info["rm_score"] == 0.0
    with pytest.raises(WorldError, match="at its reset"):
        LLMTextEnv(**{**WORLD, "world": lambda: Bad(what, at_reset=True)}).reset(seed=0)


@pytest.mark.parametrize("at_reset", [False, True])
def test_a_world_that_hangs_is_left_behind(at_reset: bool) -> None:
    settings = {**WORLD, "world": lambda: Bad("hangs", at_reset), "world_timeout": 0.3, "world_errors": "end"}
    env = LLMTextEnv(**settings)
    began = time.monotonic()
    env.reset(seed=0)
    _, info = played(env, [5] if at_reset else [5, END, 6, END])
    assert info["end"] == "world_timeout"
    assert "did not answer within 0.3 s" in info["world_fault"]
    env.reset(seed=1)
    assert at_reset or played(env, [5, END])[1] == {}  # the next episode does not wait for it
    assert time.monotonic() - began < 5


def test_a_world_that_cannot_be_made_stops_the_run_in_any_case() -> None:
    with pytest.raises(WorldError, match=r"cannot be made: TypeError: .*'turn'"):
        LLMTextEnv(**WORLD, world_kwargs={"turn": 3}, world_errors="end")


def test_a_long_text_is_cut_with_a_note() -> None:
    env = LLMTextEnv(**{**WORLD, "world": lambda: Bad("long"), "max_world_tokens": 20})
    env.reset(seed=0)
    played(env, [5, END, 6, END])
    episode = the_episode(env)
    assert 15 < len(episode.turns[1].reply_ids) <= 22
    assert episode.world_cut > 100
    assert played(env, [7, END])[1]["world_cut"] == episode.world_cut


def test_calls_of_one_step_run_side_by_side() -> None:
    together = threading.Barrier(16)

    class Meets(Echo):
        """Answers once all sixteen are asked."""

        def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            together.wait(60)
            return super().step(text)

    venv = LLMTextVecEnv(16, **{**WORLD, "world": Meets})
    venv.reset()
    venv.step(np.full(16, END))
    assert not together.broken


def stepped(batch: EpisodeSlots, seed: int, steps: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    seen = []
    for _ in range(steps):
        rewards = batch.step(np.where(rng.random(N) < 0.3, END, rng.integers(3, 900, N)))
        seen.append((rewards.tolist(), [e.ids for e in batch.episodes if e is not None]))
        for slot, episode in enumerate(batch.episodes):
            if episode is not None and episode.done:
                batch.begin(slot)
    return seen


def test_episodes_go_on_from_a_checkpoint_by_playing_the_turns_again() -> None:
    task = LLMTextVectorEnv(1, **{**WORLD, "world": lambda: Echo(5), "max_new_tokens": 20}).task
    batch = EpisodeSlots(task, N)
    batch.seed(np.random.default_rng(0))
    for slot in range(N):
        batch.begin(slot)
    stepped(batch, 1, 7)
    assert any(e is not None and e.turns for e in batch.episodes)
    state = batch.state_dict()
    other = EpisodeSlots(task, N)
    other.load_state_dict(state)
    assert stepped(other, 2, 20) == stepped(batch, 2, 20)


def test_a_restored_episode_knows_its_messages_and_what_the_world_told(tmp_path: Path) -> None:
    env = {**WORLD, "model": chat_model(tmp_path), "world": lambda: Echo(5), "max_prompt_length": 40, "kl_coef": 0.0}
    batch = LLMTextVectorEnv(1, **env).batch
    batch.begin(0)
    batch.step(np.array([END]))
    before = batch.episodes[0]
    state = json.loads(json.dumps(batch.state_dict()))
    other = EpisodeSlots(batch.task, 1)
    other.load_state_dict(state)
    after = other.episodes[0]
    assert before is not None
    assert after is not None
    assert before.prompt.messages is not None  # what a reward model with another template reads
    assert after.prompt == before.prompt
    assert after.world_info["count"] == before.world_info["count"] == 1


def test_a_world_that_does_not_repeat_itself_is_said(caplog: pytest.LogCaptureFixture) -> None:
    class Moody(Echo):
        def reset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
            result = super().reset(**kwargs)
            self.rng = np.random.default_rng()
            return result

    batch = LLMTextVectorEnv(1, **{**WORLD, "world": Moody}).batch
    batch.begin(0)
    batch.step(np.array([END]))
    before = batch.observation()
    state = batch.state_dict()
    with caplog.at_level(logging.WARNING):
        batch.load_state_dict(state)
    assert "says something else than before the checkpoint" in caplog.text
    np.testing.assert_array_equal(batch.observation()["input_ids"], before["input_ids"])


def test_a_chat_grows_by_the_templates_suffix(tmp_path: Path) -> None:
    model = chat_model(tmp_path)
    env = LLMTextEnv(**{**WORLD, "model": model, "max_prompt_length": 40, "kl_coef": 0.0})
    env.reset(seed=1)
    tokens = [500, 501, END, 600, 601, 602, 603]
    played(env, tokens)
    episode = the_episode(env)
    first, answers = episode.prompt.text, [turn.reply for turn in episode.turns]
    assert first.startswith("<|user|>\nNumber ")
    assert first.endswith("</s>\n<|assistant|>\n")
    tokenizer = env.task.tokenizer
    suffix = tokenizer.encode(f"\n<|user|>\n{answers[0]}</s>\n<|assistant|>\n", add_special_tokens=False)
    assert episode.turns[0].reply_ids == suffix
    # The second turn was cut at its cap: the end token that the template wants is the world's; nobody goes on behind it.
    last = tokenizer.encode(f"\n<|user|>\n{answers[1]}</s>\n", add_special_tokens=False)
    assert episode.turns[1].reply_ids == [END, *last]
    assert [episode.ids[p] for p in episode.places] == tokens


def test_a_world_may_answer_with_messages(tmp_path: Path) -> None:
    class Tools(Echo):
        def step(self, text: str) -> Any:
            said = [{"role": "tool", "content": "4 </s>"}, {"role": "user", "content": "Go on."}]
            return said, *super().step(text)[1:]

    env = LLMTextEnv(**{**WORLD, "model": chat_model(tmp_path), "world": Tools, "max_prompt_length": 40})
    env.reset(seed=1)
    played(env, [500, END])
    turn = the_episode(env).turns[0]
    text = env.task.tokenizer.decode(turn.reply_ids)
    assert text.startswith("\n<|tool|>\n4 ")
    assert text.endswith("</s>\n<|user|>\nGo on.</s>\n<|assistant|>\n")
    assert turn.reply_ids.count(END) == 2  # what the message spells out is no end token
    plain = LLMTextEnv(**{**WORLD, "world": Tools, "world_errors": "end"})
    plain.reset(seed=1)
    assert "no chat template" in played(plain, [500, END])[1]["world_fault"]


@pytest.mark.parametrize(
    ("template", "words"), [(FORGETFUL, "writes earlier turns otherwise"), (ENDLESS, "end tokens")]
)
def test_templates_that_do_not_keep_what_was_written_are_refused(tmp_path: Path, template: str, words: str) -> None:
    assert template != CHAT
    with pytest.raises(ValueError, match=words):
        LLMTextEnv(**{**WORLD, "model": chat_model(tmp_path, template)})


def test_an_environment_with_numbers_for_actions_through_two_functions() -> None:
    def made(**kwargs: Any) -> DiscreteWorld:
        return DiscreteWorld(
            gym.make("FrozenLake-v1", is_slippery=False),
            lambda observation, info: f"You are on field {observation}.",
            lambda text: {"a": 0, "b": 1, "c": 2}.get(text[:1]),
            **kwargs,
        )

    env = LLMTextEnv(**{**WORLD, "world": made, "world_kwargs": {"unread_reward": -0.5}, "kl_coef": 0.0})
    assert env.reset(seed=0)[1]["prompt"] == "You are on field 0."
    letter = text_ids("b", env.task.tokenizer)[-1]
    assert env.task.decode([letter]).strip() == "b"
    env.step(letter)
    env.step(END)
    down = the_episode(env).turns[0]
    assert (down.text.strip()[:1], down.reply) in (
        ("b", "You are on field 4."),
        ("b", "That is no action. You are on field 0."),
    )
    _, reward, *_ = env.step(END)
    assert reward == -0.5
    with pytest.raises(WorldError, match="DiscreteWorld"):
        LLMTextEnv(**{**WORLD, "world": "FrozenLake-v1"})


def test_rendering_shows_the_worlds_text_apart() -> None:
    env = LLMTextEnv(render_mode="ansi", **WORLD)
    env.reset(seed=0)
    played(env, [500, END, 600])
    text = env.render()
    turn = the_episode(env).turns[0]
    assert f"\x1b[0m\n{turn.reply}\n\x1b[30" in text  # between two colored tokens, without a color of its own
    assert "3 tokens" in text
    image = LLMTextEnv(render_mode="rgb_array", **WORLD)
    image.reset(seed=0)
    played(image, [500, END, 600])
    assert image.render().ndim == 3


def test_named_worlds() -> None:
    assert echo(3).turns == 3
    assert isinstance(gym.make("Texts-v0", disable_env_checker=True).unwrapped, Texts)


def test_worlds_are_closed_with_the_environment_and_when_nobody_needs_it() -> None:
    closed: list[int] = []

    class Closing(Echo):
        def close(self) -> None:
            time.sleep(0.2)  # a process that ended at once would not let it
            closed.append(1)

    env = LLMTextEnv(**{**WORLD, "world": Closing})
    env.reset()
    env.close()
    assert len(closed) == 1
    venv = LLMTextVecEnv(3, **{**WORLD, "world": Closing})
    venv.reset()
    del venv
    gc.collect()
    assert len(closed) == 4


def test_a_world_that_does_not_close_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Open(Echo):
        def close(self) -> None:
            time.sleep(60)

    monkeypatch.setattr(calls, "CLOSING_SECONDS", 0.1)
    env = LLMTextEnv(**{**WORLD, "world": Open})
    env.reset()
    begun = time.monotonic()
    env.close()
    assert time.monotonic() - begun < 5


def test_a_state_that_is_full_in_the_middle_of_a_turn_ends_there() -> None:
    env = LLMTextEnv(
        **{**WORLD, "max_turn_tokens": 12, "max_prompt_length": 16, "max_length": 17, "max_world_tokens": 4}
    )
    space = env.observation_space
    observation, _ = env.reset(seed=0)
    terminated = False
    while not terminated:
        observation, _, terminated, _, info = env.step(500)
        assert space.contains(observation)
    assert info["end"] == "context_full"
    assert observation["length"][0] == 17
    assert the_episode(env).turns[-1].reply_ids == []


def test_a_world_that_fails_when_it_is_played_again_ends_the_episode(caplog: pytest.LogCaptureFixture) -> None:
    batch = LLMTextVectorEnv(1, **{**WORLD, "world": lambda: Echo(5), "world_errors": "end"}).batch
    batch.begin(0)
    batch.step(np.array([END]))
    state = batch.state_dict()
    broken = LLMTextVectorEnv(1, **{**WORLD, "world": lambda: Bad("raises"), "world_errors": "end"}).batch
    state["episodes"][0]["turns"] *= 2
    with caplog.at_level(logging.WARNING):
        broken.load_state_dict(state)
    assert "says something else than before the checkpoint" in caplog.text
    broken.step(np.array([5]))
    episode = broken.episodes[0]
    assert episode is not None
    assert episode.done
    assert episode.end == "world_error"
