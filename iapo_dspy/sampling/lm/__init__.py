"""Language models: their parameters, their replicas, and the way in which they refuse."""
