"""Mistakes in what a newcomer meets first: the command, the card, files of records."""

from __future__ import annotations

from tests.mistakes import Mutation

_CARD = ("tests/agents/runs/test_card.py",)
_MAIN = ("tests/agents/cli/test_main.py",)
_ARGUMENTS = ("tests/agents/cli/test_arguments.py",)
_REPORTS = ("tests/agents/runs/test_report_to.py",)
_COMPLETION = ("tests/agents/cli/test_completion.py",)
_TABLES = ("tests/scripts/test_tables.py",)
_COPIES = ("tests/llm_env/test_copies.py",)

FRONT_DOOR = [
    Mutation(
        "an evaluation beside its actor makes a stage run again",
        "agents/pipeline/stages.py",
        'inside == (EVALUATION_FILE,) and (path / "actor").is_dir()',
        "False",
        ("tests/agents/pipeline/test_stages.py::test_an_evaluation_that_somebody_adds_to_a_stage_changes_nothing",),
    ),
    Mutation(
        "the output of evaluate_actor is not looked at",
        "agents/pipeline/stages.py",
        'inside == (EVALUATION_FILE,) and (path / "actor").is_dir()',
        "inside == (EVALUATION_FILE,)",
        ("tests/agents/pipeline/test_stages.py::test_an_evaluation_that_somebody_adds_to_a_stage_changes_nothing",),
    ),
    Mutation(
        "a configuration of the package wins over the user's file of that name",
        "agents/flat_settings.py",
        "is_name = path == Path(path.stem) and not path.is_file()",
        "is_name = path == Path(path.stem)",
        ("tests/agents/test_flat_settings.py",),
    ),
    Mutation(
        "a reader that leaves makes a traceback",
        "agents/console.py",
        "if not _reader_is_gone():\n            raise",
        "raise",
        _MAIN,
    ),
    Mutation(
        "slow iterations pass without a line",
        "agents/runs/display.py",
        "or time.monotonic() - self._last_line >= LINE_AFTER",
        "or False",
        ("tests/agents/runs/test_display.py",),
    ),
    Mutation(
        "a copy of an environment has the settings' beta, not the one that was reached",
        "llm_env/task.py",
        'self.kl.coef = state["kl_coef"]',
        "pass",
        _COPIES,
    ),
    Mutation(
        "an environment that is copied keeps its cache, and its copy rounds otherwise",
        "llm_env/slots.py",
        "self.clear_caches()\n        return {k: v",
        "return {k: v",
        _COPIES,
    ),
    Mutation(
        "the worlds of a copy begin anew",
        "llm_env/slots.py",
        "if self._worlds is not None and episode is not None and not episode.done:",
        "if False:",
        _COPIES,
    ),
    Mutation(
        "a default is another than its page says",
        "agents/algorithms/table.py",
        '"exploration_final_eps": 0.0}',
        '"exploration_final_eps": 0.05}',
        _TABLES,
    ),
    Mutation(
        "an algorithm's page shows the library's defaults",
        "scripts/lab/algorithm_pages.py",
        "places: list[Any] = [row.defaults]",
        "places: list[Any] = []",
        _TABLES,
    ),
    Mutation(
        "a page that was edited by hand is up to date",
        "scripts/lab/tables.py",
        "if not path.is_file() or path.read_text",
        "if not path.is_file() and path.read_text",
        _TABLES,
    ),
    Mutation(
        "the card shows samples of the start",
        "agents/runs/card.py",
        'latest = samples[-1]["timestep"]',
        'latest = samples[0]["timestep"]',
        _CARD,
    ),
    Mutation(
        "a sample ends the card's block of code", "agents/runs/card.py", "while fence in text:", "while False:", _CARD
    ),
    Mutation(
        "a folder is called a model of the hub",
        "agents/runs/card.py",
        "if base is not None and not Path(base).expanduser().exists():",
        "if base is not None:",
        _CARD,
    ),
    Mutation(
        "the card shows the defaults too", "agents/runs/card.py", "if v != defaults.get(k)}", "if k in defaults}", _CARD
    ),
    Mutation(
        "a command is called by its module in hints",
        "agents/cli/main.py",
        'sys.argv = [f"llm-env {words[0]}", *words[1:]]',
        'sys.argv = ["main.py", *words[1:]]',
        _MAIN,
    ),
    Mutation(
        "a command that is not there is no failure",
        "agents/cli/main.py",
        'See llm-env --help.\\n")\n        return 2',
        'See llm-env --help.\\n")\n        return 0',
        _MAIN,
    ),
    Mutation(
        "a .json file may hold one record",
        "llm_env/text/records.py",
        "if not isinstance(values, list):",
        "if not isinstance(values, list | dict):",
        ("tests/llm_env/text/test_records.py",),
    ),
    Mutation(
        "a run that has not ended is evaluated as a model",
        "agents/cli/evaluate_actor.py",
        'if not (folder / "actor").is_dir():',
        "if False:",
        ("tests/agents/cli/test_evaluate_actor.py",),
    ),
    Mutation(
        "the help keeps the line breaks of the source",
        "agents/cli/help_text.py",
        r'text = re.sub(r"\s+", " ", text).strip()',
        "text = text.strip()",
        _ARGUMENTS,
    ),
    Mutation(
        "Tab offers no negative flags",
        "agents/cli/completion.py",
        "if kind is bool:",
        "if False:",
        _COMPLETION,
    ),
    Mutation(
        "Tab offers what stands without a name as an option",
        "agents/cli/completion.py",
        'if tyro.conf.Positional in getattr(hints.get(name), "__metadata__", ()):',
        "if False:",
        _COMPLETION,
    ),
    Mutation(
        "the adapters name no base model",
        "agents/policies/actor.py",
        "config.base_model_name_or_path = base",
        'config.base_model_name_or_path = ""',
        ("tests/agents/runs/test_adapter.py",),
    ),
    Mutation(
        "a run leaves no adapters",
        "agents/runs/run.py",
        "if self.settings.algorithm.lora_rank:",
        "if False:",
        ("tests/agents/runs/test_adapter.py",),
    ),
    Mutation(
        "init writes over a folder's files",
        "agents/cli/init.py",
        "if folder.exists() and any(folder.iterdir()):",
        "if False:",
        ("tests/agents/cli/test_init.py",),
    ),
    Mutation(
        "a prompt to start from lacks what the reward asks for",
        "agents/starter/prompts.jsonl",
        '{"prompt": "How was the hotel?", "wanted": "recommend"}',
        '{"prompt": "How was the hotel?", "wish": "recommend"}',
        ("tests/agents/cli/test_init.py",),
    ),
    Mutation(
        "a run that goes on is a new one at the service",
        "agents/runs/report_to.py",
        "known = self.known_id() or uuid.uuid4().hex",
        "known = uuid.uuid4().hex",
        _REPORTS,
    ),
    Mutation(
        "parameters are sent a second time",
        "agents/runs/report_to.py",
        "if known is None:",
        "if True:",
        _REPORTS,
    ),
    Mutation(
        "a missing service is found out when the run has begun",
        "agents/runs/run.py",
        "check_installed(settings.folder.report_to)",
        "check_installed(None)",
        _REPORTS,
    ),
    Mutation(
        "a repository is public unless asked",
        "agents/runs/settings.py",
        "hub_private: bool = True",
        "hub_private: bool = False",
        ("tests/agents/runs/test_hub.py",),
    ),
    Mutation(
        "a hub that refuses ends the run with a traceback",
        "agents/runs/hub.py",
        "except (HfHubHTTPError, LocalTokenNotFoundError, OSError, RuntimeError) as error:",
        "except HfHubHTTPError as error:",
        ("tests/agents/runs/test_hub.py",),
    ),
    Mutation(
        "two rankings look certain",
        "agents/supervised/reward_model/report.py",
        "if len(names) < FEW_GROUPS:",
        "if False:",
        ("tests/agents/supervised/test_reward_losses.py",),
    ),
    Mutation(
        "a response is printed after each token",
        "llm_env/env.py",
        "if episode.done and self.render_mode == HUMAN:",
        "if self.render_mode == HUMAN:",
        ("tests/llm_env/test_env.py",),
    ),
]
