"""The parts into which the time of a job's workers falls, cut at the stamps of its timeline.

    worker 0  ┃prologue┃startup┃dispatch│ kernel │return│dispatch│ kernel │return┃   tail    ┃drain┃
              called   submitted      ready    started  finished stored         last      completed

On several nodes, what of startup, dispatch, tail and drain lies where a worker's node had nothing in hand is transfer.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from parcompute.values.timeline import Timeline

Ints = npt.NDArray[np.int64]

PARTS: dict[str, str] = {
    "useful": "what the kernels take in the serial reference",
    "prologue": "from the call until the first chunk could be claimed",
    "startup": "from then until the worker was ready",
    "dispatch": "between chunks: claiming, waiting for a claim, a dead worker's replacement",
    "transfer": "the node had no work: a span, its inputs or its results were on their way",
    "lost_cpu": "inside a kernel but not on a CPU: oversubscription, quota, neighbours, input and output",
    "slowdown": "on a CPU but slower than serial: memory bandwidth, caches, hardware threads, frequency",
    "return": "from the end of a kernel until its result stood where it belongs",
    "tail": "nothing left to claim while others still computed",
    "drain": "from the last result until the caller had the whole",
}

# The same for people: short, as figures, legends and verdicts have them.
WORDS: dict[str, str] = {
    "useful": "computing",
    "prologue": "setting up",
    "startup": "starting workers",
    "dispatch": "fetching work",
    "transfer": "sending to nodes",
    "lost_cpu": "waiting for a CPU",
    "slowdown": "slower computing",
    "return": "returning results",
    "tail": "idling at the end",
    "drain": "finishing up",
}


def time_of_workers(timeline: Timeline) -> dict[str, Ints]:
    """Return what each worker spent in each part.

    Returns
    -------
    dict of str to ndarray of int64, shape (n_workers,)
        Nanoseconds by the names of `PARTS`, by number of the worker; those of one worker add up to the makespan. Useful
        is the CPU time inside the kernels, and slowdown, which cannot be seen without a reference, 0.

    Raises
    ------
    ValueError
        If a chunk names a worker that the timeline does not have, or the same worker has two rows.
    """
    chunks, n_workers = timeline.chunks, timeline.n_workers
    by_number = timeline.workers[np.argsort(timeline.workers["worker"], kind="stable")]
    slot = _slots(by_number["worker"], chunks["worker"])

    # All stamps count from the call: sums of absolute ones would leave 64 bits at some 10^4 chunks of a machine
    # that has been up for a month.
    called = timeline.called_ns
    started, finished, stored = (chunks[name] - called for name in ("started_ns", "finished_ns", "stored_ns"))
    completed = timeline.completed_ns - called
    submitted = int(started.min(initial=timeline.submitted_ns - called))
    last = max(submitted, int(stored.max(initial=submitted)))

    first_of = np.flatnonzero(np.diff(slot, prepend=-1))
    busy = slot[first_of]
    begin = by_number["ready_ns"] - called
    begin[busy] = np.minimum(begin[busy], started[first_of])
    begin = np.clip(begin, submitted, last)

    last_of = np.append(first_of[1:], len(chunks)) - 1 if len(busy) else first_of
    end = begin.copy()
    end[busy] = stored[last_of]
    # A result that is still on its way when its worker begins the next chunk costs the worker nothing more.
    left = np.append(np.minimum(stored[:-1], started[1:]), stored[-1:])
    left[last_of] = stored[last_of]
    before = np.roll(left, 1)
    before[first_of] = begin[busy]

    def each(of_chunks: Ints) -> Ints:
        sums = np.zeros(n_workers, np.int64)
        sums[busy] = np.add.reduceat(of_chunks, first_of)
        return sums

    cpu = each(chunks["cpu_ns"])
    spent = {
        "useful": cpu,
        "prologue": np.full(n_workers, submitted),
        "startup": begin - submitted,
        "dispatch": each(started - before),
        "transfer": np.zeros(n_workers, np.int64),
        "lost_cpu": each(finished - started) - cpu,
        "slowdown": np.zeros(n_workers, np.int64),
        "return": each(left - finished),
        "tail": last - end,
        "drain": np.full(n_workers, completed - last),
    }
    for node in timeline.nodes:
        away = timeline.without_work(int(node["node"])) - called
        mine, theirs = works_on(node, by_number["worker"]), works_on(node, chunks["worker"])
        waited = np.zeros(len(chunks), np.int64)
        waited[theirs] = _length(away, before[theirs], started[theirs])
        for part, ns in (
            ("startup", _length(away, submitted, begin[mine])),
            ("dispatch", each(waited)[mine]),
            ("tail", _length(away, end[mine], last)),
            ("drain", _length(away, last, completed)),
        ):
            spent[part][mine] -= ns
            spent["transfer"][mine] += ns
    return spent


def works_on(node: np.void, workers: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Tell which of the workers are of a node: a row of `Timeline.nodes`."""
    found: npt.NDArray[np.bool_] = (workers >= node["first_worker"]) & (
        workers < node["first_worker"] + node["n_workers"]
    )
    return found


def _length(of: Ints, begin: npt.ArrayLike, end: npt.ArrayLike) -> Ints:
    """Return how much of the intervals, which are in order and apart, lies between two stamps, negative in reverse."""
    if not len(of):
        return np.zeros(np.broadcast(begin, end).shape, np.int64)
    first, stop = of.T
    before = np.cumsum(stop - first) - (stop - first)

    def until(at: npt.ArrayLike) -> Ints:
        i = np.maximum(np.searchsorted(first, at, side="right") - 1, 0)
        found: Ints = before[i] + np.clip(at, first[i], stop[i]) - first[i]
        return found

    return until(end) - until(begin)


def _slots(workers: npt.NDArray[np.int32], of_chunks: npt.NDArray[np.int32]) -> npt.NDArray[np.intp]:
    """Return for each chunk the row of its worker."""
    if len(np.unique(workers)) != len(workers):
        raise ValueError(f"workers={workers.tolist()} has a number twice; give each worker one row")
    unknown = np.setdiff1d(of_chunks, workers)
    if len(unknown):
        raise ValueError(f"chunks name the workers {unknown.tolist()}, the timeline has {workers.tolist()}")
    return np.searchsorted(workers, of_chunks)
