"""Turns pulls into completions: dispatch through LiteLLM, budget and ledger."""

from iapo_dspy.sampling.budget import Budget, Meter, Reservation, Spent
from iapo_dspy.sampling.client import Choice, Completer, CompletionRequest, LiteLLMCompleter, Reply
from iapo_dspy.sampling.fields import decode_prediction, encode_prediction
from iapo_dspy.sampling.ledger import (
    CompletionRecord,
    Ledger,
    LedgerPort,
    NullLedger,
    PullKey,
    ScoreRecord,
    fingerprint_of,
)
from iapo_dspy.sampling.loop import in_thread
from iapo_dspy.sampling.params import effective_temperature
from iapo_dspy.sampling.pricing import price_of
from iapo_dspy.sampling.replicas import ReplicatedLM
from iapo_dspy.sampling.retry import is_fatal
from iapo_dspy.sampling.rollouts import Rollout, Sampler

__all__ = [
    "Budget",
    "Choice",
    "Completer",
    "CompletionRecord",
    "CompletionRequest",
    "Ledger",
    "LedgerPort",
    "LiteLLMCompleter",
    "Meter",
    "NullLedger",
    "PullKey",
    "ReplicatedLM",
    "Reply",
    "Reservation",
    "Rollout",
    "Sampler",
    "ScoreRecord",
    "Spent",
    "decode_prediction",
    "effective_temperature",
    "encode_prediction",
    "fingerprint_of",
    "in_thread",
    "is_fatal",
    "price_of",
]
