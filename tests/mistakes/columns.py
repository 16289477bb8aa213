"""Mistakes in what prompts' records bring to a reward, and in verifiers."""

from __future__ import annotations

from tests.mistakes import Mutation

_COLUMNS = ("tests/llm_env/reward/test_columns.py",)
_VERIFIERS = ("tests/llm_env/reward/test_verifiers.py",)
_RUNS = ("tests/agents/runs/test_run_columns.py",)
_QUANTITIES = "llm_env/reward/verifiers/quantities.py"
_ANSWERS = "llm_env/reward/verifiers/answers.py"

COLUMNS = [
    Mutation(
        "a record's other fields are dropped",
        "llm_env/text/prompts.py",
        "PromptRecord(checked_prompt(where, record[name]), plain_columns(record, name), where)",
        "PromptRecord(checked_prompt(where, record[name]), {}, where)",
        _COLUMNS,
    ),
    Mutation(
        "a missing column is found when responses are scored",
        "llm_env/task.py",
        "        self.reward_model.check_prompts(self.prompts.records)\n",
        "",
        _COLUMNS,
    ),
    Mutation(
        "what a function does to its columns stays",
        "llm_env/reward/columns.py",
        "copy.deepcopy(row[n])",
        "row[n]",
        _COLUMNS,
    ),
    Mutation(
        "a column takes the place of the prompts",
        "llm_env/reward/columns.py",
        "for n in names if n not in self.taken}",
        "for n in names}",
        _COLUMNS,
    ),
    Mutation(
        "a column that some records lack is passed",
        "llm_env/text/columns.py",
        "if all(name in row for row in rows)]",
        "if any(name in row for row in rows)]",
        _COLUMNS,
    ),
    Mutation(
        "a run's own prompt files lose the columns",
        "agents/runs/prompts.py",
        "json.dumps(p.to_json(), ensure_ascii=False)",
        'json.dumps({"prompt": p.prompt}, ensure_ascii=False)',
        _RUNS,
    ),
    Mutation(
        "judges are not told the columns",
        "agents/preferences/judge.py",
        "Prompt(text, (0,), columns=candidates.columns)",
        "Prompt(text, (0,))",
        _RUNS,
    ),
    Mutation(
        "the same question has one baseline, whatever the answer",
        "agents/rollouts/scoring.py",
        "(e.prompt.ids, repr(e.prompt.columns))",
        '(e.prompt.ids, "")',
        _RUNS,
    ),
    Mutation(
        "parts are logged with their weights",
        "llm_env/reward/models.py",
        "episode.part_scores[name] = score",
        "episode.part_scores[name] = weight * score",
        _VERIFIERS,
    ),
    Mutation(
        "the first marked answer counts",
        _ANSWERS,
        "max(found)[1].strip()",
        "min(found)[1].strip()",
        _VERIFIERS,
    ),
    Mutation(
        "a tag that is only named begins the answer",
        _ANSWERS,
        "((?:(?!<answer>).)*?)</answer>",
        "(.*?)</answer>",
        _VERIFIERS,
    ),
    Mutation(
        "braces inside a box end it",
        _ANSWERS,
        'depth += 1 if text[i] == "{" else -1',
        "depth = 0",
        _VERIFIERS,
    ),
    Mutation(
        "a number loses its sign",
        _QUANTITIES,
        "        value = -value\n",
        "        pass\n",
        _VERIFIERS,
    ),
    Mutation(
        "thousands are cut at the comma",
        _QUANTITIES,
        "(?:,[0-9]{3})+(?![0-9])",
        "(?:;[0-9]{3})+(?![0-9])",
        _VERIFIERS,
    ),
    Mutation(
        "the exponent of a unit is the number",
        _QUANTITIES,
        '_UNIT_POWER.sub("", re.sub(r"\\\\[,!;:]", "", text))',
        're.sub(r"\\\\[,!;:]", "", text)',
        _VERIFIERS,
    ),
    Mutation(
        "a power's base is the number",
        _QUANTITIES,
        'or match["power"] is not None:',
        "or False:",
        _VERIFIERS,
    ),
    Mutation(
        "what stands under a root is the number",
        _QUANTITIES,
        'or match["formula"] is not None',
        "or False",
        _VERIFIERS,
    ),
    Mutation(
        "the digit of a name is the number",
        _QUANTITIES,
        'quantity if match["name"] else match',
        "match",
        _VERIFIERS,
    ),
    Mutation(
        "a number begins in the middle of others",
        _QUANTITIES,
        r"(?<![0-9]\ )[1-9]",
        "[1-9]",
        _VERIFIERS,
    ),
    Mutation(
        "an en dash is no minus",
        _QUANTITIES,
        '_MINUS.sub("-", text)',
        "text",
        _VERIFIERS,
    ),
    Mutation(
        "a schema of no version is a traceback",
        "llm_env/reward/verifiers/json_schema.py",
        'if isinstance(schema, dict) and not isinstance(schema.get("$schema", ""), str):',
        "if False:",
        _VERIFIERS,
    ),
    Mutation(
        "an article is a choice",
        "llm_env/reward/verifiers/choice.py",
        r"(?![^\S\n]*\w))",
        ")",
        _VERIFIERS,
    ),
    Mutation(
        "a schema may refer to nothing",
        "llm_env/reward/verifiers/json_schema.py",
        "        except referencing.exceptions.Unresolvable:\n            return True",
        "        except referencing.exceptions.Unresolvable:\n            return False",
        _VERIFIERS,
    ),
    Mutation(
        "towers of powers are computed",
        "llm_env/reward/verifiers/formula.py",
        "if size.is_Number and abs(size) > _LARGEST_EXPONENT:",
        "if size.is_Number and abs(size) > 10**12:",
        _VERIFIERS,
    ),
    Mutation(
        "an empty response follows instructions",
        "llm_env/reward/verifiers/ifeval.py",
        "if text.strip()]",
        "]",
        _VERIFIERS,
    ),
    Mutation(
        "references in a schema are fetched",
        "llm_env/reward/verifiers/json_schema.py",
        "if elsewhere := _references_elsewhere(schema, kind):",
        "if elsewhere := []:",
        _VERIFIERS,
    ),
]
