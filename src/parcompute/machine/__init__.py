"""The machine and its system: what may be used of it, how files and signals behave, what the conditions are."""
