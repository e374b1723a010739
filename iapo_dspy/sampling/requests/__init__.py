"""One request to a language model, and what came back."""
