"""When a deployed call may end before all N completions are drawn."""
