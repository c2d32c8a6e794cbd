"""What does a pool cost to start? From nothing to the first result, by start method and backend.

Each run makes an executor, computes one tiny job and closes it. A program pays this once, and again for each pool
that it makes anew; parcompute's forkserver stays for the next.
"""

import parcompute as pc


def count(block):
    """Return the number of items."""
    return block.size


def counted(total, n_items):
    """Compare with the number of items."""
    return pc.Check(total, n_items, 0, "equality")


@pc.experiment(
    n_items={"quick": 64, "default": 65, "full": 66},
    truth=counted,
    start_methods=("fork", "forkserver", "spawn"),
)
def startup(executor, n_items, seed):
    how = {"backend": executor.backend, "start_method": executor.start_method or None}
    with pc.Executor(executor.n_workers, **how) as new:
        return new.reduce_blocks(count, n_items=n_items, block_items=1)


if __name__ == "__main__":
    startup.main()
