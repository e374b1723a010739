"""The compiling side: checks a run, spends its budget, and makes the compiled program."""
