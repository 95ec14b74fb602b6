"""Programs that can't live in our environment; each runs as a worker process (`_worker.py`)."""
