"""The job of a batch system that this process is part of: what it gives, and when it ends."""
