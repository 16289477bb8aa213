"""Mistakes with engines: what is handed out and by whose log-probs, the weights they write with, what is refused."""

from __future__ import annotations

from tests.mistakes import Mutation

_AHEAD = ("tests/agents/engines/test_ahead.py",)
_VLLM = ("tests/agents/engines/test_vllm_engine.py",)
_BATCHING = ("tests/agents/engines/test_continuous_batching.py",)
ENGINES = [
    Mutation(
        "an engine writes with the weights of the first rollout",
        "agents/policies/actor_critic.py",
        "self._engine.is_stale = True",
        "self._engine.is_stale = False",
        _AHEAD,
    ),
    Mutation(
        "an engine's turn begins a token early when it is scored",
        "agents/engines/ahead.py",
        "[len(prompt) for prompt in prompts])",
        "[len(prompt) - 1 for prompt in prompts])",
        _AHEAD,
    ),
    Mutation(
        "tokens behind an end token are handed out",
        "agents/engines/ahead.py",
        "is not None and at + 1 < len(tokens):",
        "is not None and at + 1 < 0:",
        _AHEAD,
    ),
    Mutation(
        "turns that an engine breaks off are handed out",
        "agents/engines/ahead.py",
        "elif at is None and len(tokens) < most:",
        "elif at is None and len(tokens) < 0:",
        _AHEAD,
    ),
    Mutation(
        "the distance of an engine from the policy has the other sign",
        "agents/engines/ahead.py",
        "log_ratio = policy.astype(np.float64) - engine",
        "log_ratio = engine - policy.astype(np.float64)",
        _AHEAD,
    ),
    Mutation(
        "a cut turn has ended",
        "agents/engines/ahead.py",
        "count == int(outlook.room[slot])",
        "count > 0",
        _AHEAD,
    ),
    Mutation(
        "an environment that an engine cannot write for is loaded first",
        "agents/algorithms/factory.py",
        '    check_fits(policy.get("engine"), rules, episodes, ranks().world)\n',
        "",
        _AHEAD,
    ),
    Mutation(
        "an environment that exists is bound to any engine",
        "agents/rollouts/buffer.py",
        "        check_fits(policy.engine, venv.task.settings, venv.episodes, ranks().world)\n",
        "",
        _AHEAD,
    ),
    Mutation(
        "transformers' engine seeds the generator outside",
        "agents/engines/continuous_batching.py",
        'with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):',
        "if True:",
        _BATCHING,
    ),
    Mutation(
        "transformers' engine draws among its default number of likeliest tokens",
        "agents/engines/continuous_batching.py",
        '"top_k": 0, ',
        '"top_k": 5, ',
        _BATCHING,
    ),
    Mutation(
        "every text has the room of the first",
        "agents/engines/continuous_batching.py",
        "max_new_tokens=most,",
        "max_new_tokens=room[0],",
        _BATCHING,
    ),
    Mutation(
        "vLLM's head keeps the weights that it was made with",
        "agents/engines/vllm_engine.py",
        "named.update({other: named[first] for other in others if first in named})",
        "named.update({first: named[first] for other in others if first in named})",
        _VLLM,
    ),
    Mutation(
        "vLLM goes on with what it read with the weights before",
        "agents/engines/vllm_engine.py",
        "        if not self._llm.reset_prefix_cache():\n",
        "        if False:\n",
        _VLLM,
    ),
    Mutation(
        "vLLM draws all texts by one seed",
        "agents/engines/vllm_engine.py",
        "seed=seed + i,",
        "seed=seed,",
        _VLLM,
    ),
]
