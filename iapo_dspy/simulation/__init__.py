"""Compare algorithms on recorded and synthetic environments: many seeded runs, exact values, paired tests."""
