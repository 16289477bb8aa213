# make demo   train the embedded default for about a minute, and evaluate it
# make rlhf   supervised fine-tuning, preferences, reward model, PPO, evaluation: from new weights, in some minutes
# make test   ruff, mypy, pytest
# All make .venv on first use, with the versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo rlhf test clean

demo: $(VENV)/.installed
	@if [ -e $(RUN) ]; then echo "$(RUN) is there already: make demo RUN=another/folder, or remove it"; exit 1; fi
	$(BIN)/python scripts/train.py --config scripts/configs/demo.yaml --output-dir $(RUN)
	$(BIN)/python scripts/evaluate_actor.py --actor $(RUN)/actor
	@echo "Pictures: $(RUN)/report.png   Samples: $(RUN)/samples.jsonl"

rlhf: $(VENV)/.installed
	$(BIN)/python scripts/pipeline.py --config scripts/configs/rlhf_default.yaml --output-dir runs/rlhf

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
