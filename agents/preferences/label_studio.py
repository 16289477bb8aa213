"""Preferences to and from Label Studio: its task format, and the export of its ``Ranker`` tag.

Source: https://labelstud.io/tags/ranker and https://labelstud.io/guide/task_format. The interface has a bucket for each rank,
and responses in one bucket tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.preferences.records import Candidates, Ranking, prompt_key
from llm_env.text.records import file_text, parsed_json

ALL_BAD = "all bad"
"""The choice that stands for: no response is any good."""


def labeling_config(most: int) -> str:
    """Makes the XML of a Label Studio project's labeling interface.

    Args:
        most: Number of responses of the prompt that has most; there are as many ranks.
    """
    buckets = "\n".join(f'    <Bucket name="rank{i}" title="Rank {i}" />' for i in range(1, most + 1))
    return (
        '<View>\n  <Text name="prompt" value="$prompt" />\n'
        '  <List name="responses" value="$items" title="Responses" />\n'
        f'  <Ranker name="ranking" toName="responses">\n{buckets}\n  </Ranker>\n'
        f'  <Choices name="verdict" toName="responses"><Choice value="{ALL_BAD}" /></Choices>\n</View>\n'
    )


def export_tasks(candidates: Sequence[Candidates]) -> list[dict[str, Any]]:
    """Makes tasks for Label Studio's import, one for each prompt."""
    return [
        {
            "data": {
                "id": c.id,
                "prompt": c.prompt if isinstance(c.prompt, str) else prompt_key(c.prompt),
                "items": [{"id": r.id, "title": "", "body": r.text} for r in c.responses],
            }
        }
        for c in candidates
    ]


def import_rankings(path: Path, candidates: Sequence[Candidates]) -> list[Ranking]:
    """Reads rankings from Label Studio's JSON export; canceled annotations are left out.

    Args:
        path: Label Studio's export, a JSON file of annotated tasks.
        candidates: The prompts and responses whose tasks were imported into Label Studio.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such export, or names prompts or responses that `candidates` do not have; the task is named.
    """
    if not path.is_file():
        raise FileNotFoundError(f"import={str(path)!r}: there is no such file.")
    tasks = parsed_json(file_text(path, f"import={str(path)!r}"), str(path))
    if not isinstance(tasks, list):
        raise ValueError(f"{path}: Label Studio's JSON export is a list of tasks.")
    by_id = {c.id: c for c in candidates}
    rankings = []
    for number, task in enumerate(tasks, 1):
        where = f"{path}, task {number}"
        data = task.get("data") if isinstance(task, dict) else None
        name = str(data.get("id")) if isinstance(data, dict) else "?"
        if name not in by_id:
            raise ValueError(f"{where}: its data.id={name!r} is none of the prompts that were exported.")
        try:
            for annotation in task.get("annotations", []):
                if not annotation.get("was_cancelled"):
                    rankings.append(_ranking(where, by_id[name], annotation))
        except (AttributeError, TypeError, KeyError) as error:
            raise ValueError(f"{where}: its annotations are not as Label Studio exports them ({error}).") from error
    return rankings


def _ranking(where: str, candidates: Candidates, annotation: dict[str, Any]) -> Ranking:
    """The ranking of one annotation; `where` names its file and task in errors."""
    tiers: list[tuple[str, ...]] = []
    all_bad = False
    for result in annotation.get("result", []):
        value = result.get("value", {})
        if "ranker" in value:
            tiers = _tiers(value["ranker"])
        elif ALL_BAD in value.get("choices", []):
            all_bad = True
    ranked = [name for tier in tiers for name in tier]
    unknown = sorted(set(ranked) - {r.id for r in candidates.responses})
    if unknown:
        raise ValueError(f"{where}: ranks {', '.join(unknown)}, which is none of the responses of {candidates.id!r}.")
    if len(ranked) < 2 and not all_bad:
        raise ValueError(f"{where}: ranks {len(ranked)} response; a ranking needs at least two.")
    annotator = annotation.get("completed_by", "")
    if isinstance(annotator, dict):  # exports differ in how much they tell of a person
        annotator = annotator.get("email") or annotator.get("id", "")
    return Ranking(candidates, tuple(tiers), str(annotator), None, all_bad, where=where)


def _tiers(ranker: dict[str, list[str]]) -> list[tuple[str, ...]]:
    """Turns buckets rank1, rank2, … into tiers; a ranker without buckets has one list, whose order is the ranking."""
    buckets = {int(k.removeprefix("rank")): v for k, v in ranker.items() if k.removeprefix("rank").isdigit()}
    if buckets:
        return [tuple(map(str, buckets[i])) for i in sorted(buckets) if buckets[i]]
    lists = [v for k, v in ranker.items() if k != "_"]
    return [(str(name),) for name in lists[0]] if lists else []
