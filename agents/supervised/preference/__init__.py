"""Training a language model on preferences directly, without a reward model: DPO and its relatives, on TRL's trainers."""

from agents.supervised.preference.methods import METHODS as METHODS
from agents.supervised.preference.train import PreferenceSettings as PreferenceSettings
from agents.supervised.preference.train import optimise as optimise
