"""Rewriters: LMs that rewrite an input of a query before the student sees it."""
