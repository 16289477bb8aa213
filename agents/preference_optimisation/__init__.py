"""Training a language model on preferences directly, without a reward model: DPO and its relatives, on TRL's trainers."""

from agents.preference_optimisation.methods import METHODS as METHODS
from agents.preference_optimisation.train import PreferenceSettings as PreferenceSettings
from agents.preference_optimisation.train import optimise as optimise
