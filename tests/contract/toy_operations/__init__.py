"""A package of operations beside the product's own."""
