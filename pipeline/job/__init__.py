"""The job file: read with places, checked whole, frozen."""
