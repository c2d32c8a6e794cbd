"""Self-scheduled worker processes: the crew, the jobs that it computes, the calls that it runs between them."""
