"""Gold that falls while the score rises ends a run; responses that repeat or run away are said."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.callbacks.drift import LENGTHS, MOST_REPEATED, SURE, WINDOW, Drift, Numbers, gold_fell, mean_of, numbers_of
from agents.callbacks.metrics import episode_statistics
from agents.cli import train
from agents.runs.ending import Ending, read_ending
from agents.runs.figure import read_progress
from agents.runs.report.data import read_run


def iteration(
    score: float = 0.0, gold: float = 0.0, variance: float = 0.01, repeated: float = 0.0, length: float = 20
) -> Numbers:
    return Numbers(score, gold, variance, repeated, length)


def kinds(numbers: list[Numbers]) -> list[tuple[int, str]]:
    """The alarms of iterations, counted from 1."""
    drift = Drift()
    return [(n, kind) for n, one in enumerate(numbers, 1) for kind, _ in drift.see(one)]


def test_means_of_a_window_by_hand() -> None:
    window = [iteration(1, 2, 0.04, 0.1, 10), iteration(3, 6, 0.08, 0.3, 20)]
    got = mean_of(window)
    assert (got.score, got.gold, got.repetition, got.length) == pytest.approx((2, 4, 0.2, 15))
    assert got.gold_variance == pytest.approx((0.04 + 0.08) / 4)  # of the mean of two independent means


def test_a_fall_counts_beyond_its_error_and_while_the_score_rises() -> None:
    error = math.sqrt(0.01 + 0.03)
    best = iteration(1.0, 3.0, 0.01)
    assert gold_fell(best, iteration(1.1, 3.0 - SURE * error - 1e-6, 0.03))
    assert not gold_fell(best, iteration(1.1, 3.0 - SURE * error + 1e-6, 0.03))
    assert not gold_fell(best, iteration(0.9, -5.0, 0.03))  # both fell: no over-optimization, but a run that breaks


def test_gold_that_turns_is_found_and_gold_that_rises_is_not() -> None:
    rising = [iteration(score=0.1 * i, gold=0.1 * i) for i in range(12)]
    turned = [iteration(score=1.2 + 0.1 * i, gold=1.2 - 0.2 * i) for i in range(12)]
    found = kinds([*rising, *turned])
    assert {kind for _, kind in found} == {"gold"}
    assert 12 + WINDOW / 2 < found[0][0] <= 12 + 2 * WINDOW
    assert kinds([*rising, *rising]) == []
    assert kinds([iteration(score=0.1 * i) for i in range(30)]) == []  # no gold score


def test_the_best_window_shares_no_iteration_with_the_latest() -> None:
    drift = Drift()
    for i in range(2 * WINDOW):
        list(drift.see(iteration(gold=i)))
    assert drift.best is not None
    assert drift.best.gold == pytest.approx((WINDOW - 1) / 2)  # of 0, 1, 2, 3


def test_a_gold_score_that_levels_off_ends_few_runs() -> None:
    """Two in a hundred at most, of 50 iterations whose gold score rises to 3 and stays there while the score still rises."""
    ended = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        steps = np.arange(50)
        score = 2 * (1 - np.exp(-steps / 12)) + rng.normal(0, 0.05, 50)
        gold = 3 * (1 - np.exp(-steps / 8)) + rng.normal(0, 0.2, 50)
        ended += bool(kinds([iteration(s, g, 0.2**2) for s, g in zip(score, gold, strict=True)]))
    assert ended <= 4


def test_texts_are_compared_with_the_first_ones() -> None:
    begin = [iteration(repeated=0.05)] * WINDOW
    assert kinds([*begin, *[iteration(repeated=0.04 + MOST_REPEATED)] * 9]) == []
    assert kinds([*begin, *[iteration(repeated=0.06 + MOST_REPEATED)] * WINDOW]) == [(2 * WINDOW, "repetition")]
    assert kinds([*begin, *[iteration(length=20 * LENGTHS + 1)] * WINDOW]) == [(2 * WINDOW, "length")]
    assert kinds([*begin, *[iteration(length=20 / LENGTHS - 1)] * WINDOW]) == [(2 * WINDOW, "length")]


@pytest.mark.parametrize("stopped", range(1, 24, 5))
def test_a_resumed_run_compares_with_what_it_had(stopped: int) -> None:
    numbers = [iteration(0.1 * i, 0.3 * min(i, 20 - i), repeated=0.01 * i) for i in range(24)]
    whole, first, rest = Drift(), Drift(), Drift()
    told = [list(whole.see(one)) for one in numbers]
    begun = [list(first.see(one)) for one in numbers[:stopped]]
    rest.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert begun + [list(rest.see(one)) for one in numbers[stopped:]] == told
    assert any(told)


def test_the_numbers_are_those_of_the_log() -> None:
    info = {"kl": 1.0, "response_length": 4, "has_end": True}
    infos = [
        {**info, "rm_score": s, "gold_score": g, "repetition": r} for s, g, r in ((1.0, 2.0, 0.2), (3.0, 6.0, 0.4))
    ]
    got = numbers_of(episode_statistics(infos), len(infos))
    assert (got.score, got.gold, got.repetition, got.length) == pytest.approx((2, 4, 0.3, 4))
    assert got.gold_variance == pytest.approx(4 / 2)


def vowels(prompts: list[str], responses: list[str]) -> list[float]:
    return [min(3.0, 10 * sum(c in "aeiou" for c in r) / max(1, len(r)) - 3) for r in responses]


def fewer_vowels(prompts: list[str], responses: list[str]) -> list[float]:
    return [-score for score in vowels(prompts, responses)]


def command(folder: Path, iterations: int, gold: str, *more: str) -> list[str]:
    return [
        *("--output-dir", str(folder), "--reward-model", f"{__name__}:vowels", "--gold", f"{__name__}:{gold}"),
        *("--kl-coef", "0", "--n-envs", "32", "--max-new-tokens", "8", "--learning-rate", "1e-3", "--n-samples", "2"),
        *("--total-timesteps", str(iterations * 32 * 8), "--checkpoint-every", "5", *more),
    ]


def iterations(folder: Path) -> int:
    return len(read_progress(folder / "progress.csv")["train/alarms"])


@pytest.mark.filterwarnings("always::UserWarning")
@pytest.mark.slow
def test_a_run_ends_where_gold_falls_and_goes_on_where_it_is_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert train.main(command(folder, 30, "fewer_vowels")) == 0
    told = capsys.readouterr().out
    ended = iterations(folder)
    assert 2 * WINDOW <= ended < 20
    assert f"Ended after iteration {ended} by the alarm 'gold'" in told
    progress = read_progress(folder / "progress.csv")
    assert progress["train/alarms"][-1] >= 1
    assert progress["rollout/gold_score"][-1] < progress["rollout/gold_score"][0]
    assert (folder / "actor" / "model.safetensors").is_file()
    samples = (folder / "samples.jsonl").read_text().splitlines()
    times = [json.loads(line)["timestep"] for line in samples]
    # The last iteration's, and after them those of the actor of before the fall, which the run ends with.
    assert ended * 32 * 8 in times
    ending = json.loads((folder / "actor" / "ending.json").read_text())
    assert (ending["alarm"], ending["iteration"]) == ("gold", ended)
    assert times[-1] == ending["kept"]["timestep"] < ended * 32 * 8
    # It stays where it is, until it is told to go on.
    assert train.main(["--resume", str(folder)]) == 0
    assert f"Ended after iteration {ended} by the alarm 'gold'" in capsys.readouterr().out
    assert iterations(folder) == ended
    assert train.main(["--resume", str(folder), "--stop-on", "none"]) == 0
    assert iterations(folder) == 30


@pytest.mark.filterwarnings("always::UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize(("gold", "more"), [("vowels", ()), ("fewer_vowels", ("--stop-on", "kl"))])
def test_a_run_goes_on_where_gold_rises_or_other_alarms_stop_it(
    gold: str, more: tuple[str, ...], tmp_path: Path
) -> None:
    assert train.main(command(tmp_path / "run", 16, gold, *more)) == 0
    assert iterations(tmp_path / "run") == 16


@pytest.mark.filterwarnings("always::UserWarning")
def test_an_alarm_ends_training_before_another_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def see(self: Drift, numbers: Numbers) -> Iterator[tuple[str, str]]:
        seen.append(numbers)
        if len(seen) == 2:
            yield "length", "too long"

    monkeypatch.setattr(Drift, "see", see)
    folder = tmp_path / "run"
    assert train.main(command(folder, 4, "vowels", "--stop-on", "length")) == 0
    assert "note: Iteration 2, too long" in capsys.readouterr().out
    assert iterations(folder) == len(seen) == 2
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step_{2 * 32 * 8:012d}"]
    assert read_ending(folder / "actor") == Ending("length", 2)
    page = read_run(folder)
    assert page["state"] == "stopped"
    sentence = "Ended after iteration 2 by the alarm 'length' (stop_on): the actor is the one of that iteration."
    assert sentence in page["notes"]
    assert sentence in (folder / "actor" / "README.md").read_text()
