"""The optimizer and the compiled program: the only layer that knows DSPy's modules and teleprompters."""
