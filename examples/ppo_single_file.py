"""PPO on a language model in one file, in CleanRL's manner: Gymnasium, torch and transformers, no stable-baselines3.

    python examples/ppo_single_file.py --kl-coef 0.1        about four minutes on two CPU cores

Every state is read from its start, in the rollout and in each epoch: that is short and slow. `agents` does the same PPO with a
key-value cache and one pass over each response (docs/performance.md).
"""

import time
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.distributions import Categorical
from transformers import AutoModelForCausalLM

import llm_env  # noqa: F401  (registers LLMText-v0)
from llm_env.default_task import DEFAULT_MODEL
from llm_env.wrappers import VectorPolicyKLReward


@dataclass
class Args:
    """PPO's settings."""

    seed: int = 1
    """Seed of prompts, sampling and the value head."""
    total_timesteps: int = 40_000
    """Tokens to generate."""
    learning_rate: float = 3e-4
    """Step size at the start; annealed to 0."""
    num_envs: int = 32
    """Responses that are written side by side."""
    num_steps: int = 64
    """Tokens that each environment writes in a rollout."""
    gamma: float = 1.0
    """Discount. 1, for the score comes at the end, and a long response is not worth less."""
    gae_lambda: float = 0.95
    """Lambda of generalized advantage estimation."""
    num_minibatches: int = 4
    """Mini-batches of a rollout."""
    update_epochs: int = 2
    """Passes over a rollout."""
    clip_coef: float = 0.2
    """PPO's epsilon."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 1.0
    """Largest norm of a gradient; longer ones are scaled down to it."""
    kl_coef: float = 0.05
    """Coefficient beta of the KL to the reference, in score per nat."""


class Agent(nn.Module):
    """A causal LM with a value head that leaves the trunk alone."""

    def __init__(self) -> None:
        super().__init__()
        self.lm = AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL, dtype=torch.float32)
        self.value = nn.Linear(self.lm.config.hidden_size, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, ids: Tensor, length: Tensor) -> tuple[Categorical, Tensor]:
        """π(·|s) and V(s) for right-padded prefixes ids (B, L) of `length` (B,); causality hides the padding."""
        ids = ids[:, : int(length.max())].clamp(max=self.lm.config.vocab_size - 1)
        hidden = self.lm.base_model(input_ids=ids).last_hidden_state[torch.arange(len(ids)), length - 1]
        return Categorical(logits=self.lm.get_output_embeddings()(hidden)), self.value(hidden.detach())[:, 0]


def gae(rewards: Tensor, values: Tensor, dones: Tensor, next_value: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalized advantage estimation, Schulman et al. 2016, eq. 16 (https://arxiv.org/abs/1506.02438).

    Rewards, values (V before each step) and dones (1 where a response ended with the step) have shape (num_steps, num_envs);
    `next_value`, V after the last step, has shape (num_envs,).
    """
    advantages, running = torch.zeros_like(rewards), torch.zeros_like(next_value)
    for t in reversed(range(len(rewards))):
        after = next_value if t == len(rewards) - 1 else values[t + 1]
        delta = rewards[t] + gamma * after * (1 - dones[t]) - values[t]
        advantages[t] = running = delta + gamma * lam * (1 - dones[t]) * running
    return advantages


def main(args: Args) -> None:
    """Trains, and prints a line for each iteration."""
    torch.manual_seed(args.seed)
    agent = Agent()
    optimizer = torch.optim.AdamW(agent.parameters(), lr=args.learning_rate, eps=1e-5, weight_decay=0.0)
    latest = {}
    plain = gym.make_vec("LLMText-v0", num_envs=args.num_envs, kl_coef=args.kl_coef)
    envs = VectorPolicyKLReward(plain, lambda obs, action: latest["log_prob"])  # adds -β·log π
    obs, _ = envs.reset(seed=args.seed)
    steps, n = args.num_steps, args.num_envs
    ids = torch.zeros((steps, n, obs["input_ids"].shape[1]), dtype=torch.long)
    lengths, actions = torch.zeros((steps, n), dtype=torch.long), torch.zeros((steps, n), dtype=torch.long)
    log_probs, rewards, dones, values = (torch.zeros((steps, n)) for _ in range(4))
    n_iterations = max(1, args.total_timesteps // (batch_size := steps * n))
    print(f"{n_iterations} iterations of {batch_size} tokens, a line each; Ctrl-C stops", flush=True)
    for iteration in range(n_iterations):
        started = time.time()
        optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - iteration / n_iterations)
        episodes = []  # scores of the rollout, which is one token of every response a step
        for t in range(steps):
            ids[t], lengths[t] = torch.as_tensor(obs["input_ids"]), torch.as_tensor(obs["length"])[:, 0]
            with torch.no_grad():
                distribution, values[t] = agent(ids[t], lengths[t])
                actions[t] = distribution.sample()
                log_probs[t] = distribution.log_prob(actions[t])
            latest["log_prob"] = log_probs[t].numpy()
            obs, reward, terminated, _, infos = envs.step(actions[t].numpy())
            rewards[t], dones[t] = torch.as_tensor(reward), torch.as_tensor(terminated)
            episodes += [infos["final_info"]["rm_score"][i] for i in np.flatnonzero(terminated)]

        # Advantages, from the last step back.
        with torch.no_grad():
            _, next_value = agent(torch.as_tensor(obs["input_ids"]), torch.as_tensor(obs["length"])[:, 0])
        advantages = gae(rewards, values, dones, next_value, args.gamma, args.gae_lambda)
        returns = (advantages + values).flatten()
        flat = ((advantages - advantages.mean()) / (advantages.std() + 1e-8)).flatten()

        # Update: PPO's clipped objective and the value loss, on mini-batches of tokens.
        for _ in range(args.update_epochs):
            for chosen in torch.randperm(batch_size).chunk(args.num_minibatches):
                distribution, value = agent(ids.flatten(0, 1)[chosen], lengths.flatten()[chosen])
                log_ratio = distribution.log_prob(actions.flatten()[chosen]) - log_probs.flatten()[chosen]
                ratio = log_ratio.exp()
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                policy_loss = -torch.min(ratio * flat[chosen], clipped * flat[chosen]).mean()
                loss = policy_loss + args.vf_coef * (value - returns[chosen]).pow(2).mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
        print(
            f"step {(iteration + 1) * batch_size:6d}  score {np.mean(episodes):6.2f}  length {batch_size / len(episodes):5.1f}"
            f"  approx_kl {((ratio - 1) - log_ratio).mean():.4f}  {batch_size / (time.time() - started):5.0f} tokens/s",
            flush=True,
        )


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except KeyboardInterrupt:
        raise SystemExit("Stopped.") from None
