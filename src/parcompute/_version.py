"""The version, for whoever needs no more of the package than that."""

__version__ = "0.1.0"
