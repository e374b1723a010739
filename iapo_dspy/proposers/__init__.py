"""Where candidate instructions come from."""
