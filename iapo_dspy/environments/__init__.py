"""Where completions come from, behind one port: live, recorded and synthetic."""
