"""How a call is written for an LM, and how its answer is read, beside the adapters that DSPy brings."""
