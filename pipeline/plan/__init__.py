"""The plan: rows of the input minus the rows that are done, cut into ranges and packed into tasks."""
