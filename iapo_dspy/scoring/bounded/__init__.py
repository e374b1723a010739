"""Work on answers that nothing in the process itself can bound: it runs in another one, which can be killed."""
