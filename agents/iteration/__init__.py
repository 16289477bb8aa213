"""Rounds of generating, ranking and training: iterated and online DPO, rejection sampling, iterated RLHF."""

from agents.iteration.rounds import iterate as iterate
from agents.iteration.settings import IterationSettings as IterationSettings
