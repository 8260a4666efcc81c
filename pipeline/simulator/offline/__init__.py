"""What is done while nobody waits for it: files, batches and fine-tuning jobs."""
