"""The command line, as ``python -m parcompute``."""

from parcompute.cli import main

if __name__ == "__main__":
    main()
