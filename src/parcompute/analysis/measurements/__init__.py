"""Points that were measured elsewhere: from text tables and the files of other tools to curves that can be fitted."""
