"""Environments that need no language model: recordings, synthetic worlds, and their files."""
