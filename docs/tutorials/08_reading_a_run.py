"""
Reading a run
=============

Most runs that fail do so without an error. They write a log, and the log says what is wrong to whoever can read it. Here are
one healthy run and three that really go wrong, each for one reason, and what there is to see.
"""

# %%
# Four runs
# ---------
# ``TextMetricsCallback`` logs score and KL, and with ``gold`` a second score that nobody trains on; here it is the rule
# behind the embedded reward model. stable-baselines3 logs what an update did. All of it goes to ``progress.csv``, as in
# every run of ``llm-env train``, a row for each rollout.

import tempfile
import warnings

import pandas as pd
from stable_baselines3.common.logger import configure

from agents import Alarms, TextMetricsCallback, make_algorithm


def run(rollouts=12, kl_coef=0.05, reward_model=None, **settings):
    """Trains with 32 responses a rollout; the log, and two of the last responses."""
    task = {"kl_coef": kl_coef, "reward_model": reward_model}
    # target_kl would end an update early that goes too far; here mistakes are to be seen.
    settings = {"critic": "detached_head", "learning_rate": 5e-4, "target_kl": None, **settings}
    model = make_algorithm("ppo", n_envs=32, seed=0, env_kwargs=task, **settings)
    folder = tempfile.mkdtemp()
    model.set_logger(configure(folder, ["csv"]))
    metrics = TextMetricsCallback(gold="llm_env.default_task.gold:gold_score")
    with warnings.catch_warnings(record=True) as alarms:  # to show them here; else they go to the terminal
        model.learn(rollouts * 32 * 32, callback=[Alarms(metrics), metrics], log_interval=None)
    for alarm in alarms:
        print("alarm:", alarm.message)
    return pd.read_csv(f"{folder}/progress.csv"), [episode["response"].strip() for episode in metrics.episodes[:2]]


runs = {"healthy": run()}

# %%
# The first mistake is a learning rate forty times as high.

runs["too_fast"] = run(learning_rate=2e-2)

# %%
# The second is a reward that says less than was meant, with nothing to hold the policy back: a point for each kind word, and
# ``kl_coef`` 0.


def praise(prompts, responses):
    """A point for each kind word."""
    kind = ("great", "lovely", "wonderful", "superb", "perfect", "friendly", "kind", "thank", "grateful")
    return [float(sum(response.lower().count(word) for word in kind)) for response in responses]


runs["hacked"] = run(rollouts=16, reward_model=praise, kl_coef=0.0, learning_rate=1e-3)

# %%
# The third is a critic that does not learn, since its loss has the weight 0.

runs["blind_critic"] = run(vf_coef=0.0)

# %%
# The last row of each log
# ------------------------

columns = {
    "rollout/rm_score": "score",
    "rollout/gold_score": "gold",
    "rollout/kl": "KL",
    "rollout/response_length": "length",
    "train/entropy_loss": "entropy_loss",
    "train/approx_kl": "approx_kl",
    "train/clip_fraction": "clip_fraction",
    "train/explained_variance": "explained_var",
    "train/value_loss": "value_loss",
    "train/alarms": "alarms",
}
table = pd.DataFrame({name: log[list(columns)].iloc[-1] for name, (log, _) in runs.items()}).rename(columns)
print(table.round(3).to_string())

# %%
# - **healthy**: score and gold score rise together, at a few nats. ``approx_kl``, how far an update moves the policy from
#   the one that sampled, is a few hundredths of a nat a token, and some per cent of the tokens are clipped.
# - **too_fast**: one update, and the KL is in the hundreds and the gold score at the bottom; the learned score takes some
#   rollouts longer to notice. In the end the policy says one thing with certainty: the entropy is 0, and so are
#   ``approx_kl`` and ``clip_fraction``, for nothing moves any more. Zeros here are no good sign, and neither is
#   ``explained_variance``, since what never changes is easy to foresee. A lower learning rate is the cure; a run that is
#   dead stays dead.
# - **hacked**: by the score it is the best of all. The gold score has fallen through the floor, the KL is in the hundreds,
#   responses are as long as they may be. Nothing but a number that nobody trains on, or a look at the text, tells. The
#   cure is a better reward, and a ``kl_coef`` above 0 until there is one.
# - **blind_critic**: it learns, but less. ``explained_variance`` is 0 all the time: the critic says nothing of how a
#   response will end, so advantages are mere returns, and noisy. With a critic that learns it climbs in the long run, in
#   so short a one it is no more than restless; ``value_loss`` shows the difference sooner.
#
# The curves tell when it happened.

import matplotlib.pyplot as plt

figure, axes = plt.subplots(2, 3, figsize=(9, 5), sharex=True)
for place, key in zip(axes.flat, list(columns)[:3] + list(columns)[4:6] + list(columns)[7:8], strict=True):
    for name, (log, _) in runs.items():
        place.plot(log.index + 1, log[key], label=name)
    place.set_title(key)
axes[0, 2].set_yscale("symlog")
axes[1, 1].set_yscale("symlog", linthresh=1e-2)
axes[1, 2].set_ylim(-1, 1)
axes[1, 2].legend(fontsize=8, loc="lower left")
figure.supxlabel("rollout")
figure.tight_layout()

# %%
# And always read what is written:

for name, (_, responses) in runs.items():
    print(f"{name}:", *(f"  {response}" for response in responses), sep="\n")

# %%
# The same numbers stand in ``report.html`` of each run, with samples whose tokens are colored by KL and advantage. More:
# :doc:`/metrics` has every name with its formula, :doc:`/alarms` what ends a run and what only warns, :doc:`/rlhf`
# over-optimization with a learned reward, :doc:`/pages` the pages.
