"""Models that metrics and objectives ask: metered LMs, embeddings, reward servers."""
