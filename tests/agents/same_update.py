"""The same episodes and mini-batches in one process with all slots, and in ranks with a part each: are the updates the same?

    torchrun --nproc-per-node 2 -m tests.agents.same_update OUT.json none|full CASE...

Each rank first makes the update alone, with all slots, and keeps the tokens that it drew; then all ranks make it together, each
with its slots, which take those very tokens; with ``full`` their weights are in shards. Mini-batches are dealt out by slot, so
that they are the same too: of unequal numbers of tokens, and every other epoch one that is empty on all ranks but the first.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from agents import distributed
from agents.algorithms.factory import make_algorithm
from agents.callbacks.adaptive_kl import AdaptiveKL
from agents.callbacks.alarms import Alarms
from agents.callbacks.linear_kl import LinearKL
from agents.callbacks.metrics import TextMetricsCallback
from agents.distributed import Ranks, ranks
from agents.policies.actor_critic import LLMActorCriticPolicy
from agents.policies.observations import split_observation
from agents.policies.sampled_actions import ActionTensor
from agents.rollouts import buffer as buffer_module
from agents.shards import whole
from llm_env.guess_the_number import game_settings
from llm_env.lm.sampling import restrict

N, CAP, ROLLOUTS, MINI_BATCHES = 8, 8, 2, 2
TEXTS = [f"The number {i} film was{' very' * (i % 4)} good." for i in range(7)]
LORA = {"lora_rank": 4, "lora_alpha": 8}
DRIFTS = {"n_epochs": 4, "learning_rate": 2e-3}
GUESSES = {**game_settings()}
GROUPS = {"group_size": 2}


def rare_reward(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that most responses do not get."""
    return [float(" a" in response) for response in responses]


Case = tuple[str, dict[str, Any], dict[str, Any]]
CASES: dict[str, Case] = {
    "ppo": ("ppo", {}, {}),
    "head": ("ppo", {"critic": "head"}, {}),
    "actor critic, faster": ("ppo", {"critic": "actor", "critic_lr_scale": 3.0}, {}),
    "top layers": ("ppo", {"critic": "top_layers"}, {}),
    "lora": ("ppo", {**LORA, "critic": "detached_head"}, {}),
    "lora, reward model": ("ppo", {**LORA, "critic": "reward_model"}, {}),
    "kl in the loss, k2": ("ppo", {"kl_in": "loss"}, {"kl_estimator": "k2"}),
    "kl in both, exact": ("ppo", {"kl_in": "both"}, {"kl_estimator": "exact"}),
    "ptx": ("ppo", {"ptx_texts": "TEXTS", "ptx_tokens": 64}, {}),
    "micro-batches": ("ppo", {"micro_batch_tokens": 40}, {}),
    "ptx, micro-batches": ("ppo", {"ptx_texts": "TEXTS", "ptx_tokens": 64, "micro_batch_tokens": 40}, {}),
    "whitened rewards, entropy": ("ppo", {"whiten_rewards": True, "ent_coef": 0.01}, {}),
    "target_kl": ("ppo", {**DRIFTS, "target_kl": 0.01}, {}),
    "checkpointing": ("ppo", {"gradient_checkpointing": True}, {}),
    "sequences, with a critic": ("ppo", {"loss_aggregation": "sequence", "ent_coef": 0.01}, {}),
    "adaptive kl": ("ppo", {"learning_rate": 1e-3}, {"kl_coef": 0.1}),
    "linear kl": ("ppo", {"learning_rate": 1e-3}, {"kl_coef": 0.1}),
    "turns": ("ppo", {"critic": "actor"}, GUESSES),
    "turns, by turns": ("ppo", {"critic": "actor", "advantages": "turn_gae"}, GUESSES),
    "turns, lag": ("ppo", {"critic": "actor"}, {**GUESSES, "world_lag": 1}),
    "maskable_ppo": ("maskable_ppo", {}, {"top_k": 20, "min_new_tokens": 2}),
    "a2c": ("a2c", {}, {}),
    "grpo": ("grpo", GROUPS, {}),
    "grpo of tokens, target_kl": ("grpo", {**GROUPS, **DRIFTS, "loss_aggregation": "token", "target_kl": 0.01}, {}),
    "grpo, turns": ("grpo", GROUPS, GUESSES),
    "grpo, resamples": ("grpo", {**GROUPS, "max_resamples": 2}, {"reward_model": f"{__name__}:rare_reward"}),
    "dr_grpo": ("dr_grpo", GROUPS, {}),
    "rloo": ("rloo", GROUPS, {}),
    "remax": ("remax", {}, {}),
    "reinforce_pp": ("reinforce_pp", {}, {}),
    "learning rate 0": ("ppo", {"learning_rate": 0.0}, {}),
    # Other prompts come to other slots, and rounding decides between tokens: here ranks are compared with each other alone.
    "continuous": ("ppo", {"episodes": "continuous", "n_steps": 12}, {}),
    "bf16": ("ppo", {"mixed_precision": "bf16"}, {}),
}
NOT_COMPARED = ("continuous", "bf16")


class Script:
    """Draws the tokens of a run, by step and slot among all slots, or repeats those that were drawn before."""

    def __init__(self, group_size: int) -> None:
        self.group_size = group_size
        self.drawn: dict[tuple[int, int], int] = {}
        self.epochs = self.step = 0

    def rewind(self) -> None:
        self.epochs = self.step = 0

    def place(self, slot: int) -> int:
        """Where this rank's slot stands among all: groups take turns over the ranks."""
        group, member = divmod(slot, self.group_size)
        return (group * ranks().world + ranks().rank) * self.group_size + member

    def tokens(self, logits: torch.Tensor) -> torch.Tensor:
        self.step += 1
        chosen = []
        for slot, row in enumerate(torch.log_softmax(logits.double(), -1).exp().cumsum(-1)):
            key = (self.step, self.place(slot))
            if key not in self.drawn:
                share = np.random.default_rng([7, *key]).random()
                self.drawn[key] = min(int(torch.searchsorted(row, share * row[-1])), len(row) - 1)
            chosen.append(self.drawn[key])
        return torch.tensor(chosen)

    def groups(
        self, lengths: np.ndarray, order: np.ndarray, batch_size: int | None, slots: list[int]
    ) -> list[list[int]]:
        """Stands for `balanced_groups`: the mini-batch of a segment is that of its slot."""
        if batch_size is None:
            return [[int(i) for i in order]]
        self.epochs += 1
        table = np.random.default_rng([11, self.epochs]).integers(0, MINI_BATCHES, size=N)
        table[self.place_of_first(0)], table[self.place_of_first(1)] = 0, 1
        if self.epochs % 2:  # mini-batch 0 is the first rank's alone
            table[[s for s in range(N) if s // self.group_size % WORLD and table[s] == 0]] = 1
        return [[int(i) for i in sorted(order) if table[self.place(slots[i])] == k] for k in range(MINI_BATCHES)]

    def place_of_first(self, number: int) -> int:
        """The slot, among all, of the first rank's slot of this number."""
        group, member = divmod(number, self.group_size)
        return group * WORLD * self.group_size + member


WORLD = 1
script = Script(1)


def forward(
    self: LLMActorCriticPolicy, obs: Any, deterministic: bool = False, allowed: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Stands for the policy's: the same but for where tokens come from."""
    ids, lengths = split_observation(obs)
    hidden = self._last_hidden(ids, lengths)
    logits = self._logits(hidden, self._acting_lm())
    if allowed is not None:
        logits = restrict(logits, allowed)
    actions = script.tokens(logits)
    log_probs = torch.log_softmax(logits, -1).gather(-1, actions[:, None])[:, 0] * (lengths > 0)
    return ActionTensor.carry(actions, log_probs, self.temperature), self._values(hidden, ids, lengths), log_probs


class Watch(BaseCallback):
    """Notes weights before each rollout and at the end, prompts and answers of each rollout, and the KL of each update."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[torch.Tensor] = []
        self.episodes: list[list[Any]] = []
        self.kls: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        policy = self.model.policy
        self.weights.append(
            torch.cat([whole(p.detach()).flatten().clone() for p in policy.parameters() if p.requires_grad])
        )
        self.kls.append(float(self.logger.name_to_value.get("train/approx_kl", 0.0)))

    def _on_rollout_end(self) -> None:
        segments = self.model.rollout_buffer.segments  # type: ignore[attr-defined]
        self.episodes.append([[script.place(s.slot), list(s.ids)] for s in segments])

    def _on_training_end(self) -> None:
        self._on_rollout_start()


def checksum(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(whole(parameter.detach()).float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def train(name: str) -> dict[str, Any]:
    """Trains a case, in one process or as one of the ranks."""
    script.rewind()
    algo, settings, env = CASES[name]
    settings = {"n_epochs": 2, "batch_size": N * CAP, **settings} if algo != "a2c" else dict(settings)
    if "ptx_texts" in settings:
        settings["ptx_texts"] = str(Path(sys.argv[1]).with_suffix(".txt"))
    env = {"max_new_tokens": CAP, **env}
    if "max_turns" in env:
        settings.setdefault("learning_rate", 1e-3)
        if algo != "a2c":
            settings["batch_size"] = N * env["max_new_tokens"]
    model = make_algorithm(algo, n_envs=N, env_kwargs=env, seed=3, device="cpu", **settings)
    model.set_logger(Logger(None, []))
    equal: list[bool] = []
    model.policy.optimizer.register_step_post_hook(  # type: ignore[union-attr]
        lambda *_: equal.append(len(set(ranks().everyone(checksum(model.policy)))) == 1)
    )
    watch, metrics = Watch(), TextMetricsCallback()
    callbacks: list[BaseCallback] = [watch, Alarms(metrics), metrics]  # the last one empties the logger
    if name == "adaptive kl":
        callbacks.append(AdaptiveKL(metrics, target=0.05, gain=1.0))
    if name == "linear kl":
        callbacks.append(LinearKL(0.1, 0.0))
    steps = ROLLOUTS * model.n_steps * N // ranks().world  # type: ignore[attr-defined]
    model.learn(steps, callbacks, log_interval=None)  # type: ignore[arg-type]
    model.env.close()  # type: ignore[union-attr]
    refused = ""
    if ranks().shards:
        try:
            model.save(Path(sys.argv[1]).with_name(f"rank{ranks().rank}.zip"))
        except ValueError as error:
            refused = str(error)
    return {
        "refused": refused,
        "weights": torch.stack(watch.weights).double(),
        "episodes": [sorted(e for part in ranks().everyone(own) for e in part) for own in watch.episodes],
        "kls": watch.kls,
        "equal": equal,
        "last": metrics.last,
        "kl_coef": model.env.unwrapped.task.kl.coef,  # type: ignore[union-attr]
        "tokens": metrics.tokens,
    }


def compare(name: str, joint: Ranks) -> dict[str, Any]:
    """Trains a case alone and together; what differs, as plain values."""
    global script
    script = Script(CASES[name][1].get("group_size", 1))
    distributed._current = Ranks()
    alone = train(name)
    distributed._current = joint
    together = train(name)
    moved = (alone["weights"] - alone["weights"][0]).norm(dim=1)[1:]
    apart = (together["weights"] - alone["weights"]).norm(dim=1)[1:]
    return {
        "refused": together["refused"],
        "relative": (apart / moved.clamp(min=1e-12)).tolist(),
        "apart": float(apart.max()),
        "moved": moved.tolist(),
        "same_episodes": together["episodes"] == alone["episodes"],
        "updates": [len(alone["equal"]), len(together["equal"])],
        "bit_equal": all(together["equal"]),
        "kls": joint.everyone(together["kls"]),
        "statistics": {k: [v, together["last"].get(k)] for k, v in alone["last"].items()},
        "kl_coefs": [alone["kl_coef"], together["kl_coef"]],
        "tokens": [alone["tokens"], together["tokens"]],
    }


def dealt(joint: Ranks, others: int, batch_size: int) -> dict[str, Any]:
    """How `balanced_groups` deals out segments: the first rank's twelve, of many tokens, and some of few on each other one."""
    rng = np.random.default_rng(joint.rank)
    lengths = rng.integers(8, 13, size=12) if joint.first else rng.integers(1, 8, size=others)
    groups = buffer_module.balanced_groups(lengths, rng.permutation(len(lengths)), batch_size)
    counts = joint.everyone(len(groups))
    sizes = joint.add([lengths[list(g)].sum() for g in groups]) if len(set(counts)) == 1 else []
    return {"counts": counts, "sizes": list(sizes), "all": joint.everyone(sorted(i for g in groups for i in g))}


def main() -> None:
    global WORLD
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    out, sharding, *names = sys.argv[1:]
    joint = distributed.join(timeout_s=60, sharding=sharding)
    WORLD = joint.world
    if joint.first:
        Path(out).with_suffix(".txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    # At first try a group of all ranks is too large, though no rank's part is; and a rank has fewer segments than groups.
    found: dict[str, Any] = {"dealt": dealt(joint, 12, 35), "few dealt": dealt(joint, 3, 40)}
    LLMActorCriticPolicy.forward = forward  # type: ignore[method-assign]
    get = buffer_module.TokenRolloutBuffer.get

    def get_by_slot(self: Any, batch_size: int | None = None) -> Any:
        slots = [s.slot for s in self.segments]
        buffer_module.balanced_groups = lambda *given: script.groups(*given, slots)  # type: ignore[assignment]
        return get(self, batch_size)

    buffer_module.TokenRolloutBuffer.get = get_by_slot  # type: ignore[method-assign]
    for name in names:
        found[name] = compare(name, joint)
        if joint.first:
            Path(out).write_text(json.dumps(found), encoding="utf-8")
    if joint.first:
        Path(out).write_text(json.dumps(found), encoding="utf-8")
    distributed.part()


if __name__ == "__main__":
    from tests.agents.same_update import main as start  # under the name by which the environment finds `rare_reward`

    start()
