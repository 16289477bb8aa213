"""
An environment with turns
=========================

Until now the model wrote once and was scored. Now somebody answers: the model guesses a number, the world says *higher* or
*lower*, and the model guesses again. It is paid for finding the number and for nothing else; that the answers mean
something, it has to find out.
"""

# %%
# A world
# -------
# A *world* has Gymnasium's interface, with texts as observations and actions. That is all; an existing environment of texts
# fits as it is.

import random


class HigherLower:
    """Find a number from 1 to 7 in three guesses; whoever halves what is left always does."""

    def reset(self, *, seed=None, options=None):
        """Draws the number; asks."""
        self.number, self.guesses = random.Random(seed).randint(1, 7), 0
        return "Which number?\n", {}

    def step(self, text):
        """Answers a guess; returns text, reward, terminated, truncated, info."""
        self.guesses += 1
        guess = int(text) if text.isdigit() else 0
        if guess == self.number:
            return "right", 1.0, True, False, {"guesses": self.guesses}
        hint = "higher" if guess < self.number else "lower"
        return hint, 0.0, self.guesses == 3, False, {"guesses": self.guesses}


world = HigherLower()
print(world.reset(seed=1)[0].strip(), *(f"{guess}: {world.step(guess)[0]}." for guess in ("4", "2", "1")))

# %%
# Around it stands the same environment as ever, one step for each token. The model is the embedded one of the game
# *GuessTheNumber*: 102,000 weights, a token for each digit, and no idea of the game.

import gymnasium as gym

import llm_env
from llm_env.guess_the_number import GUESSER

settings = {
    "model": GUESSER,
    "world": HigherLower,
    "max_turns": 3,
    "max_turn_tokens": 3,  # two digits and an end token
    "max_new_tokens": 9,
    "max_world_tokens": 4,
    "max_prompt_length": 4,
    "kl_coef": 0.0,  # there is nothing in this model to stay near to
}
env = gym.make(llm_env.ENV_ID, **settings)
task = env.unwrapped.task
tokenizer = task.tokenizer

observation, info = env.reset(seed=3)
for token in [*tokenizer.encode("4", add_special_tokens=False), tokenizer.eos_token_id]:
    observation, reward, terminated, truncated, info = env.step(token)
    print(repr(tokenizer.decode(observation["input_ids"][: observation["length"][0]])), reward)

# %%
# The end token ended the turn, not the episode: in the same step the world was asked, and its answer stands in the state.
#
# Whose tokens are they?
# ----------------------
# An episode knows which tokens the policy chose. ``respond`` has the policy play whole games; before any training it guesses
# like somebody who does not listen.

from agents import TextMetricsCallback, make_algorithm

model = make_algorithm(
    "ppo", n_envs=256, seed=0, env_kwargs=settings, critic="detached_head", learning_rate=lambda left: 3e-3 * left
)
before = model.policy.respond(task, [None] * 200, seed=0)


def transcript(game):
    """The game in a line."""
    return "  ".join(f"{turn.text or '(nothing)'} {turn.reply}" for turn in game.turns)


print(f"{sum(game.world_return for game in before) / len(before):.0%} of 200 games won")
for game in before[:4]:
    print(transcript(game))

# %%
# In the picture a row is a game and a cell a token. Only those on green are actions. The others are part of the state like
# the prompt: nobody chose them, so they have no :math:`\log \pi`, no KL and no advantage, and get no gradient.

import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(8, 2.4))
for row, game in enumerate(before[:4]):
    for span in game.spans:
        for place in range(span.start, span.end):
            axes.barh(row, 0.95, left=place, color="tab:green" if span.is_action else "lightgray")
            text = tokenizer.decode([game.ids[place]]).strip() or "⏎"
            if span.start > 0:  # the prompt is the same in all
                axes.text(place + 0.47, row, text.replace("</s>", "■"), ha="center", va="center", fontsize=7)
axes.set(
    xticks=[],
    yticks=[],
    xlabel="place in the state",
    title="green: the policy's tokens; gray: the prompt's and the world's",
)
axes.invert_yaxis()
figure.tight_layout()

# %%
# Training
# --------
# Twenty rollouts of 256 games with stock PPO.


class Won(TextMetricsCallback):
    """Keeps the share of games won; what a world pays is the score."""

    def after_iteration(self):
        """Called when a rollout and its update are over."""
        shares.append(self.last["rollout/rm_score"])


shares = []
model.learn(20 * 256 * 9, callback=Won(), log_interval=None)
print(" ".join(f"{share:.0%}" for share in shares))

# %%
# The rollout buffer has a row for each token that the policy chose, and for no other: the states of this last rollout have
# many more tokens than it has actions.

buffer = model.rollout_buffer
print(len(buffer.actions), "actions, as many advantages:", len(buffer.advantages) == len(buffer.actions))
print(sum(len(segment.ids) for segment in buffer.segments), "tokens in the states")

# %%
# And does it listen? Three players to compare it with, worked out exactly: one who guesses any number, one who guesses any
# that the answers leave possible, and the best, who halves.

from llm_env.guess_the_number.world import best_play, listening_play, random_play

after = model.policy.respond(task, [None] * 200, seed=0)
print(f"{sum(game.world_return for game in after) / len(after):.0%} of 200 games won")
for game in after[:6]:
    print(transcript(game))

plt.figure(figsize=(7, 3))
plt.plot(range(1, 21), shares, "o-", color="tab:green")
for player, (share, _) in {
    "any number": random_play(7, 3),
    "any that is possible": listening_play(7, 3),
    "halves": best_play(7, 3),
}.items():
    plt.axhline(share, color="gray", linestyle=":")
    plt.text(1, share + 0.01, player, color="gray", fontsize=8)
plt.xlabel("rollouts")
plt.ylabel("games won")
plt.xticks(range(2, 21, 2))
plt.ylim(0, 1.1)
plt.tight_layout()

# %%
# Twenty rollouts took it from guessing to listening. ``make turns`` goes the whole way on a larger game. More: :doc:`/turns`
# says exactly what a world is asked, and has tools, chat templates, slow worlds and other people's environments.
