"""Answers, scores and strategies: how much a completion is worth."""
