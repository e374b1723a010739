"""Policies beyond one prompt: cascades and mixtures, valued from the draws that choose prompts."""
