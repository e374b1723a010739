"""Built-in objectives: scores that need no labels; `iapo_dspy.objectives` has them all."""
