"""Adapters beside those of DSPy, for users; the code is in `iapo_dspy.sampling.adapters`."""
