"""Tables, figures and reports from plain data."""
