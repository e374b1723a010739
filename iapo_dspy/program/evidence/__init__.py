"""The completions that a policy rests on: their saved form, their prices, and the caps that they speak for."""
