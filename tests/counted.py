"""Imported by servers that fork runs: by whose tokenizers runs count, which take some time to load."""

from pipeline.job.tokens import count

for _model in ("gpt-4", "gpt-4o"):
    count(["loaded"], _model)
