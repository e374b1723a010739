"""What the results of a run show in a report."""
