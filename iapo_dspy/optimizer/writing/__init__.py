"""Prompts that a run writes itself."""
