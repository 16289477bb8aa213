"""Mistakes in planned rollouts: when a plan fits, when it is dropped, and the loop that writes it."""

from __future__ import annotations

from tests.mistakes import Mutation

_TESTS = ("tests/agents/policies/test_plan.py",)
_WRITER_TESTS = ("tests/llm_env/lm/test_writer.py",)
_REPLAY_TESTS = ("tests/llm_env/lm/test_replay.py",)
PLANS = [
    Mutation(
        "a plan is handed out whatever is observed",
        "agents/policies/plan.py",
        "not (torch.equal(lengths, self.lengths) and torch.equal(ids, self.ids)):",
        "not torch.equal(lengths, self.lengths):",
        _TESTS,
    ),
    Mutation(
        "a plan is kept when the weights change",
        "agents/policies/actor_critic.py",
        "self._planner.drop()",
        "pass",
        _TESTS,
    ),
    Mutation(
        "a plan reaches beyond its rollout",
        "agents/rollouts/outlook.py",
        "min(steps_left, venv.calm_steps)",
        "venv.calm_steps",
        _TESTS,
    ),
    Mutation(
        "a plan goes on where only the world knows with what",
        "llm_env/lm/writer.py",
        "if not left or (outlook.goes_on and left < n_growing):",
        "if not left:",
        _WRITER_TESTS,
    ),
    Mutation(
        "writing goes on behind an end token",
        "llm_env/lm/writer.py",
        "desk.is_end.index_select(0, tokens).logical_or_(desk.last[:rows] == at)",
        "desk.last[:rows] == at",
        _WRITER_TESTS,
    ),
    Mutation(
        "rows of slots that have ended are read to the end",
        "llm_env/lm/writer.py",
        "                        decoder.release(~growing)\n",
        "",
        _WRITER_TESTS,
    ),
    Mutation(
        "rows that fill up a bucket write into another slot",
        "llm_env/lm/decoding.py",
        "slots = torch.full((self._n_rows,), len(self._lengths))",
        "slots = torch.full((self._n_rows,), 0)",
        _WRITER_TESTS,
    ),
    Mutation(
        "the loop's masks are those of its first step",
        "llm_env/lm/writer.py",
        "return self.table[(self.short[:rows] > self.at).long()]",
        "return self.table[(self.short[:rows] > 0).long()]",
        _WRITER_TESTS,
    ),
    Mutation(
        "rows that move together leave their random numbers behind",
        "llm_env/lm/writer.py",
        "        self.drawn[:, : len(slots)] = self.drawn[:, rows]\n",
        "",
        _WRITER_TESTS,
    ),
    Mutation(
        "rows that nobody has any more go on",
        "llm_env/lm/writer.py",
        "        self.alive[len(slots) :] = False  # nobody's rows\n",
        "",
        _WRITER_TESTS,
    ),
    Mutation(
        "what was written in rows is their last slots'",
        "llm_env/lm/writer.py",
        "index_select(1, rows) for (a, rows), b in",
        "index_select(1, self._spans[-1][1]) for (a, _), b in",
        _WRITER_TESTS,
    ),
    Mutation(
        "a step writes its keys where the row's last ones are",
        "llm_env/lm/ragged_cache.py",
        "places = at.columns[:, None, :, None].expand_as(key_states)",
        "places = (at.columns[:, None, :, None] - 1).clamp(min=0).expand_as(key_states)",
        _WRITER_TESTS,
    ),
    Mutation(
        "what was written is read again",
        "llm_env/lm/decoding.py",
        "self._lengths[slots] += len(tokens)",
        "pass",
        _WRITER_TESTS,
    ),
    Mutation(
        "a replay that disagrees leaves its marks",
        "llm_env/lm/replay.py",
        "        put_back(want)\n",
        "",
        _WRITER_TESTS,
    ),
    Mutation(
        "a capture that fails leaves its stream the current one",
        "llm_env/lm/replay.py",
        "        with torch.cuda.stream(stream):  # torch's own context",
        "        with contextlib.nullcontext():  # torch's own context",
        _REPLAY_TESTS,
    ),
    Mutation(
        "a capture that fails stays under way in the allocator",
        "llm_env/lm/replay.py",
        "                _abandon(stream.device.index, pool)\n",
        "",
        _REPLAY_TESTS,
    ),
    Mutation(
        "weights that a capture was to round are read though it failed",
        "llm_env/lm/replay.py",
        "            finally:  # what a capture has rounded holds nothing yet\n                torch.clear_autocast_cache()",
        "            finally:\n                pass",
        _REPLAY_TESTS,
    ),
    Mutation(
        "a graph is captured on the current device, whichever it is for",
        "llm_env/lm/replay.py",
        "stream = torch.cuda.Stream(device)",
        'stream = torch.cuda.Stream("cuda:0")',
        _REPLAY_TESTS,
    ),
    Mutation(
        "steps behind the last end give the state of an earlier text",
        "llm_env/lm/writer.py",
        "if 1 < len(written.actions) == steps:",
        "if 1 < len(written.actions):",
        _WRITER_TESTS,
    ),
    Mutation(
        "a step that was captured elsewhere is replayed",
        "llm_env/lm/replay.py",
        "if addresses != self._expected:",
        "if self._expected is None:",
        _WRITER_TESTS,
    ),
    Mutation(
        "random numbers that a plan did not need are lost",
        "agents/policies/acting.py",
        "            torch.set_rng_state(before)\n",
        "",
        _TESTS,
    ),
    Mutation(
        "a turn in a plan has a token more than its cap",
        "agents/rollouts/outlook.py",
        "turn = cap - (len(episode.response_ids) - episode.turn_start)",
        "turn = 1 + cap - (len(episode.response_ids) - episode.turn_start)",
        _TESTS,
    ),
    Mutation(
        "a plan expects other masks than it was written under",
        "llm_env/lm/writer.py",
        "return self.table[(self.short > steps).long()]",
        "return self.table[(self.short > 0).long()]",
        _TESTS,
    ),
    Mutation(
        "a world that is waited for is not seen to answer",
        "agents/rollouts/vec_env.py",
        "return min([round_ends, *(clock - self._clock for clock in self._due.values())])",
        "return round_ends",
        _TESTS,
    ),
]
