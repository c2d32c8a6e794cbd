"""Arrays that processes share, and arrays that lie in files."""
