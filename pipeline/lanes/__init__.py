"""How tasks are sent."""
