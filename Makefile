# make demo      train the embedded default for about a minute, and evaluate it
# make rlhf      supervised fine-tuning, preferences, reward model, PPO, evaluation: from new weights, in some minutes
# make turns     a tiny model learns to find a number in turns, in some three minutes
# make test      lint, types, and every test that is not marked slow: some minutes on two cores
# make test-all  the same with the slow tests
# make coverage  line coverage of the fast tests, in total and by file
# make mutations breaks the code in many small ways, one at a time, and says whether the fast tests notice
# make release-check  one version everywhere, the changelog has it, lint, fast tests, the wheel trains, the documentation builds
# make test-lowest    the fast tests with the lowest versions that pyproject.toml allows (constraints-lowest.txt)
# make docs      the documentation, docs/_build/html/index.html; the first time it runs the tutorials, for some ten minutes on two cores,
#                later those that have changed (make docs SPHINX=-Dplot_gallery=0 runs none)
# All make .venv on first use, with the versions of constraints.txt. JOBS=4 runs the tests in four processes.

PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
BIN := $(VENV)/bin
RUN ?= runs/demo
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
JOBS ?= 2
SPHINX ?=
# Each process has the tests of neighboring modules, whose fixtures are made once; who is done first takes from the others.
TOGETHER := --numprocesses $(JOBS) --dist worksteal
PYTEST := $(BIN)/python -m pytest $(TOGETHER)

.PHONY: demo rlhf turns docs lint test test-all test-lowest coverage mutations release-check clean

demo: $(VENV)/.installed
	@if [ -e $(RUN) ]; then echo "$(RUN) is there already: make demo RUN=another/folder, or remove it"; exit 1; fi
	$(BIN)/python scripts/train.py --config demo --output-dir $(RUN)
	$(BIN)/python scripts/evaluate_actor.py --actor $(RUN)/actor
	@echo "Curves and samples: $(RUN)/report.html"

rlhf: $(VENV)/.installed
	$(BIN)/python scripts/pipeline.py --config rlhf_default --output-dir runs/rlhf

turns: $(VENV)/.installed
	$(BIN)/python scripts/train.py --config scripts/configs/turns.yaml --output-dir runs/turns
	$(BIN)/python scripts/evaluate_actor.py --actor runs/turns/actor

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q $(SPHINX) -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST)

test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest $(TOGETHER) -m "not slow"

release-check: lint $(VENV)/.installed-docs
	$(BIN)/python scripts/lab/release_check.py
	$(PYTEST) -m "not slow"
	$(PYTEST) tests/test_wheel.py
	$(MAKE) docs

coverage: $(VENV)/.installed-test
	$(PYTEST) -m "not slow" --cov --cov-report=term

mutations: $(VENV)/.installed-test
	$(BIN)/python -m tests.mutations

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable ".[all]"
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable ".[test]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable ".[docs]"
	@touch $@

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable ".[all]" pytest pytest-xdist
	@touch $@

clean:
	rm -rf docs/_build docs/gallery $(VENV) $(LOWEST) .pytest_cache .mypy_cache .ruff_cache .coverage build *.egg-info
