"""Settings for RL Baselines3 Zoo, which runs on `LLMText-v0` as on any other environment.

pip install rl_zoo3
python -m rl_zoo3.train --algo ppo --env LLMText-v0 --gym-packages llm_env -conf scripts/configs/rl_zoo.py -f logs
python -m rl_zoo3.enjoy --algo ppo --env LLMText-v0 --gym-packages llm_env -f logs --no-render -n 500
python -m rl_zoo3.plots.plot_train -a ppo -e LLMText-v0 -f logs

The Zoo makes plain environments behind SB3's DummyVecEnv: one forward pass for each of them instead of one for all, so
scripts/train.py is faster. Task, reward, policy and buffer are the same. About five minutes on two CPU cores.
"""

from agents import LLMActorCriticPolicy, TokenRolloutBuffer

hyperparams = {
    "LLMText-v0": {
        "n_timesteps": 40_000,
        "n_envs": 16,
        "policy": "agents.policies.actor_critic.LLMActorCriticPolicy",
        "policy_kwargs": {"critic": "detached_head"},
        "rollout_buffer_class": TokenRolloutBuffer,
        "rollout_buffer_kwargs": {"whiten_advantages": True},
        "n_steps": 64,
        "batch_size": 256,
        "n_epochs": 4,
        "gamma": 1.0,
        "gae_lambda": 0.95,
        "learning_rate": "lin_3e-4",
        "clip_range": 0.2,
        "ent_coef": 0.0,
        "vf_coef": 0.5,
        "max_grad_norm": 1.0,
        "normalize_advantage": False,
    }
}
assert LLMActorCriticPolicy.__module__ == "agents.policies.actor_critic"  # the name above
