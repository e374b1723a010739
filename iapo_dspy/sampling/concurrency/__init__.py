"""The background event loop, worker threads, and the gate on requests in flight."""
