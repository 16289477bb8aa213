"""The arena: a method for each round, lost prompts, strengths after each round."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agents.iteration import arena
from agents.iteration.arena import arena_table, games_of, strengths
from agents.iteration.judging import opponents
from agents.iteration.settings import REJECTION_SAMPLING, IterationSettings
from agents.iteration.state import RoundsState
from agents.preferences.records import Candidates, Ranking, Response, read_rankings
from llm_env.default_task import DEFAULT_MODEL
from tests.agents.iteration.test_rounds import HELD_OUT, quick_pictures, run

__all__ = ["quick_pictures"]  # a fixture that holds here too

ARENA = ("--opponent", "best_of:4", DEFAULT_MODEL, "--judge", "gold", "--schedule")


def settings(**changes: Any) -> IterationSettings:
    return IterationSettings(output_dir=Path("x"), **changes)


def test_each_round_has_its_method_and_its_settings() -> None:
    all_rounds = settings(
        schedule=("sft", "dpo", "ppo"),
        opponent=("best_of:16",),
        schedule_kwargs=("dpo.beta=0.3", "dpo.label_smoothing=0.1", "ppo.total_timesteps=4096", "ppo.n_epochs=2"),
    )
    all_rounds.check()
    rounds = [all_rounds.of_round(number) for number in range(1, 8)]
    assert [r.method for r in rounds] == [
        REJECTION_SAMPLING,
        "dpo",
        "ppo",
        *[REJECTION_SAMPLING, "dpo", "ppo"],
        REJECTION_SAMPLING,
    ]
    sft, dpo, ppo = rounds[:3]
    assert (sft.beta, dpo.beta, ppo.beta) == (None, 0.3, None)
    assert (sft.method_kwargs, dpo.method_kwargs, ppo.method_kwargs) == ((), ("label_smoothing=0.1",), ("n_epochs=2",))
    assert (dpo.total_timesteps, ppo.total_timesteps) == (20_480, 4096)
    assert all(r.select == ("lost",) and r.reference_name == "previous" for r in rounds)
    assert ppo.trains_reward_model
    assert not sft.trains_reward_model
    assert not settings(schedule=("sft", "ppo")).of_round(2).trains_reward_model  # without opponents the judge scores
    assert settings(method="ppo", opponent=("m",)).trains_reward_model
    plain = settings(method="dpo")
    assert plain.of_round(5) is plain
    assert plain.reference_name == "first"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": ("sft", "dpoo")}, "method='dpoo' is not known"),
        ({"schedule_kwargs": ("dpo.beta=1",)}, "give --schedule"),
        ({"schedule": ("sft",), "schedule_kwargs": ("dpo.beta=1",)}, "with a method of the schedule: sft"),
        ({"schedule": ("dpo",), "schedule_kwargs": ("beta=1",)}, "must be METHOD.NAME"),
        ({"schedule": ("dpo",), "schedule_kwargs": ("dpo.beta=-1",)}, "beta=-1 must be"),
        ({"schedule": ("ppo",), "schedule_kwargs": ("ppo.total_timesteps=0",)}, "total_timesteps=0 must be"),
        ({"schedule": ("dpo",), "learning_rate": 1e-3}, "a setting of one method"),
        ({"schedule": ("dpo", "sft"), "keep_rounds": 1}, "keep_rounds=1"),
        ({"method": "ppo", "select": ("lost",)}, "generates for itself"),
        ({"method": "ppo", "select": ("margin",), "opponent": ("m",)}, "trained on rankings"),
        ({"select": ("lost",)}, "give --opponent"),
    ],
)
def test_schedules_that_cannot_be_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changes).check()


def test_games_come_from_ranks_and_strengths_from_games() -> None:
    candidates = Candidates("p0", "Hm?", tuple(Response(f"r{i}", str(i)) for i in (0, 1, 12)))
    assert games_of(Ranking(candidates, (("r12",), ("r0", "r1")))) == [(0, 1, 0.5), (0, 12, 0.0), (1, 12, 0.0)]
    by_prompt = [[(0, 1, 1.0)], [(0, 1, 1.0)], [(0, 1, 1.0)], [(0, 1, 0.0)], [(1, 2, 0.5)]] * 40
    found = strengths(by_prompt, ["strong", "start", "as strong"], 1)
    assert [p["elo"] for p in found] == pytest.approx([1190.8, 1000, 1000], abs=3)  # odds 3: 400 log10 3 = 190.8
    assert [(p["games"], p["points"]) for p in found] == [(160, 120), (200, 60), (40, 20)]
    assert found[1]["low"] == found[1]["high"] == 1000
    assert found[0]["low"] < 1190 < found[0]["high"]
    table = arena_table([{"judge": "me", "players": found}])
    assert "| start | 1000 (1000 to 1000) | 200 | 60 |" in table


def test_rounds_of_an_earlier_version_had_one_opponent(tmp_path: Path) -> None:
    state = RoundsState(IterationSettings(output_dir=tmp_path, opponent=("x",)), Console(quiet=True))
    state.keep_settings()
    path = tmp_path / "settings.json"
    path.write_text(path.read_text().replace('[\n  "x"\n ]', '"x"'))
    (tmp_path / "round_1" / "training").mkdir(parents=True)
    assert json.loads(path.read_text())["opponent"] == "x"
    state.keep_settings()
    other = RoundsState(IterationSettings(output_dir=tmp_path, opponent=("y",)), Console(quiet=True))
    with pytest.raises(ValueError, match=r"other settings \(opponent\)"):
        other.keep_settings()
    assert [o.model_name for o in opponents(state)] == ["x"]
    mine = dataclasses.replace(state.settings, opponent=("best_of:3",))
    assert opponents(RoundsState(mine, Console(quiet=True)))[0].model_name == DEFAULT_MODEL


@pytest.fixture(scope="module")
def battles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A round of SFT and one of DPO, against two opponents."""
    folder = tmp_path_factory.mktemp("arena") / "whole"
    assert run(folder, *ARENA, "sft", "dpo") == 0
    return folder


def test_the_actor_learns_where_it_lost(battles: Path) -> None:
    for number, actor in ((1, DEFAULT_MODEL), (2, str(battles / "round_1" / "training" / "actor"))):
        rankings = read_rankings(battles / f"round_{number}" / "rankings.jsonl")
        sources = {r.source for ranking in rankings for r in ranking.candidates.responses}
        assert {"best_of:4 at 1", f"{actor} at 1"} <= sources
        lines = [json.loads(x) for x in (battles / f"round_{number}" / "train.jsonl").read_text().splitlines()]
        assert lines
        by_prompt = {json.dumps(r.candidates.prompt): r for r in rankings}
        for line in lines:
            ranking = by_prompt[json.dumps(line["prompt"])]
            top = [ranking.candidates.response(name) for name in ranking.tiers[0]]
            assert all(r.source != f"{actor} at 1" for r in top)
            if number == 1:
                assert line["response"] in [r.text for r in top]
            else:
                assert line["ranking"][0][0] in ranking.tiers[0]
    counts = json.loads((battles / "round_1" / "selection.json").read_text())
    assert 0 < counts["lost"] < counts["rankings"]
    note = json.loads((battles / "round_2" / "training" / "preference.json").read_text())
    assert note["reference"] == str(battles / "round_1" / "training" / "actor")


def test_all_players_have_strengths(battles: Path) -> None:
    (report,) = json.loads((battles / "arena.json").read_text())
    names = ["best_of:4", DEFAULT_MODEL, "start", f"round 1: {REJECTION_SAMPLING}", "round 2: dpo"]
    players = {p["player"]: p for p in report["players"]}
    assert list(players) == names
    assert players["start"]["elo"] == 1000
    assert all(p["low"] <= p["elo"] <= p["high"] for p in players.values())
    # opponents meet each other, start, and both rounds; start meets opponents and round 1, and so on
    assert [p["games"] // HELD_OUT for p in report["players"]] == [4, 4, 3, 4, 3]
    assert sum(p["points"] for p in report["players"]) == sum(p["games"] for p in report["players"]) / 2
    assert "round 2: dpo" in (battles / "arena.md").read_text()


@pytest.mark.slow
def test_an_interrupted_arena_ends_with_the_same_strengths(
    battles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = tmp_path / "out", arena.strengths

    def stop(games: Any, names: list[str], anchor: int) -> Any:
        if len(names) == 4:  # after the first round
            raise KeyboardInterrupt
        return real(games, names, anchor)

    monkeypatch.setattr(arena, "strengths", stop)
    assert run(folder, *ARENA, "sft", "dpo") == 130
    monkeypatch.setattr(arena, "strengths", real)
    assert run(folder, *ARENA, "sft", "dpo") == 0
    mine, whole = (json.loads((f / "arena.json").read_text()) for f in (folder, battles))
    assert mine == whole
    assert run(folder, *ARENA, "sft") == 1  # another schedule


@pytest.mark.slow
def test_a_reward_model_of_lost_rankings_scores_ppo(tmp_path: Path, battles: Path) -> None:
    options = (
        *ARENA,
        "sft",
        "dpo",
        "ppo",
        "--rounds",
        "3",
        "--schedule-kwargs",
        "ppo.total_timesteps=512",
        "ppo.n_envs=16",
    )
    assert run(tmp_path / "out", *options) == 0
    third = tmp_path / "out" / "round_3"
    learned = read_rankings(third / "all_rankings.jsonl")
    expected = []
    for n, actor in enumerate([DEFAULT_MODEL, *(tmp_path / f"out/round_{n}/training/actor" for n in (1, 2))], 1):
        for ranking in read_rankings(tmp_path / "out" / f"round_{n}" / "rankings.jsonl"):
            places = [[ranking.candidates.response(name).source for name in tier] for tier in ranking.tiers]
            if any(f"{actor} at 1" in tier for tier in places) and f"{actor} at 1" not in places[0]:
                expected.append(ranking)
    assert learned == expected
    assert learned
    config = (third / "training" / "config.yaml").read_text()
    assert str(third / "reward_modelling" / "reward_model") in config
    assert (tmp_path / "out" / "actor" / "config.json").is_file()
