"""Runs ↔ HDF5."""
