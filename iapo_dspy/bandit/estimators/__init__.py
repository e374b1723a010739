"""Interchangeable ways of turning observations into estimates of every arm."""
