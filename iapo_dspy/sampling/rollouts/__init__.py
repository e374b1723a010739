"""Rollouts: completions of whole programs, drawn together."""
