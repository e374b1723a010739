"""Proposers: they write new candidates from what the run has drawn so far."""
