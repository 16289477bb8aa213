"""Mistakes in planned rollouts: when a plan fits, what it is written by, and when it is dropped."""

from __future__ import annotations

from tests.mistakes import Mutation

_TESTS = ("tests/agents/policies/test_plan.py",)
PLANS = [
    Mutation(
        "a plan is handed out whatever is observed",
        "agents/policies/plan.py",
        "if not (torch.equal(lengths, self.lengths) and torch.equal(ids, self.ids)):",
        "if not torch.equal(lengths, self.lengths):",
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
        "agents/policies/planner.py",
        "if ended.any() and (outlook.goes_on or not (grown > 0).any()):",
        "if ended.any() and not (grown > 0).any():",
        _TESTS,
    ),
    Mutation(
        "a plan writes on behind an end token",
        "agents/policies/planner.py",
        "ended = acts & (outlook.is_end[actions] | (outlook.room == t + 1))",
        "ended = acts & (outlook.room == t + 1)",
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
        "a plan forgets the minimum length",
        "agents/policies/plan.py",
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
