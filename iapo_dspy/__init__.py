"""Choose prompt, decoding and number of samples together, per user preference, within a budget of LM calls.

```python
import dspy
from iapo_dspy import IAPO, Budget, MajorityVote, Preference

optimizer = IAPO(
    metric=exact_match,
    strategy=MajorityVote("answer"),
    preferences=[Preference("quality", cost=0.0), Preference("thrifty", cost=1.0)],
    max_n=16,
    budget=Budget(completions=5_000),
)
program = optimizer.compile(dspy.ChainOfThought("question -> answer"), trainset=train, candidates=instructions)
program(question="...", preference="thrifty")
```
"""

from iapo_dspy.bandit.algorithms.generations import Generations
from iapo_dspy.environments.live.progress import Progress
from iapo_dspy.environments.recorded.from_ledger import recording_of
from iapo_dspy.errors import (
    AllCompletionsFailed,
    BatchJobFailed,
    BudgetTooSmall,
    CapsTooTight,
    ConfigurationError,
    IAPOError,
    IncompleteCompletion,
    LabelRequired,
    LedgerError,
    LedgerLocked,
    LedgerMismatch,
    LMRefused,
    ProviderDown,
    ReservedFieldName,
    ScoreError,
    StateError,
    StorageError,
    TooManyErrors,
    UnknownPreference,
)
from iapo_dspy.optimizer.iapo import IAPO
from iapo_dspy.optimizer.options import Execution, Search
from iapo_dspy.optimizer.pipelines import attach
from iapo_dspy.optimizer.quoting.quote import Quote
from iapo_dspy.preferences import Preference, preference_grid
from iapo_dspy.program.call_report import CallReport
from iapo_dspy.program.compiled import CompiledProgram
from iapo_dspy.program.explain import Explanation
from iapo_dspy.program.results import CompileResult, PreferenceResult
from iapo_dspy.program.using_preference import using_preference
from iapo_dspy.prompts import proposers
from iapo_dspy.prompts.harvest import CandidateList, candidates_of
from iapo_dspy.prompts.proposers import ProposalEvidence, Proposed, Proposer
from iapo_dspy.sampling.batches.cancel import cancel_batches
from iapo_dspy.sampling.batches.running import BatchAPI
from iapo_dspy.sampling.judges.metered import metered
from iapo_dspy.sampling.ledger.export import export
from iapo_dspy.sampling.ledger.merging import merge_ledgers
from iapo_dspy.sampling.lm.replicas import ReplicatedLM
from iapo_dspy.sampling.spending.budget import Budget, Spent
from iapo_dspy.sampling.spending.cost import Cost
from iapo_dspy.scoring import metrics, objectives
from iapo_dspy.scoring.strategies import (
    BestOfN,
    MajorityVote,
    Mean,
    Median,
    Mixed,
    Objective,
    Strategy,
    WeightedVote,
    close,
    math_equal,
)
from iapo_dspy.types import Arm, Decoding, Stop

__version__ = "0.1.0"

__all__ = [
    "IAPO",
    "AllCompletionsFailed",
    "Arm",
    "BatchAPI",
    "BatchJobFailed",
    "BestOfN",
    "Budget",
    "BudgetTooSmall",
    "CallReport",
    "CandidateList",
    "CapsTooTight",
    "CompileResult",
    "CompiledProgram",
    "ConfigurationError",
    "Cost",
    "Decoding",
    "Execution",
    "Explanation",
    "Generations",
    "IAPOError",
    "IncompleteCompletion",
    "LMRefused",
    "LabelRequired",
    "LedgerError",
    "LedgerLocked",
    "LedgerMismatch",
    "MajorityVote",
    "Mean",
    "Median",
    "Mixed",
    "Objective",
    "Preference",
    "PreferenceResult",
    "Progress",
    "ProposalEvidence",
    "Proposed",
    "Proposer",
    "ProviderDown",
    "Quote",
    "ReplicatedLM",
    "ReservedFieldName",
    "ScoreError",
    "Search",
    "Spent",
    "StateError",
    "Stop",
    "StorageError",
    "Strategy",
    "TooManyErrors",
    "UnknownPreference",
    "WeightedVote",
    "__version__",
    "attach",
    "cancel_batches",
    "candidates_of",
    "close",
    "export",
    "math_equal",
    "merge_ledgers",
    "metered",
    "metrics",
    "objectives",
    "preference_grid",
    "proposers",
    "recording_of",
    "using_preference",
]
