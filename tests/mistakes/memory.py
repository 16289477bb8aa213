"""Mistakes in the plan of a run's memory."""

from __future__ import annotations

from tests.mistakes import Mutation

_METER = ("tests/agents/memory/test_meter.py",)
_PLAN = ("tests/agents/memory/test_plan.py",)
_OPTIMIZERS = ("tests/agents/policies/test_optimizers.py",)
_OFFLOAD = ("tests/agents/policies/test_offload.py",)
MEMORY = [
    Mutation(
        "what was freed is counted on",
        "agents/memory/meter.py",
        "        self.now[self._kinds.pop(place)] -= size\n",
        "        pass\n",
        _METER,
    ),
    Mutation(
        "a view of a weight is counted as new",
        "agents/memory/meter.py",
        "and tensor.untyped_storage()._cdata not in given:",
        ":",
        _METER,
    ),
    Mutation(
        "tied weights are counted twice",
        "agents/memory/weightless.py",
        "    return sum(storages.values())",
        "    return sum(t.nbytes for t in tensors)",
        (*_METER, *_PLAN),
    ),
    Mutation(
        "a cache is as wide as its texts",
        "agents/memory/formulas.py",
        "max(length, columns + columns // 2)",
        "length",
        ("tests/agents/memory/test_formulas.py",),
    ),
    Mutation(
        "with adapters the reference is planned all the same",
        "agents/memory/plan.py",
        '    if not is_actor or sharding == "full":',
        "    if True:",
        _PLAN,
    ),
    Mutation(
        "the strongest remedy is named where a milder one is enough",
        "agents/memory/remedies.py",
        "        for change in step(plan):  # the mildest of its kind that is enough",
        "        for change in list(step(plan))[-1:]:",
        ("tests/agents/cli/test_plan.py",),
    ),
    Mutation(
        "the critic is not put aside before a rollout",
        "agents/policies/actor_critic.py",
        "            self.idle_critic.put_aside()\n",
        "",
        _OFFLOAD,
    ),
    Mutation(
        "a critic that is aside is asked where it is",
        "agents/policies/rollout_scores.py",
        "        with self.idle_critic.asked():\n            log_probs",
        "        if True:\n            log_probs",
        _OFFLOAD,
    ),
    Mutation(
        "the optimizer's states stay where they are",
        "agents/policies/idle_critic.py",
        "            move_states(self.policy.optimizer, critic, device)\n",
        "",
        _OFFLOAD,
    ),
    Mutation(
        "a fused step's number stays on the other device",
        "agents/policies/idle_critic.py",
        "(value.ndim > 0 or along)",
        "value.ndim > 0",
        _OFFLOAD,
    ),
    Mutation(
        "a model stays on the device after it was asked",
        "llm_env/lm/placement.py",
        "    finally:\n        move(module, before)\n",
        "    finally:\n        pass\n",
        _OFFLOAD,
    ),
    Mutation(
        "a reward model that is aside is asked where it is",
        "llm_env/reward/classifier.py",
        "        with at_hand(self.model, self.device):",
        "        if True:",
        _OFFLOAD,
    ),
    Mutation(
        "layers that are the actor's are put aside with the critic",
        "agents/policies/idle_critic.py",
        "isinstance(critic, CriticNetwork) and not shares and",
        "isinstance(critic, CriticNetwork) and",
        _OFFLOAD,
    ),
    Mutation(
        "a missing package is found out after everything is loaded",
        "agents/algorithms/factory.py",
        '    optimizer_named(chosen.get("optimizer", "adamw"))  # what has it is installed\n',
        "",
        _OPTIMIZERS,
    ),
    Mutation(
        "8-bit states go to shards",
        "agents/algorithms/capabilities.py",
        '    if optimizer == "adamw_8bit":',
        "    if False:",
        _OPTIMIZERS,
    ),
    Mutation(
        "8-bit AdamW decays weights",
        "agents/policies/optimizers.py",
        '        return {"eps": 1e-5, "weight_decay": 0.0}\n    return {}',
        "        return {}\n    return {}",
        _OPTIMIZERS,
    ),
    Mutation(
        "the plan has what idles while a rollout is collected",
        "agents/memory/plan.py",
        '{"collecting": 0, "scoring": scoring,',
        '{"scoring": scoring,',
        _PLAN,
    ),
    Mutation(
        "the plan scores with the largest activations, whatever weights go with them",
        "agents/memory/plan.py",
        "one.needs + (one.weights if one.part in idle else 0))",
        "one.needs)",
        _PLAN,
    ),
]
