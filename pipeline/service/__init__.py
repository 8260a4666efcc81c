"""The far side: addresses, credentials, the wire, and what its answers mean."""
