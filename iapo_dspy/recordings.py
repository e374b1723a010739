"""Recorded environments: what `IAPO.record` returns, in files, to be replayed and simulated without an LM."""

from iapo_dspy.environments.recorded.drawn import Draws
from iapo_dspy.environments.recorded.files import load, save
from iapo_dspy.environments.recorded.recording import BestOfRecording, Recording, VotingRecording

__all__ = ["BestOfRecording", "Draws", "Recording", "VotingRecording", "load", "save"]
