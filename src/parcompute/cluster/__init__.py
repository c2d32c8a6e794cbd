"""Batch systems: write the job script, submit it, wait, go on when there was no time left."""
