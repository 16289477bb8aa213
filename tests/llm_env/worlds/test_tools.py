from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import pytest
import transformers
from packaging.version import Version

from llm_env.worlds.base import WorldError, step_answer
from llm_env.worlds.calculator import Calculator
from llm_env.worlds.make import world_maker
from llm_env.worlds.python_tool import MOST_OUTPUT, PythonTool
from llm_env.worlds.tools import ToolWorld
from tests.worlds import CHAT, chat_model

READS_RESPONSES = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.13"), reason="transformers 5.13 has response templates"
)
ROW = {"row": {"prompt": "What is 54 + 10?", "start": 3}}


def test_a_world_that_cannot_be_made_is_told_in_a_whole_sentence() -> None:
    def no_world() -> Any:
        raise LookupError("Nothing is here.")

    for source, kwargs, end in (
        ("llm_env.worlds.tools:ToolWorld", {"tools": "nosuch:f"}, "or on PYTHONPATH."),
        (no_world, {}, "test_tools.py, line"),
    ):
        with pytest.raises(WorldError) as caught:
            world_maker(source, kwargs)()
        message = str(caught.value)
        assert message.endswith(".")
        assert end in message
        assert "PYTHONPATH.." not in message
        assert "here. (" not in message


class Counter:
    """Of TRL's shape: a state of its own, a reward of its own."""

    def reset(self, start: int, **others: Any) -> str:
        self.count = start
        return " Go."

    def add(self, step: int, twice: bool = False) -> str:
        """Adds to the counter.

        Args:
            step: How much.
            twice: Whether to add it twice.
        """
        self.count += step * (2 if twice else 1)
        return str(self.count)

    def get_reward(self) -> float:
        """The count."""
        return float(self.count)


def call(name: str, **arguments: Any) -> str:
    import json

    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def test_a_turn_with_calls_is_answered_and_one_without_ends_the_episode() -> None:
    world = ToolWorld(Counter)
    assert world.reset(seed=0, options=ROW)[0] == "What is 54 + 10? Go."
    text, reward, ended, _, info = world.step(f"first {call('add', step=1)} then {call('add', step=2, twice=True)}")
    assert (text, reward, ended) == ("4\n8", 0.0, False)
    assert info == {"tool_calls": 2, "bad_calls": 0}
    text, reward, ended, _, _ = world.step("The count is 8.")
    assert (text, reward, ended) == ("", 8.0, True)
    assert world.reset(seed=0, options=ROW)[0] == "What is 54 + 10? Go."
    _, reward, _, _, info = world.step("Done.")
    assert (reward, info["tool_calls"]) == (3.0, 0)  # each episode begins anew


def test_a_tool_with_one_argument_has_a_short_form() -> None:
    world = ToolWorld("llm_env.worlds.calculator:Calculator")
    world.reset(options=ROW)
    assert world.step("<calculate> 54 + 10 </calculate>")[0] == "64"
    assert "call it by name" in ToolWorld(Counter).step("<add>1</add>")[0]


@pytest.mark.parametrize(
    ("turn", "result"),
    [
        ("<tool_call>{'name'</tool_call>", "error: the call is not JSON"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "error: the call is not JSON"),
        ("<tool_call>[]</tool_call>", 'error: a call is {"name": …, "arguments": {…}}; the tools are calculate'),
        (call("search", q="x"), 'error: a call is {"name": …, "arguments": {…}}; the tools are calculate'),
        (call("calculate", number=3), "error: calculate: missing a required argument: 'expression'"),
        (call("_value"), "error: a call is"),
        ('<tool_call>{"name": ["calculate"]}</tool_call>', "error: a call is"),
        (call("__init__"), "error: a call is"),
        ("<calculate>1 / 0</calculate>", "error: ZeroDivisionError: division by zero"),
        ("<calculate>__import__('os').getcwd()</calculate>", "error: ValueError: only numbers and"),
        ("<calculate>9 ** 9</calculate>", "error: ValueError: only numbers and"),
        ("<calculate>" + "(" * 5000 + "</calculate>", "error: ValueError: at most 200 characters"),
    ],
)
def test_what_goes_wrong_goes_back_as_text(turn: str, result: str) -> None:
    world = ToolWorld(Calculator)
    world.reset(options=ROW)
    text, _, ended, _, info = world.step(turn)
    assert text.startswith(result)
    assert not ended
    assert info["tool_calls"] == 1


def test_a_bad_call_may_end_the_episode() -> None:
    world = ToolWorld(Counter, bad_calls="end")
    world.reset(options=ROW)
    for turn in ("<tool_call>{</tool_call>", '<tool_call>{"name": {}}</tool_call>'):
        world.reset(options=ROW)
        text, reward, ended, _, info = world.step(turn)
        assert text.startswith("error: ")
        assert (reward, ended, info["bad_calls"]) == (0.0, True, 1)
    assert not ToolWorld(Calculator, bad_calls="end").step("<calculate>1 / 0</calculate>")[
        2
    ]  # the tool's error is none


def test_other_tags_are_text() -> None:
    world = ToolWorld(Calculator)
    world.reset(options=ROW)
    assert world.step("<b>64</b>")[2]
    assert world.step("<b><calculate>8 * 8</calculate></b>")[0] == "64"  # and do not hide what stands in them


def test_any_text_may_be_the_tag() -> None:
    world = ToolWorld(Counter, tag="tool-call")
    world.reset(options=ROW)
    assert world.step(call("add", step=1).replace("tool_call", "tool-call"))[0] == "4"


class Parrot:
    def say(self, text: str) -> str:
        """Repeats a text.

        Args:
            text: The text.
        """
        return text


def test_half_of_a_character_that_a_tool_repeats_is_no_fault_of_the_world() -> None:
    answer = ToolWorld(Parrot).step(call("say", text="a\ud800"))
    assert step_answer("the world", answer).text == "a?"


def test_results_may_be_a_message_of_their_own_role() -> None:
    world = ToolWorld(Calculator, role="tool", tag="call")
    world.reset(options={"row": {"prompt": [{"role": "user", "content": "What is 1 + 1?"}]}})
    assert world.step(call("calculate", expression="1 + 1").replace("tool_call", "call"))[0] == [
        {"role": "tool", "content": "2"}
    ]


def test_schemas_are_read_from_docstrings() -> None:
    (schema,) = ToolWorld(Counter).tools
    assert schema["function"]["name"] == "add"
    assert schema["function"]["parameters"]["properties"]["twice"]["type"] == "boolean"
    assert schema["function"]["parameters"]["required"] == ["step"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tools": object}, "has no public method"),
        ({"tools": "llm_env.worlds.calculator:Nothing"}, "has no 'Nothing'"),
        ({"tools": Calculator, "bad_calls": "stop"}, "bad_calls='stop'"),
        ({"tools": type("Bare", (), {"act": lambda self, x: x})}, "docstring"),
    ],
)
def test_what_cannot_be_tools_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ToolWorld(**arguments)


def test_tools_need_a_prompt() -> None:
    with pytest.raises(WorldError, match="give prompts"):
        ToolWorld(Calculator).reset(seed=0)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("54+10", "64"),
        ("-(3 - 5) * 4", "8"),
        ("7 / 2", "3.5"),
        ("7 // 2", "3"),
        ("2 × 3", "6"),
        ("1/3", "0.333333333333333"),
        ("24691357803 / 2", "12345678901.5"),
        ("1" + "0" * 30 + " / 10", "1" + "0" * 29),
        ("1e16 + 1", "1" + "0" * 15 + "1"),
        ("0.3 // 0.1", "3"),
    ],
)
def test_the_calculator_computes(expression: str, value: str) -> None:
    assert Calculator().calculate(expression) == value


@pytest.fixture(scope="module")
def python() -> PythonTool:
    try:
        return PythonTool(allow_code=True, seconds=3)
    except OSError as error:
        pytest.skip(str(error))


def test_model_written_code_runs_only_if_asked_for() -> None:
    with pytest.raises(ValueError, match="allow_code=True"):
        PythonTool()


def test_code_prints_its_result(python: PythonTool) -> None:
    assert python.python("print(sum(range(10)))") == "45\n"
    assert python.python("1 / 0").endswith("ZeroDivisionError: division by zero\nerror: status 1")
    assert python.python("x = 1") == python.python("print(x)")[:0]  # each call begins anew


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import socket; socket.create_connection(('127.0.0.1', 22), 1)", "Network is unreachable"),
        ("x = 'a' * 10**10", "MemoryError"),
        ("open('f', 'w').write('x' * 10**7)", "File too large"),
        ("while True: pass", "stopped after 3 s"),
    ],
)
def test_code_has_limits(python: PythonTool, code: str, problem: str) -> None:
    assert problem in python.python(code)


def test_code_sees_an_empty_folder_and_no_variables(python: PythonTool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    assert "secret" not in python.python("import os; print(dict(os.environ))")
    assert python.python("import os; print(os.listdir())") == "[]\n"


def test_output_is_cut_and_nothing_stays_behind(python: PythonTool) -> None:
    assert len(python.python("print('x' * 10**6)")) <= MOST_OUTPUT + 30
    assert python.python("import subprocess; print(subprocess.Popen(['sleep', '77']).pid)").strip().isdigit()
    import subprocess

    assert not subprocess.run(["pgrep", "-f", "sleep 77"], capture_output=True, check=False).stdout


TOOL_TEMPLATE = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool.function.name }}: {{ tool.function.description }}{% endfor %}"
    "</tools>{% endif %}" + CHAT
)


def ids_of(env: Any, text: str) -> list[int]:
    return [*env.unwrapped.task.tokenizer.encode(text, add_special_tokens=False), 2]


def test_a_conversation_with_a_tool_is_scored_by_its_answer(tmp_path: Path) -> None:
    env = gymnasium.make(
        "LLMText-v0",
        model=chat_model(tmp_path, TOOL_TEMPLATE),
        world=ToolWorld,
        world_kwargs={"tools": Calculator},
        prompts=[{"prompt": "54 + 10?", "answer": "64"}],
        reward_model="verifier:number?column=answer",
        kl_coef=0.0,
        max_prompt_length=256,
        max_new_tokens=128,
        max_turns=3,
    )
    observation, _ = env.reset(seed=0)
    tokenizer = env.unwrapped.task.tokenizer
    first = tokenizer.decode(observation["input_ids"][: observation["length"][0]])
    assert "<tools>calculate: Computes an arithmetic expression.</tools>" in first
    rewards = []
    for token in ids_of(env, "<calculate>54 + 10</calculate>"):
        observation, reward, terminated, _, info = env.step(token)
        rewards.append(reward)
    assert not terminated
    state = tokenizer.decode(observation["input_ids"][: observation["length"][0]])
    assert state.index("</calculate>") < state.rindex("64")  # the result stands behind the call
    for token in ids_of(env, "It is 64."):
        observation, reward, terminated, _, info = env.step(token)
        rewards.append(reward)
    assert terminated
    assert sum(rewards) == rewards[-1] == 1.0
    assert info["end"] == "world"
    assert info["world_info"] == {"tool_calls": 1, "bad_calls": 0}
    env.close()


RESPONSES = {  # in the form of transformers' response templates: calls as Python calls them, between brackets
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>\n",
    "fields": {
        "tool_calls": {
            "open": "[[",
            "close": "]]",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close": "</s>", "content": "text"},
    },
}


def with_responses(folder: Path, template: dict[str, Any] | None = None) -> str:
    """A chat model whose tokenizer reads responses back."""
    from transformers import AutoTokenizer

    model = chat_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.response_template = template or RESPONSES
    tokenizer.save_pretrained(model)
    return model


def template_world(**settings: Any) -> Any:
    return gymnasium.make(
        "LLMText-v0",
        world=ToolWorld,
        world_kwargs={"tools": Counter, "parser": "template"},
        prompts=[{"prompt": "Count.", "start": 3}],
        kl_coef=0.0,
        max_prompt_length=256,
        max_new_tokens=128,
        **settings,
    )


@READS_RESPONSES
def test_calls_are_read_by_the_tokenizers_own_template(tmp_path: Path) -> None:
    env = template_world(model=with_responses(tmp_path))
    env.reset(seed=0)
    first = 'So: [[{"name": "add", "arguments": {"step": 2}}]] [[{"name": "add", "arguments": {"step": 1}}]]'
    rewards = [env.step(token)[1] for token in ids_of(env, first)]
    batch = env.unwrapped.batch
    (episode,) = batch.episodes
    assert episode.turns[0].reply == "5\n6"
    assert episode.world_info == {"tool_calls": 2, "bad_calls": 0}
    batch.load_state_dict(batch.state_dict())  # the turn is played again, as a message too
    for token in ids_of(env, "Six."):
        *_, terminated, _, info = env.step(token)
    rewards.append(env.unwrapped.batch.episodes[0].world_return)
    assert terminated
    assert rewards[-1] == 6.0
    assert info["world_info"] == {"tool_calls": 2, "bad_calls": 0}


@READS_RESPONSES
def test_a_turn_that_the_template_does_not_read_is_a_bad_call(tmp_path: Path) -> None:
    env = template_world(model=with_responses(tmp_path))
    env.reset(seed=0)
    for token in ids_of(env, "[[not json]]"):
        env.step(token)
    episode = env.unwrapped.batch.episodes[0]
    assert episode.turns[0].reply.startswith("error: the turn cannot be parsed")
    assert episode.world_info == {"tool_calls": 1, "bad_calls": 1}


def test_a_tokenizer_without_a_template_of_responses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no response_template that would read them"):
        template_world(model=chat_model(tmp_path)).reset(seed=0)


def test_a_closing_tag_may_end_a_turn(tmp_path: Path) -> None:
    env = gymnasium.make(
        "LLMText-v0",
        model=chat_model(tmp_path),
        world=ToolWorld,
        world_kwargs={"tools": Calculator},
        prompts=["54 + 10?"],
        stop_strings=["</calculate>"],
        max_prompt_length=64,
        max_new_tokens=128,
    )
    env.reset(seed=0)
    for token in ids_of(env, "<calculate>54 + 10</calculate>")[:-1]:
        env.step(token)
    (turn,) = env.unwrapped.batch.episodes[0].turns
    assert (turn.text, turn.reply) == ("<calculate>54 + 10</calculate>", "64")
    assert turn.reply_ids[0] == 2  # the end token that the template wants
