"""Language models: parameters of requests, replicas, stand-ins and the errors of providers."""
