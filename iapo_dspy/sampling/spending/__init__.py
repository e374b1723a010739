"""Budgets, prices, costs and usage."""
