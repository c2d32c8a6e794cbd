"""Measure a kernel on a sample, and say which backend, how many workers and which blocks suit it, and why.

    kernel, arrays ── sample that takes a moment ──▶ each way in rounds ──▶ Advice: the fastest, and the reasons

Every way is measured as it would be used, with its workers started and warm; what is advised is the fastest, or a
simpler one that is as fast within the noise.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from parcompute.executor import arguments
from parcompute.executor.executor import Executor
from parcompute.machine import limits
from parcompute.memory import sources
from parcompute.values import views
from parcompute.values.blocks import block_items_for
from parcompute.values.intervals import Interval, paired_ratio, summarise

# A sample should take so long on one core: enough for a claim and a hand-over to be small beside it.
SAMPLE_S, ROUNDS = 0.1, 7

# As fast within the noise: then the simpler way is advised.
SAME = 0.05


@dataclass(frozen=True, slots=True, order=True)
class Way:
    """One way to run a kernel; ways are ordered from simple to complicated.

    Attributes
    ----------
    rank : int
        How complicated it is to use: serial, threads, processes, and more threads in each of those.
    backend : str
        Name of the backend.
    workers, threads_per_worker, blas_threads : int
        As `parcompute.Executor` takes them.
    """

    rank: int
    backend: str
    workers: int
    threads_per_worker: int = 1
    blas_threads: int = 1

    def executor(self) -> Executor:
        """Return an executor of this way."""
        threads, blas_threads = self.threads_per_worker, self.blas_threads
        return Executor(self.workers, backend=self.backend, threads_per_worker=threads, blas_threads=blas_threads)

    def __str__(self) -> str:
        told = self.backend if self.backend == "serial" else f"{self.backend} × {self.workers}"
        if self.threads_per_worker > 1:
            told += f" with {self.threads_per_worker} threads each"
        return told + (f", {self.blas_threads} BLAS threads" if self.blas_threads > 1 else "")


@dataclass(frozen=True, slots=True)
class Measured:
    """What one way took on the sample.

    Attributes
    ----------
    way : Way
        Which.
    wall : Interval
        Seconds.
    speedup : Interval
        Time of the serial way over it.
    """

    way: Way
    wall: Interval
    speedup: Interval


SERIAL = Way(0, "serial", 1)


@dataclass(frozen=True, slots=True)
class Advice:
    """How to run a kernel, and the numbers behind it.

    Attributes
    ----------
    way : Way
        The backend, workers, and threads that are advised.
    block_items : int
        Items per block.
    reasons : tuple of str
        Why, with measured numbers.
    measured : tuple of Measured
        All ways that were tried.
    n_items : int
        Size of the sample.
    waiting : float
        Share of a kernel's time that its thread waits, from 0 to 1.
    item_bytes : int
        Bytes that an item has in the inputs.
    """

    way: Way
    block_items: int
    reasons: tuple[str, ...]
    measured: tuple[Measured, ...]
    n_items: int
    waiting: float
    item_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return asdict(self)

    def describe(self) -> list[str]:
        """Return lines of text."""
        lines = [
            f"advised: {self.way}, blocks of {self.block_items} items",
            *(f"  {reason}" for reason in self.reasons),
        ]
        lines.append(f"measured on {self.n_items} items, {ROUNDS} rounds in random order:")
        for each in sorted(self.measured, key=lambda each: each.wall.value):
            S, kind = each.speedup, "range" if each.speedup.is_range else "95 %"
            lines.append(
                f"  {each.way!s:<40} {1000 * each.wall.value:9.3f} ms  "
                f"{S.value:5.2f}× ({kind} {S.low:.2f}–{S.high:.2f})"
            )
        return lines

    def __str__(self) -> str:
        return "\n".join(self.describe())

    def _repr_html_(self) -> str:
        rows = [
            (each.way, f"{1000 * each.wall.value:.3f}", told(each.speedup))
            for each in sorted(self.measured, key=lambda each: each.wall.value)
        ]
        measured = f"measured on {self.n_items} items, {ROUNDS} rounds in random order:"
        shown = views.paragraph(self.describe()[0]) + views.bullets(self.reasons) + views.paragraph(measured)
        return shown + views.table(("way", "time (ms)", "speed-up"), rows)


def advise(
    kernel: Callable[..., Any],
    *arrays: Any,
    n_items: int | None = None,
    block_items: int | None = None,
    seed: int | None = 0,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    workers: int | None = None,
    **how: Any,
) -> Advice:
    """Find out how to run a kernel: threads or processes, how many, with which blocks.

    Parameters
    ----------
    kernel, *arrays, n_items, block_items, seed, args, kwargs
        As `parcompute.Executor.map_blocks` and `reduce_blocks` take them. The arrays are sampled, not changed.
    workers : int, optional
        The most to use; None is what this process may really use.
    **how
        Further arguments of `map_blocks`, such as ``dtype``.

    Returns
    -------
    Advice
        Print it.

    Raises
    ------
    KernelError, TypeError, ValueError
        As `parcompute.Executor.map_blocks`.

    Examples
    --------
    >>> advice = advise(np.sqrt, np.arange(100_000.0))
    >>> advice.way.backend in ("serial", "threads", "processes")
    True
    """
    most = limits.usable_cpus() if workers is None else workers
    total = arguments.n_items_of(arrays, n_items)
    item_bytes = arguments.item_bytes_of(arrays)
    usual = block_items or block_items_for(item_bytes)
    maps, out_bytes = _result(kernel, arrays, total, usual, seed, args, kwargs)
    call = _Call(kernel, arrays, seed, tuple(args), kwargs, how, maps)
    n_sample, usual = _sample(call, total, usual, fixed=block_items is not None, most=most)
    took = _in_rounds(ways(most), lambda executor: call.run(executor, n_sample, usual))
    measured = {
        way: Measured(way, summarise(walls).median, paired_ratio(took[SERIAL], walls)) for way, walls in took.items()
    }
    waiting = _waiting(call, n_sample, usual)
    best = choose(measured.values())
    chosen_items, about_blocks = usual, "as asked"
    if block_items is None:
        chosen_items, about_blocks = _blocks(call, best, n_sample, usual)
    moved = f"an item has {item_bytes} B in the inputs and {out_bytes:.3g} B in the result"
    reasons = (*explain(measured, best, waiting), moved, f"blocks: {about_blocks}")
    return Advice(best, chosen_items, reasons, tuple(measured.values()), n_sample, waiting, item_bytes)


# --- the ways to run a kernel -------------------------------------------------------------------------------


def ways(most: int) -> list[Way]:
    """Return the ways that are tried where `most` CPUs may be used."""
    found = [SERIAL]
    for n in sorted({min(2, most), most}):
        found += [Way(1, "threads", n), Way(2, "processes", n)] if n > 1 else []
    found.append(Way(2, "processes", 1))
    if most > 1:
        found += [Way(3, "processes", most // 2, threads_per_worker=2), Way(4, "processes", 1, blas_threads=most)]
    return found


def choose(measured: Iterable[Measured]) -> Way:
    """Return the fastest way, or the simplest of those that are as fast within the noise."""
    measured = list(measured)
    fastest = min(each.wall.value for each in measured)
    close = [each.way for each in measured if each.wall.value <= (1 + SAME) * fastest]
    return min(close, key=lambda way: (way.rank, way.workers * way.threads_per_worker, way))


def explain(measured: Mapping[Way, Measured], best: Way, waiting: float) -> list[str]:
    """Say what the numbers mean: the interpreter's lock, the memory bus, waiting, BLAS."""

    def speedup(way: Way) -> Interval | None:
        return measured[way].speedup if way in measured else None

    said = []
    threads, processes, one = (
        speedup(way) for way in (Way(1, "threads", 2), Way(2, "processes", 2), Way(2, "processes", 1))
    )
    if waiting > 0.2:
        said.append(
            f"it waits {100 * waiting:.0f} % of its time: threads can wait for each other's sake, more than CPUs"
        )
    if threads is not None:
        held = "lets go of the interpreter's lock" if threads.value > 1.5 else "holds the interpreter's lock"
        if 1.2 < threads.value <= 1.5:
            held = "holds the interpreter's lock for a part of its time"
        said.append(f"two threads against one: {told(threads)}, so it {held} (or the memory is the limit)")
    if processes is not None and one is not None:
        gain = processes.value / one.value
        bus = "more of them help" if gain > 1.5 else "bandwidth, or what is handed over, is the limit"
        said.append(f"two processes against one: {gain:.2f}×, {bus}")
        said.append(f"one process against none: {told(one)}, which is what handing over costs")
    blas = next((way for way in measured if way.blas_threads > 1), None)
    if blas is not None and one is not None and measured[blas].speedup.value > 1.2 * one.value:
        said.append(f"BLAS uses its own threads well: {told(measured[blas].speedup)} with {blas.blas_threads}")
    said.append(f"{best}: {told(measured[best].speedup)} over serial, the fastest or as fast within {100 * SAME:.0f} %")
    return said


def told(S: Interval) -> str:
    """Return a ratio with its interval as text."""
    return f"{S.value:.2f}× ({'range' if S.is_range else '95 %'} {S.low:.2f}–{S.high:.2f})"


# --- measuring ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Call:
    """A verb with its arguments, to be run on the first items of its arrays."""

    kernel: Callable[..., Any]
    arrays: tuple[Any, ...]
    seed: int | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] | None
    how: Mapping[str, Any]
    maps: bool

    def run(self, executor: Executor, n_items: int, block_items: int) -> None:
        """Run it; only the time is wanted."""
        arrays = tuple(array[:n_items] for array in self.arrays)
        verb = executor.map_blocks if self.maps else executor.reduce_blocks
        more = dict(self.how) if self.maps else {}
        if "out" in more:
            more["out"] = more["out"][:n_items]
        if not self.maps:
            more = {"combine": _first}
        verb(
            self.kernel,
            *arrays,
            n_items=None if arrays else n_items,
            block_items=block_items,
            seed=self.seed,
            args=self.args,
            kwargs=self.kwargs,
            **more,
        )


def _first(a: Any, b: Any) -> Any:
    """Combine two partials of which nobody wants the sum."""
    return a


def _result(
    kernel: Callable[..., Any], arrays: Sequence[Any], total: int, block_items: int, seed: Any, args: Any, kwargs: Any
) -> tuple[bool, float]:
    """Return whether the kernel gives one row per item, as one that asks for ``out`` does, and bytes per item."""
    asks, _, _ = arguments.asked_of(kernel, len(arrays), args, kwargs)
    if "out" in asks:
        return True, float(sum(array[:1].nbytes for array in arrays[:1]))
    n = min(total, block_items)
    few = [np.asarray(array[:n]) if sources.is_dataset(array) else array[:n] for array in arrays]
    with Executor(backend="serial") as executor:
        found = executor.reduce_blocks(
            kernel, *few, n_items=None if few else n, block_items=block_items, seed=seed, args=args, kwargs=kwargs
        )
    rows = found if isinstance(found, tuple) else (found,)
    maps = all(isinstance(row, np.ndarray) and row.ndim and len(row) == n for row in rows)
    return maps, sum(getattr(row, "nbytes", 0) for row in rows) / max(1, n)


def _sample(call: _Call, total: int, block_items: int, *, fixed: bool, most: int) -> tuple[int, int]:
    """Return how many items take `SAMPLE_S` on one core, or all of them, and the items of a block.

    Where a single block takes that long, or all items are few blocks, blocks are made smaller so that each of the
    workers gets several.
    """
    with Executor(backend="serial") as executor:
        n = min(total, block_items)
        while True:
            began = time.perf_counter()
            call.run(executor, n, block_items)
            took = time.perf_counter() - began
            if took >= SAMPLE_S or n >= total:
                break
            n = min(total, max(2 * n, int(n * min(8.0, 0.7 * SAMPLE_S / max(took, 1e-9)))))
    if not fixed and n < 8 * most * block_items:
        block_items = max(1, n // (8 * most))
    return n, block_items


def _in_rounds(tried: Sequence[Way], work: Callable[[Executor], None]) -> dict[Way, list[float]]:
    """Return the seconds of each way in each round, all ways in random order."""
    order, took = np.random.default_rng(0), {way: list[float]() for way in tried}
    with contextlib.ExitStack() as stack:
        executors = {way: stack.enter_context(_opened(way)) for way in tried}
        for round_ in range(-1, ROUNDS):
            for i in order.permutation(len(tried)):
                way = tried[int(i)]
                began = time.perf_counter()
                work(executors[way])
                if round_ >= 0:
                    took[way].append(time.perf_counter() - began)
    return took


@contextlib.contextmanager
def _opened(way: Way) -> Iterator[Executor]:
    with way.executor() as executor:
        executor.wait_until_ready()
        yield executor


def _waiting(call: _Call, n_items: int, block_items: int) -> float:
    """Return the share of a kernel's time in which its thread is not on a CPU."""
    with Executor(backend="serial") as executor:
        call.run(executor, n_items, block_items)
        chunks = executor.timeline.chunks
    wall_ns = int((chunks["finished_ns"] - chunks["started_ns"]).sum())
    return max(0.0, 1 - int(chunks["cpu_ns"].sum()) / wall_ns) if wall_ns else 0.0


def _blocks(call: _Call, best: Way, n_items: int, usual: int) -> tuple[int, str]:
    """Return the items of a block that suit a way: the usual ones, or a quarter or four times as many if faster."""
    sizes = sorted({max(1, usual // 4), usual, min(n_items, 4 * usual)})
    if len(sizes) < 2:
        return usual, "the sample is too small to tell"
    took: dict[int, list[float]] = {size: [] for size in sizes}
    order = np.random.default_rng(1)
    with _opened(best) as executor:
        for round_ in range(-1, ROUNDS):
            for i in order.permutation(len(sizes)):
                began = time.perf_counter()
                call.run(executor, n_items, sizes[int(i)])
                if round_ >= 0:
                    took[sizes[int(i)]].append(time.perf_counter() - began)
    better = {size: paired_ratio(took[usual], took[size]) for size in sizes if size != usual}
    gains = {size: S for size, S in better.items() if S.excludes(1.0) and S.value > 1 + SAME}
    gain = ", ".join(f"{size} items {told(S)}" for size, S in better.items())
    if not gains:
        return usual, f"{usual} items; others are not faster: {gain}"
    size = max(gains, key=lambda size: gains[size].value)
    return size, f"{size} items are faster than {usual}: {gain}"
