"""Mistakes in the plan of a run's memory."""

from __future__ import annotations

from tests.mistakes import Mutation

_METER = ("tests/agents/memory/test_meter.py",)
_PLAN = ("tests/agents/memory/test_plan.py",)
_OPTIMIZERS = ("tests/agents/policies/test_optimizers.py",)
_OFFLOAD = ("tests/agents/policies/test_offload.py",)
_NF4 = ("tests/llm_env/lm/test_quantization.py",)
_QLORA = ("tests/agents/policies/test_quantized_base.py",)
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
    Mutation(
        "quantized layers that are not trained round to bf16, where the CPU can",
        "llm_env/lm/loading.py",
        "    multiply_whole_weights(model)\n",
        "",
        _NF4,
    ),
    Mutation(
        "layers are quantized that bitsandbytes puts together wrong",
        "llm_env/lm/quantization.py",
        "if (width := _read_by(m)) % BLOCK}",
        "if (width := _read_by(m)) < 0}",
        _NF4,
    ),
    Mutation(
        "what GPT-2 stores transposed is put together as it is multiplied",
        "llm_env/lm/quantization.py",
        '    return weight.T if getattr(layer, "source_cls", None) is Conv1D else weight\n',
        "    return weight\n",
        _NF4,
    ),
    Mutation(
        "the plan forgets the scales",
        "llm_env/lm/quantization.py",
        "            self.register_buffer(name, scales)\n",
        "            pass\n",
        (*_NF4, *_PLAN),
    ),
    Mutation(
        "the reference is not quantized",
        "llm_env/settings.py",
        "        return load.as_base(self.base_quantization, self.mixed_precision)",
        "        return load",
        _QLORA,
    ),
    Mutation(
        "a checkpoint holds the scales of the base",
        "agents/policies/actor_critic.py",
        '        return names | {name for name in state if name.rpartition(".weight.")[0] + ".weight" in names}',
        "        return names",
        _QLORA,
    ),
    Mutation(
        "mixed precision decodes with a copy four times the size of a quantized base",
        "agents/policies/actor.py",
        'mixed_precision == "bf16" and not self._is_quantized',
        'mixed_precision == "bf16"',
        _QLORA,
    ),
    Mutation(
        "the saved actor of a quantized base is without its adapters",
        "agents/policies/decoding_copy.py",
        "whole_weight(base, sum(deltas))",
        "whole_weight(base)",
        _QLORA,
    ),
    Mutation(
        "a saved actor is rounded a second time",
        "agents/policies/actor.py",
        "        if self._is_quantized:  # put together again, and not rounded a second time\n",
        "        if False:\n",
        _QLORA,
    ),
    Mutation(
        "a quantized base goes to shards",
        "agents/algorithms/capabilities.py",
        '    if base != "none":',
        "    if False:",
        _QLORA,
    ),
    Mutation(
        "a quantized base needs no adapters",
        "llm_env/lm/names.py",
        '    if value != "none" and lora_rank == 0:',
        "    if False:",
        _QLORA,
    ),
    Mutation(
        "a policy's base is quantized, and the environment's reference is not",
        "agents/algorithms/wiring.py",
        '    if kwargs["base_quantization"] != settings.base_quantization:',
        "    if False:",
        _QLORA,
    ),
]
