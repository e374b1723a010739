"""Costs of arms: affine costs, charges for resources, and upper bounds."""
