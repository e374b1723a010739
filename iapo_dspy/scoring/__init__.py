"""Answers, scores and strategies: what a completion is worth."""
