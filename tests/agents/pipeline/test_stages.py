from __future__ import annotations

import dataclasses
import importlib
import json
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from agents.cli import evaluate_actor, pipeline
from agents.cli.arguments import parse_command_line
from agents.flat_settings import flat_types, option_words
from agents.output_folder import locked
from agents.pipeline import report as pipeline_report
from agents.pipeline.commands import RunCommand, run_child, run_here
from agents.pipeline.stages import SCRIPTS, Note, Pipeline, Stage, read_stages, stage_options
from tests.browser import needs_browser, open_page

TINY: dict[str, Any] = {
    "text": {"script": "write_reviews", "reviews": 200, "heldout_reviews": 30},
    "sft": {"script": "train_sft", "texts": "{text}/reviews.jsonl", "epochs": 0.2, "evaluations": 1},
    "preferences": {
        "script": "collect_preferences",
        "actors": ["{sft}/actor"],
        "prompts": "{text}/prompts.jsonl",
        "n_prompts": 64,
        "judge": "gold",
    },
    "reward": {
        "script": "train_reward_model",
        "model": "{sft}/actor",
        "preferences": "{preferences}/rankings.jsonl",
        "gold": "llm_env.default_task.gold:gold_score",
        "evaluations": 1,
        "learning_rate": 0.001,
    },
    "ppo": {
        "script": "train",
        "model": "{sft}/actor",
        "reward_model": "{reward}/reward_model",
        "prompts": "{text}/prompts.jsonl",
        "eval_prompts": "{text}/heldout_prompts.jsonl",
        "gold": "llm_env.default_task.gold:gold_score",
        "n_envs": 8,
        "max_new_tokens": 8,
        "total_timesteps": 256,
        "eval_every": 2,
    },
    "dpo": {
        "script": "train_preference",
        "model": "{sft}/actor",
        "preferences": "{preferences}/rankings.jsonl",
        "evaluations": 1,
    },
    "rounds": {
        "script": "iterate",
        "model": "{sft}/actor",
        "prompts": "{text}/prompts.jsonl",
        "judge": ["gold"],
        "rounds": 1,
        "prompts_per_round": 30,
        "n_eval": 16,
    },
    "evaluation": {
        "script": "evaluate_actor",
        "actor": "{ppo}/actor",
        "n_prompts": 16,
        "texts": "{text}/heldout_reviews.jsonl",
    },
}


def config(path: Path, stages: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(stages, sort_keys=False), encoding="utf-8")
    return path


class Watched:
    """Runs commands, and remembers which."""

    def __init__(self, run: RunCommand) -> None:
        self.run = run
        self.ran: list[str] = []

    def __call__(self, name: str, argv: Sequence[str], log: Path | None = None, threads: int = 0) -> int:
        self.ran.append(name + ("+resume" if "--resume" in argv else ""))
        return self.run(name, argv, log, threads)


def write_digest(name: str, argv: Sequence[str], log: Path | None = None, threads: int = 0) -> int:
    """In a command's place: writes a file that depends on the options and on the files that they name."""
    output = Path(argv[1])
    read = [Path(word) for word in argv[2:] if Path(word).is_file()]
    target = output if output.suffix else output / "result.txt"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps([[w for w in argv[2:] if "/" not in w], *(p.read_text() for p in read)]))
    return 0


def test_stages_run_where_something_before_them_changed(tmp_path: Path) -> None:
    run = Watched(write_digest)
    stages: dict[str, Any] = {
        "text": {"script": "write_reviews", "reviews": 5},
        "sft": {"script": "train_sft", "texts": "{text}/result.txt"},
        "ppo": {"script": "train", "ptx_texts": "{text}/result.txt", "model": "{sft}/result.txt"},
        "other": {"script": "train", "seed": 3},
    }

    def ran(stages: dict[str, Any]) -> list[str]:
        run.ran.clear()
        whole = Pipeline(read_stages(config(tmp_path / "c.yaml", stages)), tmp_path / "out", 0, run)
        for stage in whole.stages:
            if not whole.is_done(stage):
                assert whole.run(stage) == 0
        return list(run.ran)

    assert ran(stages) == ["write_reviews", "train_sft", "train", "train"]
    assert ran(stages) == []
    assert ran({**stages, "sft": {**stages["sft"], "epochs": 2}}) == ["train_sft", "train"]  # and what reads it
    ran(stages)
    (tmp_path / "out" / "text" / "result.txt").write_text("touched")
    assert ran(stages) == ["write_reviews"]  # it comes out the same, so what reads it stands
    whole = Pipeline(read_stages(tmp_path / "c.yaml"), tmp_path / "out", 0, run)
    for name, script in (("sft", "train_sft"), ("text", "write_reviews")):  # interrupted: only some have the flag
        note = whole.note(whole.stage(name))
        assert note is not None
        whole.keep(whole.stage(name), dataclasses.replace(note, outputs=None))
        assert ran(stages)[0] == (f"{script}+resume" if name == "sft" else script)


def test_an_evaluation_that_somebody_adds_to_a_stage_changes_nothing(tmp_path: Path) -> None:
    def write(name: str, argv: Sequence[str], log: Path | None = None, threads: int = 0) -> int:
        output = Path(argv[1])
        if output.suffix:
            output.write_text("{}")
        else:
            (output / "actor").mkdir(parents=True)
            (output / "actor" / "evaluation.json").write_text("of the model's maker")
        return 0

    stages = {
        "ppo": {"script": "train"},
        "evaluation": {"script": "evaluate_actor", "actor": "{ppo}/actor"},
    }
    whole = Pipeline(read_stages(config(tmp_path / "c.yaml", stages)), tmp_path / "out", 0, write)
    for stage in whole.stages:
        assert whole.run(stage) == 0
    (tmp_path / "out" / "ppo" / "evaluation.json").write_text("{}")  # where evaluate_actor writes if it is not told
    assert all(whole.is_done(stage) for stage in whole.stages)
    (tmp_path / "out" / "evaluation" / "evaluation.json").write_text("[]")
    assert not whole.is_done(whole.stages[1])  # it is this stage's output
    (tmp_path / "out" / "ppo" / "actor" / "evaluation.json").write_text("[]")
    assert not whole.is_done(whole.stages[0])


@pytest.mark.parametrize("greedy", [True, False])
def test_a_boolean_option_is_a_flag_that_the_command_takes(greedy: bool) -> None:
    stage = Stage("evaluation", "evaluate_actor", {"actor": "runs/actor", "greedy": greedy, "n_prompts": 8}, ())
    args = parse_command_line(evaluate_actor.Args, stage_options(stage, {}, seed=3), None)
    assert (args.greedy, args.n_prompts, args.seed) == (greedy, 8, 3)
    assert option_words("all_topics", True) == ["--all-topics"]
    assert option_words("seeds", [1, 2]) == ["--seeds", "1", "2"]


def test_stages_in_this_process_end_in_a_report(tmp_path: Path) -> None:
    small = {"n_envs": 4, "max_new_tokens": 6, "total_timesteps": 48}
    stages = {
        "ppo": {"script": "train", **small, "gold": "tests.conftest:count_dots"},
        "evaluation": {"script": "evaluate_actor", "actor": "{ppo}/actor", "n_prompts": 4, "greedy": True},
    }
    folder = tmp_path / "out"
    assert pipeline.run(pipeline.Args(config(tmp_path / "c.yaml", stages), folder), run_here) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert "Evaluation on 4 held-out prompts" in page
    broken = {"evaluation": {"script": "evaluate_actor", "actor": "x", "no_such": 1}}
    assert pipeline.run(pipeline.Args(config(tmp_path / "d.yaml", broken), tmp_path / "other"), run_here) == 1


@pytest.mark.slow
def test_all_stages_then_nothing_then_what_changed(tmp_path: Path) -> None:
    """With the real commands, each in a process of its own."""
    watched = Watched(run_child)
    ran, folder = watched.ran, tmp_path / "out"
    args = pipeline.Args(config(tmp_path / "c.yaml", TINY), folder)
    assert pipeline.run(args, watched) == 0
    assert ran == [s["script"] for s in TINY.values()]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 4
    assert "http" not in page.replace("https://llm_env", "")

    ran.clear()  # all there: nothing runs
    assert pipeline.run(args, watched) == 0
    assert ran == []

    changed = {**TINY, "evaluation": {**TINY["evaluation"], "n_prompts": 8}}  # only what is behind a change
    assert pipeline.run(pipeline.Args(config(tmp_path / "c.yaml", changed), folder), watched) == 0
    assert ran == ["evaluate_actor"]

    ran.clear()  # an output that somebody touched is made again, and what reads it
    with (folder / "preferences" / "rankings.jsonl").open("a") as file:
        file.write("\n")
    assert pipeline.run(args, watched) == 0
    assert ran == ["collect_preferences"]  # the rankings come out the same, so what reads them stands

    ran.clear()  # interrupted while under way: it goes on
    whole = Pipeline(read_stages(args.config), folder, 0)
    stage = whole.stage("ppo")
    note = whole.note(stage)
    assert note is not None
    whole.keep(stage, dataclasses.replace(note, outputs=None))
    assert pipeline.run(args, watched) == 0
    assert ran[0] == "train+resume"


@pytest.mark.slow
def test_stages_that_train_run_in_two_processes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked: dict[str, bool] = {}

    def run(name: str, argv: Sequence[str], log: Path | None = None, threads: int = 0) -> int:
        asked[name] = list(argv[-2:]) == ["--processes", "2"]
        return run_child(name, argv, log, threads)

    folder = tmp_path / "out"
    stages = {name: stage for name, stage in TINY.items() if name not in ("rounds", "evaluation")}
    args = pipeline.Args(config(tmp_path / "c.yaml", stages), folder, processes=2)
    assert pipeline.run(args, run) == 0
    out, err = capfd.readouterr()
    assert "8 slots in 2 processes" in out
    assert "error" not in err
    trained = ("train_sft", "train_reward_model", "train", "train_preference")
    assert asked == {stage["script"]: stage["script"] in trained for stage in stages.values()}
    asked.clear()  # another number of processes is no reason to do anything again
    assert pipeline.run(dataclasses.replace(args, processes=1), run) == 0
    assert asked == {}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"a": {"script": "trian"}}, "stage 'a': script='trian' is none of .* Did you mean 'train'"),
        ({"a": {"script": "train", "model": "{b}/actor"}}, "{b} is no earlier stage; there is none"),
        ({"a b": {"script": "train"}}, "letters, digits and underscores"),
        ([], "must be a mapping"),
    ],
)
def test_broken_configurations(tmp_path: Path, stages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_stages(config(tmp_path / "c.yaml", stages))


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out" / "text").mkdir(parents=True)
    (tmp_path / "out" / "text" / "mine.txt").write_text("precious")
    args = pipeline.Args(config(tmp_path / "c.yaml", TINY), tmp_path / "out")
    assert pipeline.run(args) == 1
    assert "no stage of this pipeline made it" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "out" / "text" / "mine.txt").read_text() == "precious"


def test_a_stage_that_fails_stops_the_rest(tmp_path: Path) -> None:
    stages = {"text": {"script": "write_reviews", "reviews": 0}, "sft": {"script": "train_sft", "texts": "{text}/x"}}
    args = pipeline.Args(config(tmp_path / "c.yaml", stages), tmp_path / "out")
    assert pipeline.run(args, run_here) == 1
    assert not (tmp_path / "out" / "sft").exists()


def test_a_stage_that_lives_on_after_its_pipeline_was_killed_is_not_started_a_second_time(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = pipeline.Args(config(tmp_path / "c.yaml", {"text": TINY["text"]}), tmp_path / "out", stop_after="text")
    stage = read_stages(args.config)[0]
    pipe = Pipeline([stage], args.output_dir, 0)
    (tmp_path / "out").mkdir()
    pipe.keep(stage, Note(pipe.inputs(stage)))  # the pipeline noted that it runs, and was killed
    with locked(args.output_dir / "text"):
        assert pipeline.run(args, run_here) == 1
    assert "another process is writing there" in capfd.readouterr().err
    with locked(args.output_dir):
        assert pipeline.run(args, run_here) == 1
    assert pipeline.run(args, run_here) == 0


def test_the_default_configurations_are_well_formed_and_have_all_scripts() -> None:
    stages = [stage for name in ("rlhf_default", "dpo_default") for stage in read_stages(Path(name))]
    # logs of chats and tricks of policies are the user's own
    assert {s.script for s in stages} == set(SCRIPTS) - {"collect_feedback", "find_hacks"}
    for stage in stages:  # every option is one that the script has
        command = importlib.import_module(f"agents.cli.{stage.script}")
        assert set(stage.options) <= set(flat_types(command.Args)), stage.name


def test_the_evaluations_table_has_the_rows_that_somebody_has(tmp_path: Path) -> None:
    one = {"mean": 1.0, "half_width": 0.25}
    same = {
        "n_prompts": 4, "rm_score": one, "reference_rm_score": one, "win_rate": 0.5, "kl": one, "response_length": one,
        "reference_response_length": one, "diversity": {"self_bleu": 0.5, "distinct_2": 0.25}, "samples": [],
        "reference_diversity": {"self_bleu": 0.5, "distinct_2": 0.25}, "gold_score": None, "reference_gold_score": None,
        "against": None,
    }  # fmt: skip
    stages = [types.SimpleNamespace(name=name) for name in ("plain", "with_texts")]
    for stage, perplexity in zip(stages, (None, 12.5), strict=True):
        folder = tmp_path / stage.name
        folder.mkdir()
        report = {**same, "perplexity": perplexity, "reference_perplexity": perplexity}
        (folder / "evaluation.json").write_text(json.dumps(report))
    asked: Any = types.SimpleNamespace(folders={s.name: tmp_path / s.name for s in stages})
    page = pipeline_report.evaluation(asked, cast(Any, stages))
    assert "perplexity" in page
    assert "12.50" in page
    assert "gold score" not in page
    assert "another actor" not in page
    stage: Any = types.SimpleNamespace(name="rounds")
    assert pipeline_report.heading(stage, "rounds") == "<h2>rounds</h2>"
    assert pipeline_report.heading(stage, "dpo") == "<h2>rounds: dpo</h2>"


def test_sections_of_stages_without_pairs(tmp_path: Path) -> None:
    stage: Any = types.SimpleNamespace(name="one")
    assert "Nobody ranked" in pipeline_report.preferences(stage, tmp_path)
    kto = {"source": "KTO", "loss": "kto", "beta": 0.1, "heldout": {}, "responses": 12, "samples": []}
    (tmp_path / "preference.json").write_text(json.dumps(kto))
    assert "12 responses" in pipeline_report.preference(stage, tmp_path)
    stars = {"loss": "ordinal", "pairs": 0, "worst_mistakes": [], "stars": {"correlation": 0.625}}
    (tmp_path / "report.json").write_text(json.dumps(stars))
    page = pipeline_report.reward_model(stage, tmp_path)
    assert "0.62" in page
    assert "held-out accuracy" not in page


@needs_browser
@pytest.mark.slow
def test_the_report_in_a_browser(tmp_path: Path) -> None:
    stages = {k: v for k, v in TINY.items() if k in ("text", "sft", "preferences", "dpo", "rounds")}
    folder = tmp_path / "out"
    assert pipeline.run(pipeline.Args(config(tmp_path / "c.yaml", stages), folder)) == 0
    with open_page(f"file://{folder / 'report.html'}") as page:
        assert page.title() == "RLHF report"
        widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert widths
        assert min(widths) > 300  # drawn, not broken
        assert page.locator("h2").count() == 5  # of the texts there is no section; the configuration has one
        samples = json.loads((folder / "sft" / "sft.json").read_text())["samples"]
        assert samples[0]["response"].strip() in page.locator("body").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= 1100
        assert not page.errors
