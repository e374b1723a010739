"""Rounds that are drawn by batch jobs at the provider."""
