"""How N completions become one reward."""
