"""Proposers: they write new candidates from what the run has drawn so far; `iapo_dspy.proposers` has them all."""
