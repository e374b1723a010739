"""Models of the outcomes of a query: their worth at every scale, and how they are learnt from draws."""
