"""The life of a worker process: start, serve, end with its parent."""
