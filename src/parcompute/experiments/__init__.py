"""From a function with a truth to a record and its figures."""
