"""A loopback Azure OpenAI: its paths, quotas, error bodies and faults, for rehearsals and for tests."""
