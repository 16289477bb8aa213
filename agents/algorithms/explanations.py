"""What settings of algorithms are, in a line each, where nothing else says it.

Options of the command line are explained in `agents.runs.settings`; those of policy, buffer and `TextPPO` in their docstrings.
Here are the rest: arguments of the libraries' own classes, and settings that are something else for one algorithm. The pages
of docs/algorithms show all of them.
"""

from __future__ import annotations

EXPLANATIONS = {
    "gamma": "Discount of later rewards.",
    "n_steps": "Steps of each slot in a rollout.",
    "normalize_advantage": "Shift and scale advantages within each mini-batch, instead of once for the whole rollout.",
    "policy_kwargs": "Settings of the policy by name, as stable-baselines3 has them; here they may stand beside the others.",
    "rollout_buffer_kwargs": "Further arguments of `agents.TokenRolloutBuffer`, by name.",
    "replay_buffer_kwargs": "Further arguments of `agents.rollouts.replay.TokenReplayBuffer`, by name.",
    "stats_window_size": "Episodes over which the library's own log averages.",
    "tensorboard_log": "Folder of the library's TensorBoard log.",
    "verbose": "How much the library prints: 0 nothing, 1 its log, 2 details too.",
    "device": "Torch device of the policy.",
    "optimizer_class": "The optimizer; AdamW is made without weight decay, with an epsilon of 1e-5.",
    "optimizer_kwargs": "The optimizer's arguments besides the learning rate, by name.",
    # A2C
    "use_rms_prop": "Put RMSprop in the place of `optimizer_class`, as the paper has it.",
    "rms_prop_eps": "RMSprop's epsilon.",
    # TRPO
    "cg_max_steps": "Steps of conjugate gradients that solve for the natural gradient; each is a pass forward and two back.",
    "cg_damping": "Number that is added to the Fisher matrix's diagonal.",
    "line_search_shrinking_factor": "Factor by which a step that goes too far, or brings nothing, is made shorter.",
    "line_search_max_iter": "How often a step is made shorter before it is given up.",
    "n_critic_updates": "Passes of the critic over each rollout.",
    # DQN and QR-DQN
    "buffer_size": "Tokens in the replay buffer.",
    "learning_starts": "Steps before the first update.",
    "train_freq": "Steps of each slot between updates; at least as many as the longest response has.",
    "gradient_steps": "Mini-batches in each update; -1: as many as steps were made.",
    "target_update_interval": "Steps between updates of the target network.",
    "tau": "How far the target network follows then; 1 copies the weights.",
    "exploration_fraction": "Share of training in which the share of random tokens falls to its end.",
    "exploration_initial_eps": "Share of uniformly random tokens at the start. softmax(Q/τ) explores already.",
    "exploration_final_eps": "Share of uniformly random tokens in the end.",
    # ARS
    "n_delta": "Directions that are tried before each step, each to both sides.",
    "n_top": "How many of them, the best ones, the step is made of. Default: all.",
    "delta_std": "How far a candidate is from the current weights, as a standard deviation.",
    "zero_policy": "Begin with all searched weights at zero, which a language model would not survive.",
    "alive_bonus_offset": "Number that is added to the reward of each step.",
    "n_eval_episodes": "Episodes on which each candidate is judged.",
    # RecurrentPPO
    "lstm_hidden_size": "Width of the LSTMs, the actor's and the critic's.",
    "n_lstm_layers": "Layers of each LSTM.",
}
"""Of settings that are explained nowhere else."""
_REPLAY = {
    "critic": "V's network, beside Q from the LM head: a copy of the reward model or the actor, or a head.",
    "batch_size": "Tokens in a mini-batch.",
    "n_steps": "Steps of reward before the target network's value, within a response.",
}
OWN_MEANING: dict[str, dict[str, str]] = {
    "a2c": {"learning_rate": "Step size at the start."},
    "trpo": {
        "target_kl": "Size of the trust region: how far new and old policy may be apart (nats per token).",
        "learning_rate": "Step size of the critic's AdamW at the start; the actor moves by the trust region.",
        "batch_size": "Tokens in a mini-batch of the critic; the policy's step is taken on the whole rollout.",
    },
    "recurrent_ppo": {
        "batch_size": "Steps in a mini-batch.",
        "learning_rate": "Step size of Adam at the start.",
    },
    "dqn": _REPLAY,
    "qr_dqn": _REPLAY,
    "ars": {"learning_rate": "Size of the step along the directions that paid, at the start."},
}
"""Where a setting is something else for an algorithm than for others."""
