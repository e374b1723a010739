"""Conformance suites that authors of strategies and objectives run on their own."""
