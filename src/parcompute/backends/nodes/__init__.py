"""A job on several nodes: who has what, which spans go where, and what comes back; it knows no engine."""
