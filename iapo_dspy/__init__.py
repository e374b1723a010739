"""Choose prompt, decoding and number of samples together, per user preference, within a budget of LM calls.

```python
import dspy
from iapo_dspy import IAPO, Budget, Preference

optimizer = IAPO(
    metric=exact_match,
    preferences=[Preference("quality", cost=0.0), Preference("thrifty", cost=1.0)],
    max_n=16,
    budget=Budget(completions=5_000),
)
program = optimizer.compile(dspy.ChainOfThought("question -> answer"), trainset=train, candidates=instructions)
program(question="...", preference="thrifty")
```
"""

import importlib
import typing
import warnings

if typing.TYPE_CHECKING:  # names are imported when they are first used, so that `import iapo_dspy` is fast
    from iapo_dspy import (  # noqa: F401
        adapters,
        callbacks,
        demo,
        errors,
        events,
        ledger,
        metrics,
        objectives,
        proposers,
        recordings,
        rewriters,
        tasks,
    )
    from iapo_dspy.errors import IAPOError
    from iapo_dspy.optimizer.iapo import IAPO
    from iapo_dspy.optimizer.options import Execution, Search
    from iapo_dspy.optimizer.pipelines import attach
    from iapo_dspy.preferences import Preference
    from iapo_dspy.program.call_report import Abstention, CallReport
    from iapo_dspy.program.compiled import CompiledProgram
    from iapo_dspy.program.loading import load
    from iapo_dspy.program.results import CompileResult
    from iapo_dspy.program.using_preference import using_preference
    from iapo_dspy.prompts.harvest import candidates_of
    from iapo_dspy.prompts.rewriters.rewriter import Rewriter
    from iapo_dspy.sampling.adapters.plain_text import PlainTextAdapter
    from iapo_dspy.sampling.batches.running import BatchAPI
    from iapo_dspy.sampling.judges.metered import metered
    from iapo_dspy.sampling.lm.replicas import ReplicatedLM
    from iapo_dspy.sampling.spending.budget import Budget
    from iapo_dspy.sampling.spending.cost import Cost
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
    from iapo_dspy.types import Decoding

__version__ = "0.1.0"

__all__ = [
    "IAPO",
    "Abstention",
    "BatchAPI",
    "BestOfN",
    "Budget",
    "CallReport",
    "CompileResult",
    "CompiledProgram",
    "Cost",
    "Decoding",
    "Execution",
    "IAPOError",
    "MajorityVote",
    "Mean",
    "Median",
    "Mixed",
    "Objective",
    "PlainTextAdapter",
    "Preference",
    "ReplicatedLM",
    "Rewriter",
    "Search",
    "Strategy",
    "WeightedVote",
    "__version__",
    "attach",
    "candidates_of",
    "close",
    "load",
    "math_equal",
    "metered",
    "using_preference",
]

_MODULES = (
    "adapters",
    "callbacks",
    "demo",
    "errors",
    "events",
    "ledger",
    "metrics",
    "objectives",
    "proposers",
    "recordings",
    "rewriters",
    "tasks",
)
_HOME = {  # public name -> its module
    name: module
    for module, names in {
        "errors": "IAPOError",
        "optimizer.iapo": "IAPO",
        "optimizer.options": "Execution Search",
        "optimizer.pipelines": "attach",
        "preferences": "Preference",
        "program.call_report": "Abstention CallReport",
        "program.compiled": "CompiledProgram",
        "program.loading": "load",
        "program.results": "CompileResult",
        "program.using_preference": "using_preference",
        "prompts.harvest": "candidates_of",
        "prompts.rewriters.rewriter": "Rewriter",
        "sampling.adapters.plain_text": "PlainTextAdapter",
        "sampling.batches.running": "BatchAPI",
        "sampling.judges.metered": "metered",
        "sampling.lm.replicas": "ReplicatedLM",
        "sampling.spending.budget": "Budget",
        "sampling.spending.cost": "Cost",
        "scoring.strategies": "BestOfN MajorityVote Mean Median Mixed Objective Strategy WeightedVote close math_equal",
        "types": "Decoding",
    }.items()
    for name in names.split()
}
_MOVED = {  # names that stood here in version 0.1 -> their module
    name: module
    for module, names in {
        "errors": (
            "AllCompletionsFailed BatchJobFailed BudgetTooSmall CapsTooTight ConfigurationError "
            "IncompleteCompletion LMRefused LabelRequired LedgerError LedgerLocked LedgerMismatch "
            "ProviderDown ReservedFieldName ScoreError StateError StorageError TooManyErrors "
            "UnknownPreference"
        ),
        "types": "Arm Stop",
        "preferences": "preference_grid",
        "events": "Progress",
        "ledger": "cancel_batches export merge_ledgers recording_of",
        "proposers": "ProposalEvidence Proposed Proposer",
        "bandit.algorithms.generations": "Generations",
        "prompts.harvest": "CandidateList",
        "program.explain": "Explanation",
        "program.results": "PreferenceResult",
        "optimizer.quoting.quote": "Quote",
        "sampling.spending.budget": "Spent",
    }.items()
    for name in names.split()
}


if not typing.TYPE_CHECKING:  # with this function, type checkers would take any name for a public one

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used; one that has moved gives a `DeprecationWarning`."""
        if name in _MODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if name in _HOME:
            found: object = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
            globals()[name] = found
            return found
        if name not in _MOVED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        place = f"iapo_dspy.{_MOVED[name]}"
        warnings.warn(f"iapo_dspy.{name} is {place}.{name} today.", DeprecationWarning, stacklevel=2)
        moved: object = getattr(importlib.import_module(place), name)
        return moved


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*__all__, *_MODULES])
