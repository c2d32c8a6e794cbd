"""Start workers and run a job on them: one small protocol, one file per engine."""
