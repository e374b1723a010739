"""Tells how a run goes: typed events, for the terminal, for loggers and for callbacks."""
