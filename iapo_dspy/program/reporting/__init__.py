"""Brings the results of a run into the form of a report."""
