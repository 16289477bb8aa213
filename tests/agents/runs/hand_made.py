"""A run's folder made by hand, with numbers that can be followed on the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HEAD = "time/total_timesteps,rollout/tokens,rollout/rm_score,rollout/kl,train/entropy_loss,train/late"
ROWS = ("10,8,0.5,0.25,-1.5,", "20,16,1.5,0.75,-1.25,", "30,25,2.123456789,nan,-1,7")
HARM = "</script><script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'><!-- {{script}}"


def record(timestep: int, prompt: str, response: str, **more: Any) -> dict[str, Any]:
    return {"timestep": timestep, "prompt": prompt, "response": response, "rm_score": timestep / 10, "kl": 0.5, **more}


def tokens(*texts: str, **columns: list[float | None]) -> dict[str, Any]:
    return {"text": list(texts), **columns}


def samples() -> list[dict[str, Any]]:
    early = tokens("a", " b", "■", kl=[0.0, -0.5, 1.0], value=[0.1, 0.2, 0.3], advantage=[-1.0, 0.0, 2.0])
    late = tokens("c", "\nworld\n", "d", kl=[4.0, None, -4.0], value=[1.0, None, -1.0], advantage=[0.5, None, 0.5])
    return [
        record(0, "first?", "a b", tokens=early),
        record(0, "second?", HARM, tokens=tokens(HARM, kl=[0.25], value=[0.5], advantage=[0.75])),
        record(20, "first?", "c\nworld\nd", tokens={**late, "world": [1]}, end="world", turns=[{}, {}]),
        record(20, "second?", "e", tokens=tokens("e", kl=[0.0], value=[0.0], advantage=[0.0])),
    ]


def write_run(
    folder: Path, rows: tuple[str, ...] = ROWS, records: list[dict[str, Any]] | None = None, **settings: Any
) -> Path:
    """Writes a run's folder.

    Args:
        folder: The folder, which is made.
        rows: Lines of its log.
        records: Its samples; None: `samples`.
        settings: Of its configuration, besides ``algo`` and ``total_timesteps``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(json.dumps({"algo": "ppo", "total_timesteps": 40, **settings}))  # JSON is YAML
    if rows:
        (folder / "progress.csv").write_bytes("".join(f"{line}\r\n" for line in (HEAD, *rows)).encode())
    lines = [json.dumps(r) + "\n" for r in (samples() if records is None else records)]
    if lines:
        (folder / "samples.jsonl").write_text("".join(lines))
    return folder
