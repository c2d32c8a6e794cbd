"""How should data travel to another process? Pipe, queue, manager, Array, file and shared memory, from 100 B up.

A child process receives an array and answers with its sum. What is timed is one way there and the short answer
back; the small sizes show the latency, the large ones the bandwidth.
"""

import atexit
import contextlib
import functools
import multiprocessing
import os
import resource
import tempfile
from multiprocessing import resource_tracker, shared_memory

import numpy as np

import parcompute as pc

MIB = 2**20
VARIANTS = ("pipe", "queue", "manager", "array", "file", "shared_memory")


@functools.lru_cache(maxsize=2)
def data(n_bytes, seed):
    """Return so many random bytes."""
    return np.random.default_rng(seed).integers(0, 256, n_bytes, np.uint8)


def total(array):
    """Return the sum of bytes: whoever has it has read every one."""
    return int(np.asarray(array, np.uint8).sum(dtype=np.int64))


def answer(variant, channel, inbox, shelf, board):
    """Receive arrays until there are no more, and answer each with its sum: the child's whole life."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while (told := channel.recv()) is not None:
        n_bytes, name = told
        if variant == "pipe":
            found = total(np.frombuffer(channel.recv_bytes(), np.uint8))
        elif variant == "queue":
            found = total(inbox.get())
        elif variant == "manager":
            found = total(np.frombuffer(shelf[0], np.uint8))
        elif variant == "array":
            found = total(np.frombuffer(board, np.uint8, n_bytes))
        elif variant == "file":
            found = total(np.memmap(name, np.uint8, "r"))
        else:
            segment = shared_memory.SharedMemory(name)
            found = total(np.ndarray(n_bytes, np.uint8, segment.buf))
            segment.close()
        channel.send((found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


class Child:
    """A process that answers, and what leads to it."""

    def __init__(self, variant, most_bytes):
        resource_tracker.ensure_running()  # else the child has one of its own, which takes what it attaches for lost
        context = multiprocessing.get_context("fork")  # an Array travels by inheritance only
        self.channel, theirs = context.Pipe()
        self.inbox = context.Queue() if variant == "queue" else None
        self.manager = context.Manager() if variant == "manager" else None
        self.shelf = self.manager.list([b""]) if self.manager else None
        self.board = context.RawArray("B", most_bytes) if variant == "array" else None
        given = (variant, theirs, self.inbox, self.shelf, self.board)
        self.process = context.Process(target=answer, args=given, daemon=True)
        self.process.start()
        theirs.close()

    def close(self):
        """Let the child go."""
        with contextlib.suppress(OSError):
            self.channel.send(None)
        self.process.join()
        self.channel.close()
        if self.inbox is not None:
            self.inbox.close()
            self.inbox.join_thread()
        if self.manager is not None:
            self.manager.shutdown()


children = {}
grown_mib = {}  # how much more memory each child has had resident than at its start


def child(variant, n_bytes):
    """Return the child of a transport: the one that there is, or a new one with room enough."""
    kept, room = children.get(variant, (None, 0))
    if room < n_bytes:
        if kept:
            kept.close()
        children[variant] = kept, _ = Child(variant, n_bytes), n_bytes
    return kept


@atexit.register
def close():
    """Let all children go."""
    while children:
        children.popitem()[1][0].close()


def send(array, variant):
    """Send an array, and return what came back. Where it has a place of its own, it is put there before it is told."""
    to, name, segment = child(variant, array.nbytes), "", None
    if variant == "manager":
        to.shelf[0] = array.tobytes()
    elif variant == "array":
        np.copyto(np.frombuffer(to.board, np.uint8, array.nbytes), array)
    elif variant == "file":
        with tempfile.NamedTemporaryFile(delete=False) as file:
            array.tofile(file)
        name = file.name
    elif variant == "shared_memory":
        segment = shared_memory.SharedMemory(create=True, size=array.nbytes)
        np.copyto(np.ndarray(array.nbytes, np.uint8, segment.buf), array)
        name = segment.name
    to.channel.send((array.nbytes, name))
    if variant == "pipe":
        to.channel.send_bytes(array)
    elif variant == "queue":
        to.inbox.put(array)
    found, grown_kib = to.channel.recv()
    grown_mib[variant] = max(grown_mib.get(variant, 0), grown_kib // 1024)
    if variant == "file":
        os.unlink(name)
    elif segment is not None:
        segment.close()
        segment.unlink()
    return found


def received(sums, n_bytes):
    """Compare with the sum that the sender sees."""
    there, here = sums
    memory = ", ".join(f"{variant} {mib} MiB" for variant, mib in sorted(grown_mib.items()))
    return pc.Check(there, here, 0, f"equality of the sums of all bytes; memory that the receivers took: {memory}")


@pc.experiment(
    n_items={
        "quick": (100, 64 * 1024, 4 * MIB),
        "default": (100, 10_000, MIB, 16 * MIB, 128 * MIB),
        "full": (100, 10_000, MIB, 32 * MIB, 1024 * MIB),
    },
    truth=received,
    variants=VARIANTS,
    backends=("serial",),
)
def transports(executor, n_items, seed, variant):
    array = data(n_items, seed)
    return send(array, variant), total(array)


if __name__ == "__main__":
    transports.main()
