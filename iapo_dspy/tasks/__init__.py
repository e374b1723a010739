"""Ready task definitions: signature, loader, prompt set, metric or objectives, strategy and preferences."""
