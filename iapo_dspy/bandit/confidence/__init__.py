"""How probable it is that the answer of a call is right, and arms that abstain where it is not probable enough."""
