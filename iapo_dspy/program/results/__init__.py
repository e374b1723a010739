"""The findings of a run, as `program.detailed_results` has them: made, shown, searched, saved and read back."""

from iapo_dspy.program.results.compile_result import CompileResult
from iapo_dspy.program.results.rows import ArmEstimate, ComparedArm, PreferenceResult

__all__ = ["ArmEstimate", "ComparedArm", "CompileResult", "PreferenceResult"]
