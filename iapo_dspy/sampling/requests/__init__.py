"""Requests to language models, and their replies."""
