"""What arms cost and take: affine costs, charges, and upper bounds."""
