"""Everything that shows."""
