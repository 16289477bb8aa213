"""Rounds of generating, ranking and training: iterated and online DPO, rejection sampling, iterated RLHF.

`agents.iteration.rounds.iterate` runs them, with the settings of `agents.iteration.settings.IterationSettings`.
"""
