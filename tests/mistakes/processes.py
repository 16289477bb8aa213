"""Mistakes in what several processes of one run do together."""

from __future__ import annotations

from tests.mistakes import Mutation

_TESTS = ("tests/agents/test_distributed.py",)
_COMMANDS = "tests/agents/cli/test_processes.py"
PROCESSES = [
    Mutation(
        "the plain mean over ranks",
        "agents/distributed.py",
        "return _Weighted.apply(shares, ",
        "return _Weighted.apply([1 / self.world] * len(outputs), ",
        _TESTS,
    ),
    Mutation(
        "gradients stay where they are",
        "agents/distributed.py",
        "        self.add_gradients(module.parameters())\n",
        "",
        _TESTS,
    ),
    Mutation(
        "each rank whitens by itself",
        "agents/rollouts/buffer.py",
        "return ranks().moments(flat[:0] if self._stands_in else flat)",
        "return flat.mean(), flat.std()",
        _TESTS,
    ),
    Mutation(
        "each rank has as many mini-batches as it likes",
        "agents/rollouts/minibatches.py",
        "        joint = ranks().add(sizes)\n",
        "        joint = sizes\n",
        _TESTS,
    ),
    Mutation(
        "a rank leaves out mini-batches of which it has nothing",
        "agents/rollouts/minibatches.py",
        "return [g for g, size in zip(groups, joint, strict=True) if size]",
        "return [g for g in groups if g]",
        _TESTS,
    ),
    Mutation(
        "all ranks take the same prompts",
        "llm_env/slots.py",
        "for _ in range(all_parts)][mine]",
        "for _ in range(all_parts)][0]",
        _TESTS,
    ),
    Mutation(
        "the log has rank 0's episodes",
        "agents/callbacks/metrics.py",
        "for part in ranks().everyone(own) for info in part]",
        "for info in own]",
        _TESTS,
    ),
    Mutation(
        "each rank stops by its own KL",
        "agents/algorithms/replicas.py",
        "float(ranks().add([self.share() * float(approx_kl)])[0])",
        "float(approx_kl)",
        _TESTS,
    ),
    Mutation(
        "responses weigh by their tokens",
        "agents/rollouts/minibatches.py",
        'counts = tokens if mean_over == "tokens" else ',
        "counts = tokens if mean_over else ",
        _TESTS,
    ),
    Mutation(
        "texts weigh alike in all ranks",
        "agents/algorithms/pretraining_mix.py",
        "return dataclasses.replace(packed, share=share, policy_share=share)",
        "return dataclasses.replace(packed, share=0.5, policy_share=0.5)",
        _TESTS,
    ),
    Mutation(
        "gradients in shards are the mean over ranks",
        "agents/shards.py",
        "module.set_gradient_divide_factor(1.0)",
        "module.set_gradient_divide_factor(2.0)",
        _TESTS,
    ),
    Mutation(
        "what decodes is never brought up to date",
        "agents/policies/actor.py",
        "        self._is_stale = self._in_shards\n",
        "",
        _TESTS,
    ),
    Mutation(
        "adapters in shards share the reference's model",
        "agents/policies/actor.py",
        "if lora_rank and reference_load is not None and not ranks().shards:",
        "if lora_rank and reference_load is not None:",
        (f"{_COMMANDS}::test_a_run_in_shards_goes_on_in_replicas_and_in_one_process",),
    ),
    Mutation(
        "parts that keep other ranks company count",
        "agents/policies/micro_batches.py",
        "g[places] * float(counts)",
        "g[places]",
        _TESTS,
    ),
    Mutation(
        "a checkpoint in shards has rank 0's part of the weights",
        "agents/shards.py",
        "            value = whole(tensor.detach())  # one at a time\n",
        "            value = own_part(tensor.detach())\n",
        (f"{_COMMANDS}::test_a_run_in_shards_goes_on_in_replicas_and_in_one_process",),
    ),
    Mutation(
        "rank 0 samples in shards with what decoded the last rollout",
        "agents/runs/run.py",
        "        if ranks().shards:\n            cast(LLMActorCriticPolicy, self.policy).refresh()\n",
        "",
        (f"{_COMMANDS}::test_the_actor_in_shards_is_the_actor_of_replicas",),
    ),
    Mutation(
        "each process has the whole batch",
        "agents/supervised/trainer.py",
        "part = settings.batch_size // settings.world",
        "part = settings.batch_size",
        ("tests/agents/supervised/test_in_processes.py",),
    ),
    Mutation(
        "a checkpoint has rank 0's streams alone",
        "agents/runs/rank_states.py",
        "    if me.rank < len(written_by):\n",
        "    if me.first:\n",
        ("tests/agents/cli/test_processes.py",),
    ),
]
