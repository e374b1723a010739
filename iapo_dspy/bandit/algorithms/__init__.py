"""Algorithms that choose an arm for every context within a budget of completions."""
