"""A run before it is paid for: its upper bounds, and what it will probably take."""
