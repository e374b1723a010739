"""Adapters beside those of DSPy, for users; the code is in `iapo_dspy.sampling.adapters`."""

from iapo_dspy.sampling.adapters.plain_text import PlainTextAdapter

__all__ = ["PlainTextAdapter"]
