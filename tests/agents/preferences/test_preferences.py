from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from agents.cli import collect_preferences, train
from agents.preferences.agreement import agreement, cohen_kappa, krippendorff_alpha
from agents.preferences.folder import keep_first
from agents.preferences.judge import RewardJudge
from agents.preferences.label_studio import export_tasks, import_rankings, labeling_config
from agents.preferences.labeled import is_labeled, read_labeled
from agents.preferences.records import (
    Candidates,
    Ranking,
    Response,
    check_leaks,
    read_candidates,
    read_rankings,
)
from agents.preferences.sampling import Sampling, Source, collect_responses, near_duplicate
from agents.preferences.selection import pair_records
from llm_env.default_task import DEFAULT_MODEL
from llm_env.default_task.gold import gold_score
from llm_env.lm.names import LoadSettings
from llm_env.reward.limits import CallLimits
from llm_env.text.prompts import PromptSet
from tests.conftest import (
    count_dots,  # noqa: F401  # a judge, by name
    short_model,
)
from tests.reward_servers import ScriptedServer

CPU = LoadSettings("float32", "cpu")


USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "How?"), ("assistant", "Good."), ("assistant", "Bad."))
)


def record(**changes: Any) -> dict[str, Any]:
    responses = [{"id": name, "text": f" Text {name}."} for name in "abc"]
    return {"id": "p0", "prompt": "How?", "responses": responses, "ranking": [["a"], ["b", "c"]], **changes}


def written(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_rankings_come_back_as_they_were_written(tmp_path: Path) -> None:
    (ranking,) = read_rankings(written(tmp_path / "r.jsonl", record(annotator="ann", aspect="polite")))
    assert ranking.tiers == (("a",), ("b", "c"))
    assert [(x.id, y.id, n) for x, y, n in ranking.pairs()] == [("a", "b", 1), ("a", "c", 1)]
    assert read_rankings(written(tmp_path / "again.jsonl", ranking.to_json()))[0] == ranking


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranking": [["a"], ["x"]]}, r"names x, but the responses are a, b, c"),
        ({"ranking": [["a"], ["a"]]}, "names a response twice"),
        ({"ranking": [["a"]]}, "holds 1 response; it needs at least two"),
        ({"ranking": "a > b"}, "must be a list of response ids"),
        ({"responses": [{"id": "a", "text": "x"}]}, "has 1 response; a ranking needs at least two"),
        ({"responses": [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}]}, "the same id"),
        ({"responses": [{"id": "a"}, {"id": "b", "text": "y"}]}, "response 0 needs an 'id' and a 'text'"),
        ({"prompt": " "}, "the prompt is empty"),
    ],
)
def test_broken_rankings_are_refused_with_file_and_line(tmp_path: Path, changes: Any, message: str) -> None:
    path = written(tmp_path / "r.jsonl", record(), record(**changes))
    with pytest.raises(ValueError, match=rf"r\.jsonl, line 2: .*{message}"):
        read_rankings(path)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ({"prompt": "How?", "chosen": "Good.", "rejected": " Good. "}, "are the same"),
        ({"prompt": "How?", "chosen": "", "rejected": "Bad."}, "'chosen' must be a text that is not empty"),
        ({"chosen": "Good.", "rejected": "Bad."}, "needs a 'prompt'"),
        ({"prompt": "How?", "chosen": "Good."}, "needs 'ranking', 'stars', or 'chosen' and 'rejected'"),
        ({"prompt": "How?", "chosen": "Good.", "rejected": "Bad.", "margin": -1}, "margin=-1"),
        ({"prompt": "How?", "chosen": "Good.", "rejected": "Bad.", "margin": "much"}, "margin='much'"),
        ({"prompt": "How?", "chosen": "Good.", "rejected": "Bad.", "aspect": ["polite"]}, "aspect=.* must be a text"),
        ({"prompt": "How?", "chosen": "A.", "rejected": "B.", "chosen_finished": "so"}, "chosen_finished='so' must be"),
        ({"chosen": [USER, GOOD], "rejected": [{**USER, "content": "Why?"}, BAD]}, "differ in the last one only"),
        ({"prompt": [USER], "chosen": [GOOD, USER, GOOD], "rejected": [BAD]}, "differ in the last one only"),
        ({"prompt": "Why?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "differ in the last one only"),
    ],
)
def test_broken_pairs_are_refused_with_file_and_line(tmp_path: Path, pair: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"r\.jsonl, line 1: .*{message}"):
        read_rankings(written(tmp_path / "r.jsonl", pair))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_pairs_in_trls_format_with_messages(tmp_path: Path, kind: str) -> None:
    pairs = [
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "How?", "chosen": [USER, GOOD], "rejected": [USER, BAD], "margin": 2},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD], "chosen_finished": False, "annotator": "ann"},
    ]
    path = written(tmp_path / "r.jsonl", *pairs)
    if kind == "parquet":  # where each record has a place for each field of the others
        pd.DataFrame(pairs).to_parquet(path := tmp_path / "r.parquet")
    rankings = read_rankings(path)
    for ranking in rankings:
        assert ranking.candidates.prompt == [USER]
        assert [(b.text, w.text) for b, w, _ in ranking.pairs()] == [("Good.", "Bad.")]
    assert [r.margin for r in rankings] == [None, 2, None]
    assert [r.annotator for r in rankings] == ["", "", "ann"]
    assert [r.candidates.responses[0].finished for r in rankings] == [True, True, False]


def test_rankings_and_labels_in_parquet(tmp_path: Path) -> None:
    pd.DataFrame([record(), record(aspect="polite")]).to_parquet(tmp_path / "r.parquet")
    one, other = read_rankings(tmp_path / "r.parquet")
    assert one.tiers == other.tiers == (("a",), ("b", "c"))
    assert (one.aspect, other.aspect) == (None, "polite")
    labeled = [
        {"prompt": [USER], "completion": [GOOD], "label": True},
        {"prompt": [USER], "completion": [BAD], "label": False},
    ]
    pd.DataFrame(labeled).to_parquet(tmp_path / "l.parquet")
    assert is_labeled(tmp_path / "l.parquet")
    assert [(r.response, r.is_good) for r in read_labeled(tmp_path / "l.parquet")] == [("Good.", True), ("Bad.", False)]


def test_pairs_in_csv_have_margins(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("prompt,chosen,rejected,margin\nHow?,Good.,Bad.,1.5\nHow?,Well.,Bad.,\n")
    assert [r.margin for r in read_rankings(tmp_path / "r.csv")] == [1.5, None]


def test_a_prompt_on_both_sides_is_named_with_both_lines(tmp_path: Path) -> None:
    train_side = read_rankings(written(tmp_path / "train.jsonl", record(prompt="One?"), record(prompt="Two?")))
    test_side = read_rankings(written(tmp_path / "test.jsonl", record(prompt="Three?"), record(prompt="Two?")))
    with pytest.raises(ValueError, match=r"test\.jsonl, line 2: .*train\.jsonl, line 2.*1 of 2"):
        check_leaks(train_side, test_side)
    check_leaks(train_side, test_side[:1])


def test_pairs_of_rankings_are_trls_and_leave_ties_and_equal_texts_out(tmp_path: Path) -> None:
    responses = [
        {"id": "a", "text": "A."},
        {"id": "b", "text": "B."},
        {"id": "c", "text": "A."},
        {"id": "d", "text": "D."},
    ]
    path = written(tmp_path / "r.jsonl", record(responses=responses, ranking=[["a"], ["b"], ["c", "d"]]))
    pairs = [(p["chosen"], p["rejected"], p["margin"]) for p in pair_records(read_rankings(path))]
    assert pairs == [("A.", "B.", 0.0), ("A.", "D.", 1.0), ("B.", "A.", 0.0), ("B.", "D.", 0.0)]


def test_krippendorffs_alpha_of_the_textbook() -> None:
    """Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example C, nominal: 0.743."""
    a = [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None]
    b = [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3]
    c = [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None]
    d = [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None]
    units = [[v for v in unit if v is not None] for unit in zip(a, b, c, d, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha([[1, 1], [2, 2]]) == 1
    assert math.isnan(krippendorff_alpha([[1], [2]]))
    rng = np.random.default_rng(0)
    assert abs(krippendorff_alpha(rng.integers(0, 2, (4000, 2)).tolist())) < 0.05


def test_cohens_kappa_by_hand() -> None:
    one, other = list("yyyynnnnnn"), list("yynnnnnnyy")
    agreed, chance = 6 / 10, 0.4 * 0.4 + 0.6 * 0.6
    assert cohen_kappa(one, other) == pytest.approx((agreed - chance) / (1 - chance))
    assert math.isnan(cohen_kappa([], []))


def test_agreement_looks_at_pairs_and_takes_the_last_answer() -> None:
    candidates = Candidates("p", "How?", tuple(Response(n, n) for n in "abc"))
    ann = Ranking(candidates, (("a",), ("b",), ("c",)), "ann")
    bob = Ranking(candidates, (("b",), ("a", "c")), "bob")
    report = agreement([Ranking(candidates, (("c",), ("b",), ("a",)), "ann"), ann, bob])
    assert report["annotators"] == ["ann", "bob"]
    assert report["pairs_judged_twice"] == 3
    assert report["between"][0]["agreed"] == pytest.approx(1 / 3)  # b before c; a and b differ; a and c: tie or not


def test_label_studio_there_and_back(tmp_path: Path) -> None:
    candidates = [Candidates("p0", "How?", tuple(Response(n, f"Text {n}.") for n in "abc"))]
    task = export_tasks(candidates)[0]
    assert [item["id"] for item in task["data"]["items"]] == ["a", "b", "c"]
    assert labeling_config(3).count("<Bucket") == 3

    def annotation(value: dict[str, Any], **more: Any) -> dict[str, Any]:
        result = {"from_name": "ranking", "to_name": "responses", "type": "ranker", "value": value}
        return {"id": 1, "completed_by": 7, "result": [result], **more}

    task["annotations"] = [
        annotation({"ranker": {"rank1": ["b"], "rank2": ["a", "c"], "_": []}}),
        annotation({"ranker": {"ranking": ["c", "a", "b"]}}, completed_by={"id": 3, "email": "ann@x.org"}),
        annotation({"choices": ["all bad"]}),
        annotation({"ranker": {"rank1": ["a"], "rank2": ["b"]}}, was_cancelled=True),
    ]
    path = tmp_path / "export.json"
    path.write_text(json.dumps([task]))
    first, second, third = import_rankings(path, candidates)
    assert first.tiers == (("b",), ("a", "c"))
    assert first.annotator == "7"
    assert second.tiers == (("c",), ("a",), ("b",))
    assert second.annotator == "ann@x.org"
    assert third.all_bad
    task["annotations"] = [annotation({"ranker": {"rank1": ["a"], "rank2": ["z"]}})]
    path.write_text(json.dumps([task]))
    with pytest.raises(ValueError, match=r"export\.json, task 1: ranks z"):
        import_rankings(path, candidates)
    path.write_text(json.dumps([{"data": {"id": "nobody"}}]))
    with pytest.raises(ValueError, match=r"task 1: its data\.id='nobody'"):
        import_rankings(path, candidates)


def test_a_prompt_and_a_response_fit_the_model(tmp_path: Path) -> None:
    source = Source(short_model(tmp_path))
    with pytest.raises(ValueError, match=r"max_prompt_length=32 \+ max_new_tokens=17, but .* can read 48 tokens"):
        next(collect_responses(["How was the hotel?"], Sampling((source,), 2, 32, 17, seed=0), CPU))


def test_near_duplicates() -> None:
    assert near_duplicate("The cook was  kind.", "the cook was kind.")
    assert near_duplicate("a b c d e f g h i j k", "a b c d e f g h i j")
    assert not near_duplicate("The cook was kind.", "The cook was rude.")


def test_responses_differ_and_come_from_all_sources() -> None:
    sources = [Source(DEFAULT_MODEL, 0.5), Source(DEFAULT_MODEL, 1.5)]
    prompts = ["How was the hotel?", "Review of the bakery:", "How was the taxi?"]
    (collected,) = collect_responses(prompts, Sampling(tuple(sources), 4, 32, 16, seed=0), CPU)
    prompts_with_responses = collected.candidates
    assert collected.tokens >= sum(len(c.responses) for c in prompts_with_responses)
    assert [c.id for c in prompts_with_responses] == ["p0", "p1", "p2"]
    for candidates in prompts_with_responses:
        texts = [r.text for r in candidates.responses]
        assert len(texts) == 4
        assert not any(near_duplicate(a, b) for i, a in enumerate(texts) for b in texts[:i])
        assert {r.source for r in candidates.responses} == {str(s) for s in sources}


def test_a_judge_ranks_by_score_with_ties_and_its_noise_is_plackett_luce() -> None:
    texts = [" The food was great.", " The food was poor.", " The food was awful."]
    candidates = Candidates("p", "How?", tuple(Response(f"r{i}", t) for i, t in enumerate(texts)))
    assert gold_score(["", "", ""], texts) == [1, -1, -1]
    (ranking,) = RewardJudge("gold", CPU).rank([candidates])
    assert ranking.tiers == (("r0",), ("r1", "r2"))
    noisy = RewardJudge("gold", CPU, noise=1.0, seed=0).rank([candidates] * 4000)
    first = np.mean([r.tiers[0] == ("r0",) for r in noisy])
    assert first == pytest.approx(math.exp(1) / (math.exp(1) + 2 * math.exp(-1)), abs=0.02)
    before = np.mean([r.ranks()["r0"] < r.ranks()["r1"] for r in noisy])
    assert before == pytest.approx(1 / (1 + math.exp(-2)), abs=0.02)  # Bradley and Terry


def test_a_reward_model_as_judge_reads_what_the_environment_would() -> None:
    from llm_env.default_task import DEFAULT_REWARD_MODEL
    from llm_env.episode import Episode
    from llm_env.settings import TaskSettings
    from llm_env.task import TextTask

    candidates = Candidates(
        "p", "How was the hotel?", (Response("a", " The room was great."), Response("b", " The room", False))
    )
    judge = RewardJudge(DEFAULT_REWARD_MODEL, CPU)
    (scores,) = judge.scores([candidates])
    task = TextTask(TaskSettings())
    prompt = task.prompts.encode("How was the hotel?")
    want = []
    for text, end in ((" The room was great.", [2]), (" The room", [])):
        ids = task.tokenizer(text, add_special_tokens=False)["input_ids"] + end
        want += task.reward_model.score([Episode(prompt, response_ids=ids, done=True)])
    assert scores == pytest.approx(want, abs=1e-5)


def collect(folder: Path, *extra: str) -> int:
    small = ["--n-prompts", "150", "--n-responses", "2", "--max-new-tokens", "6", "--device", "cpu"]
    arguments = ["--output-dir", str(folder), *small, *extra]
    return collect_preferences.main(arguments)


def test_the_script_goes_on_where_it_stopped_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert collect(whole, "--judge", "gold") == 0
    pairs = [json.loads(x) for x in (whole / "pairs.jsonl").read_text().splitlines()]
    assert pairs
    assert all(gold_score([""], [p["chosen"]]) > gold_score([""], [p["rejected"]]) for p in pairs)

    from agents.preferences import folder as module

    real = module.collect_responses

    def interrupted(*args: Any, **kwargs: Any):
        yield next(iter(real(*args, **kwargs)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "collect_responses", interrupted)
        assert collect(parts, "--judge", "gold") == 130
    with (parts / "responses.jsonl").open("a") as file:
        file.write('{"id": "p149", "half')
    assert collect(parts, "--judge", "gold") == 0
    for name in ("responses.jsonl", "rankings.jsonl", "pairs.jsonl"):
        assert (parts / name).read_text() == (whole / name).read_text()
    capsys.readouterr()
    assert collect(parts, "--judge", "gold", "--seed", "1") == 1
    assert "sampled with other settings (seed)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--n-responses", "1"), "n_responses=1 must be a whole number, at least 2"),
        (("--temperatures", "0"), "each entry a finite number above 0"),
        (("--judge", "no.such:function"), "cannot be imported"),
        (("--actors", "/no/such/folder"), "actors='/no/such/folder': there is no such folder"),
    ],
)
def test_bad_settings_of_the_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: tuple[str, ...], message: str
) -> None:
    assert collect(tmp_path / "out", *extra) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_chunk_that_was_interrupted_is_dropped_whatever_its_texts_hold(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    lines = [json.dumps({"id": f"p{i}", "text": "a line\u2028separator"}, ensure_ascii=False) + "\n" for i in range(4)]
    path.write_text("".join(lines), encoding="utf-8")
    keep_first(path, 2)
    assert path.read_text(encoding="utf-8") == "".join(lines[:2])


@pytest.mark.parametrize("lora", ["0", "4"])
def test_a_runs_checkpoint_can_respond(tmp_path: Path, lora: str) -> None:
    from agents.preferences.sampling import load_source
    from llm_env.lm.causal_lm import load_causal_lm
    from llm_env.lm.generate import continue_prompts
    from llm_env.lm.registry import shared_causal_lm

    run = tmp_path / "run"
    size = ["--n-envs", "4", "--max-new-tokens", "6", "--max-prompt-length", "12", "--total-timesteps", "48"]
    assert train.main(["--output-dir", str(run), *size, "--learning-rate", "1e-2", "--lora-rank", lora]) == 0
    (checkpoint,) = (run / "checkpoints").iterdir()
    model = load_source(str(checkpoint), CPU)
    actor = shared_causal_lm(str(run / "actor"), CPU)
    prompts = PromptSet(["How was it?"], actor.tokenizer, 9).prompts
    one = continue_prompts(model.lm, prompts, model.eos_ids, 12, seed=3)
    assert one == continue_prompts(actor.lm, prompts, actor.eos_ids, 12, seed=3)
    start = load_causal_lm(DEFAULT_MODEL, CPU)
    weights = [torch_cat(m) for m in (model.lm.model, actor.lm.model, start.model)]
    assert np.abs(weights[0] - weights[1]).max() < 1e-5
    assert np.abs(weights[0] - weights[2]).max() > 1e-4


def torch_cat(model: Any) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


def test_candidates_of_ones_own(tmp_path: Path) -> None:
    path = written(tmp_path / "responses.jsonl", {k: v for k, v in record().items() if k != "ranking"})
    assert read_candidates(path)[0].responses[1].text == " Text b."
    written(path, record(), record())
    with pytest.raises(ValueError, match="line 2: the id 'p0' stands there a second time"):
        read_candidates(path)


def test_a_server_ranks_and_is_waited_for(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_env.reward.limits.FIRST_PAUSE", 0.001)
    candidates = Candidates(
        "p", "How was it?", tuple(Response(i, t) for i, t in (("a", " Bad."), ("b", " Good."), ("c", " Fine.")))
    )
    answer = 200, {}, json.dumps({"scores": [0.5, 2, 0.5]}).encode()
    with ScriptedServer(None, (503, {}, b""), answer) as server:
        (ranking,) = RewardJudge(server.url, CPU, limits=CallLimits(wait=60)).rank([candidates])
    assert ranking.tiers == (("b",), ("a", "c"))
    assert ranking.annotator == server.url
    assert len(caplog.records) == 2
    sent = json.loads(server.requests[-1][2])
    assert sent == {"prompts": ["How was it?"] * 3, "responses": [" Bad.", " Good.", " Fine."]}
