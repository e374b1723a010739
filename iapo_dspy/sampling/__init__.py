"""Turns pulls into completions: dispatch through LiteLLM, budget and ledger."""
