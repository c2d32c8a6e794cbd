"""Threads or processes, whichever serves a kernel better: found out while it runs."""
