"""When two answers are the same: normalisation, equality, and classes of equal answers."""
