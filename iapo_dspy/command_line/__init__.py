"""The command `iapo`."""
