"""Ledgers, the directories that `IAPO(log_dir=...)` writes: merge, export and record them."""

from iapo_dspy.environments.recorded.from_ledger import recording_of
from iapo_dspy.sampling.batches.cancel import cancel_batches
from iapo_dspy.sampling.ledger.export import export
from iapo_dspy.sampling.ledger.merging import merge_ledgers

__all__ = ["cancel_batches", "export", "merge_ledgers", "recording_of"]
