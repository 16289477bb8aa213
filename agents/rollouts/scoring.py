"""Deferred scoring: what a rollout's segments lack is asked for after collection, in a few large batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from agents.rollouts.segments import RolloutPolicy, Segment, masks_of
from llm_env.episode import Episode
from llm_env.task import TextTask


def rescore(segments: Sequence[Segment], policy: RolloutPolicy) -> None:
    """Fills in values, and in mixed precision log-probs, as training computes them.

    Nothing is asked where what the policy gave while collecting is exact already.

    Args:
        segments: The rollout's segments, changed in place.
        policy: The policy that generated them, with the same weights still.
    """
    if not policy.rescores_values:
        return
    # Flat over all segments' tokens: log π in nats, V in score. (n_tokens,)
    log_probs, values = policy.score_segments(
        [s.ids for s in segments], [s.places for s in segments], masks_of(segments)
    )
    for segment, new_log_probs, new_values in zip(
        segments, _split(log_probs, segments), _split(values, segments), strict=True
    ):
        segment.values = new_values.tolist()
        if policy.rescores_log_probs:
            segment.log_probs = new_log_probs.tolist()


def score_rewards(segments: Sequence[Segment], policy: RolloutPolicy, task: TextTask) -> None:
    """Asks reference and reward model about the segments' episodes, and computes each token's reward.

    The information dictionaries that were given out with the episodes' last steps are completed in place: stable-baselines3
    keeps those very objects in its `ep_info_buffer`, which it reads after this.

    Raises:
        RewardModelError: the reward model failed or returned something unusable.
    """
    episodes = [s.episode for s in segments if s.episode is not None]
    # First what the formula reads: log π_ref, the score of ended episodes, and the exact KL if it is charged.
    task.score_reference(episodes)
    task.score_responses(episodes)
    if task.kl.in_reward and task.kl.estimator == "exact":
        _fill_in_exact_kl(segments, policy, task)
    for segment in segments:
        episode = segment.episode
        assert episode is not None
        # Written over: in mixed precision the log-probs were scored again.
        episode.log_probs[segment.start : segment.start + len(segment.actions)] = segment.log_probs
        # To the last token so far, which is the segment's last too: (steps,), in score.
        segment.rewards = task.rewards(episode, segment.start, segment.log_probs).tolist()
        if episode.done:
            task.complete_info(episode)


def own_kl(segments: Sequence[Segment], task: TextTask | None) -> list[NDArray[np.float64]]:
    """What the segments' actions lack in their advantages for their own part in the KL (`llm_env.reward.formula.own_kl`).

    Returns:
        Score, one array (steps,) a segment; zeros where none lacks any, or no task says what was charged.
    """
    if task is None or not task.kl.lacks_own:
        return [np.zeros(len(s.actions)) for s in segments]
    return [task.own_kl(s.episode, s.start, s.log_probs) for s in segments if s.episode is not None]


def _fill_in_exact_kl(segments: Sequence[Segment], policy: RolloutPolicy, task: TextTask) -> None:
    """Tells the episodes KL(π‖π_ref) before each token, which the reward charges."""
    flat = policy.exact_kl(task.reference, [s.ids for s in segments], [s.places for s in segments], masks_of(segments))
    for segment, part in zip(segments, _split(flat, segments), strict=True):
        assert segment.episode is not None
        segment.episode.exact_kl[segment.start :] = part.astype(float).tolist()


def greedy_scores(
    segments: Sequence[Segment], policy: RolloutPolicy, task: TextTask
) -> tuple[NDArray[np.float64], int]:
    """What the policy's greedy response to each segment's prompt scores: ReMax's baseline.

    Returns:
        Scores, shape (segments,), and the number of tokens that were generated for them: one response a prompt.
    """
    episodes: list[Episode] = [s.episode for s in segments if s.episode is not None]
    # One greedy response for each different prompt: all of a prompt's responses share the baseline. The same question with
    # another answer is another prompt.
    keys = [(e.prompt.ids, repr(e.prompt.columns)) for e in episodes]
    prompts = {key: e.prompt for key, e in zip(keys, episodes, strict=True)}
    # The seed does not matter: nothing is sampled.
    greedy = policy.respond(task, list(prompts.values()), seed=0, deterministic=True)
    scores = dict(zip(prompts, (e.final_score for e in greedy), strict=True))
    baseline = np.array([scores[key] for key in keys], dtype=np.float64)
    return baseline, sum(len(e.response_ids) for e in greedy)


def _split(flat: NDArray[np.float32], segments: Sequence[Segment]) -> Iterator[NDArray[np.float32]]:
    """Cuts a flat array of all segments' tokens into one array a segment."""
    # np.split takes the inner edges, without the end of the last segment.
    edges = np.cumsum([len(s.actions) for s in segments])[:-1]
    return iter(np.split(flat, edges))
