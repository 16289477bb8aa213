"""The model of tokens a second, by hand on small numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import scaling_model
from scaling_model import COUNTS, Links, Times, Work, apart, generation, learning, measured, stops_at, together

WORK = Work(responses=16, prompt=10, response=20, mean=0.5, epochs=2, mini_batches=2, pass_tokens=1000)
TIMES = Times("a", step=1.0, slot=0.5, score=0.01, train=0.1, update=3.0, trained=80.0, actor=40.0, states=16.0,
              memory=10.0, beside=2.0)  # fmt: skip
LINKS = Links(near=10.0, far=1.0, near_s=0.0, far_s=0.0, machine=4)


def test_messages_travel_once_around_a_machine_and_then_among_machines() -> None:
    assert LINKS.gather(80.0, 1) == 0
    assert LINKS.gather(80.0, 4) == pytest.approx(3 / 4 * 80 / 10)
    # of what each of the four has, 20 bytes, half comes from the other machine
    assert LINKS.gather(80.0, 8) == pytest.approx(6 + 1 / 2 * 20 / 1)
    assert LINKS.all_reduce(80.0, 4) == pytest.approx(12)
    assert replace(LINKS, near_s=2.0).gather(0.0, 4) == 6


def test_a_step_is_shared_by_slots_and_never_shorter_than_itself() -> None:
    assert generation(TIMES, WORK, 4) == 20 * (1 + 0.5 * 4)
    assert generation(TIMES, WORK, 64) == 20 * (1 + 0.5)  # one slot, and idle GPUs
    assert generation(TIMES, WORK, 4, refilled=True) == 10 * 3


def test_learning_by_hand() -> None:
    read = 4 * 20  # four responses of ten tokens, after ten
    computing = 0.01 * read + 2 * 0.1 * read
    assert learning(TIMES, LINKS, WORK, 4, 1) == pytest.approx(computing + 4 * 3.0 + 4 * 12)
    gathers = 3 * 4 + 1  # of an update each; scoring once
    hidden = max(computing, gathers * 6)
    assert learning(TIMES, LINKS, WORK, 4, 4) == pytest.approx(hidden + 4 * 3 / 4 + LINKS.gather(40, 4))
    one_by_one = replace(TIMES, overlaps=False)
    assert learning(one_by_one, LINKS, WORK, 4, 4) == pytest.approx(computing + gathers * 6 + 3 + 3)
    # groups of two: the weights within a group, the sums of gradients of a half among two groups
    in_groups = max(computing, gathers * 4) + 4 * 3 / 2 + 4 * LINKS.all_reduce(40, 2) + LINKS.gather(40, 2)
    assert learning(TIMES, LINKS, WORK, 4, 2) == pytest.approx(in_groups)


def test_what_does_not_fit_has_no_speed() -> None:
    assert math.isnan(together(TIMES, LINKS, WORK, 4, 1))  # 16 + 2 of 10
    assert together(TIMES, LINKS, WORK, 4, 4) > 0
    assert math.isnan(apart(TIMES, LINKS, WORK, 2))  # one that learns has all of it
    assert apart(TIMES, LINKS, WORK, 8) > 0


def test_the_best_split_waits_for_the_slower_half() -> None:
    free = replace(TIMES, states=0.0, update=0.0, trained=0.0, actor=0.0, step=0.0, slot=1.0, score=0.0, train=0.1)
    # 160 tokens; generating takes 16/g x 10 s, learning 2 x 0.1 x 20 x 16/l s: three of four generate
    assert apart(free, LINKS, WORK, 4) == pytest.approx(160 / max(10 * 6, 64))


def test_doubling_stops_to_pay() -> None:
    assert stops_at([1, 2, 4, 5, *[6] * 6]) == 4
    assert stops_at([math.nan, 1.0, 1.6, 2.0, *[2.0] * 6]) == 4
    assert stops_at([2.0**i for i in range(len(COUNTS))]) == 512
    assert stops_at([math.nan] * len(COUNTS)) is None


def results(folder: Path, batches: tuple[int, ...], **more: Any) -> list[Path]:
    paths = []
    for batch in batches:
        case = {"model": "135m", "batch": batch, "prompt": 8, "response": 4, "epochs": 2, "mini_batches": 2}
        seconds = {"generate": 4 * (0.2 + 0.05 * batch), "score": 0.01 * batch * 12, "train": 0.1 * batch * 24 + 4 * 2}
        row = {"seconds": dict.fromkeys(seconds, 99.0), "cpu_seconds": seconds, "threads": 1, "parameters": 10, **more}
        path = folder / f"{batch}.json"
        path.write_text(json.dumps([{"case": case, "contenders": {"ours-full": row}}]))
        paths.append(path)
    return paths


def test_measured_times_are_found_again(tmp_path: Path) -> None:
    t = measured(results(tmp_path, (2, 4, 8)), "ours-full")
    assert (t.step, t.slot, t.score) == pytest.approx((0.2, 0.05, 0.01))
    assert (t.train, t.update, t.trained) == pytest.approx((0.1, 2.0, 40.0))


def test_what_says_too_little_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output-dir", str(tmp_path / "out"), "--measured", *map(str, results(tmp_path, (2,)))]
    assert scaling_model.main(arguments) == 1
    assert "at two numbers of responses or more" in " ".join(capsys.readouterr().out.split())
    arguments[3:] = map(str, results(tmp_path, (2, 4), parameters=None))
    assert scaling_model.main(arguments) == 1
    assert "do not say how many parameters" in " ".join(capsys.readouterr().out.split())


def test_it_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = map(str, results(tmp_path, (2, 4)))
    assert scaling_model.main(["--output-dir", str(tmp_path / "out"), "--measured", *paths]) == 0
    assert capsys.readouterr().out.count("| replicas |") == 3
    found = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert all(len(values) == len(COUNTS) for rates in found.values() for values in rates.values())
    assert (tmp_path / "out" / "scaling.png").stat().st_size > 10_000
