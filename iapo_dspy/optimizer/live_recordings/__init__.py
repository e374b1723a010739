"""Recordings of a language model: every prompt on every query, kept for replay without the model."""
