"""The environment of a real run: pulls become completions of a language model."""
