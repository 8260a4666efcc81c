"""A package of input formats beside the product's own."""
