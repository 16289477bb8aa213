"""lm-evaluation-harness on an actor's folder as it stands."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.cli import write_reviews
from llm_env.default_task import DEFAULT_MODEL
from llm_env.lm.loading import load_tokenizer

TASK = """\
task: heldout_reviews
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{prompt}}}}{{{{response}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""


@pytest.mark.slow
def test_a_task_on_local_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="pip install '.[harness]'")
    assert write_reviews.run(write_reviews.Args(tmp_path / "text", reviews=1, heldout_reviews=30)) == 0
    data = tmp_path / "text" / "heldout_reviews.jsonl"
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "reviews.yaml").write_text(TASK.format(data=data))
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", "heldout_reviews", "--device", "cpu"]
    command += ["--model_args", f"pretrained={DEFAULT_MODEL},dtype=float32", "--include_path", str(tmp_path / "tasks")]
    command += ["--output_path", str(tmp_path / "out"), "--batch_size", "8"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    got = json.loads(results.read_text())["results"]["heldout_reviews"]["bits_per_byte,none"]

    model, tokenizer = AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL).eval(), load_tokenizer(DEFAULT_MODEL)
    nats, size = 0.0, 0
    for line in data.read_text().splitlines():
        record = json.loads(line)
        text = record["prompt"] + record["response"]
        ids = [
            tokenizer.bos_token_id,
            *tokenizer(text)["input_ids"],
        ]  # the harness puts a start token before every text
        with torch.no_grad():
            log_probs = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
        nats -= sum(log_probs[i - 1, ids[i]].item() for i in range(1, len(ids)))
        size += len(text.encode())
    assert got == pytest.approx(nats / size / math.log(2), rel=0.02)
