"""Models of the outcomes of a query: what they are worth at every scale, and how they are learnt from draws."""
