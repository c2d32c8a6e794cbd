"""The table as a value: what each row asks of whom, and what parcompute has to reach in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from session import Entry
from verdicts import AtMost, AtMostTimes, Target

# Name → module:class. The record and the table know contenders by these names.
CONTENDERS = {
    "serial": "standard:Serial",
    "Pool": "standard:Pool",
    "fork-inherit": "standard:Inherited",
    "ProcessPoolExecutor": "standard:ProcessPool",
    "independent": "standard:Independent",
    "joblib": "others:Joblib",
    "loky": "others:Loky",
    "mpire": "others:Mpire",
    "dask": "others:Dask",
    "ray": "others:Ray",
    "mpi4py.futures": "nodes:FuturesUnderMPI",
    "parcompute": "own:Parcompute",
    "serial backend": "own:Serial",
    "threads": "own:Threads",
    "auto": "own:Auto",
    "ThreadPoolExecutor": "standard:ThreadPool",
    "fresh": "fresh:Fresh",
    "one node": "nodes:One",
    "two on Dask": "nodes:OnDask",
    "two under MPI": "nodes:UnderMPI",
}
NODES = ("one node", "two on Dask", "two under MPI")

MS, US, NS, MIB = 1e3, 1e6, 1e9, 2.0**-20


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table of numbers to reach, or one variant of it.

    Attributes
    ----------
    name : str
        Its number, with a letter where the line has variants.
    title : str
        What is measured.
    unit, scale
        What the cells show, and what a sample is multiplied by for it.
    entries : tuple of Entry
        Who is asked.
    targets : tuple of Target
        What is to be reached.
    parameters : dict
        Of all questions.
    size : str
        Which parameter is the size of the problem; empty where there is none.
    each_s, timeout_s : float
        For each entry, and for each answer; see `session.ask`.
    is_time : bool
        Whether a sample is in seconds.
    """

    name: str
    title: str
    unit: str
    scale: float
    entries: tuple[Entry, ...]
    targets: tuple[Target, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    size: str = ""
    each_s: float = 5.0
    timeout_s: float = 40.0
    is_time: bool = True

    @property
    def number(self) -> int:
        """Of the line in the table."""
        return int(self.name.rstrip("abcdef"))

    def n_items(self, entry: Entry) -> int:
        """Size of the problem that an entry is given."""
        return {**self.parameters, **entry.parameters}.get(self.size, 1)


def each(question: str, *names: str, **parameters: Any) -> tuple[Entry, ...]:
    return tuple(Entry(name, name, question, parameters) for name in names)


ENGINES = ("Pool", "ProcessPoolExecutor", "joblib", "loky", "mpire", "dask", "ray", "mpi4py.futures", "parcompute")
WITH_ARRAYS = ("Pool", "joblib", "mpire", "dask", "ray")
STARTS = (
    "Pool fork",
    "Pool forkserver",
    "Pool spawn",
    "parcompute fork",
    "parcompute forkserver",
    "parcompute spawn",
    "parcompute second",
    "loky",
    "joblib",
    "mpire",
    "dask",
    "ray",
)
IMPORTS = (
    "numpy",
    "parcompute",
    "parcompute.Executor",
    "joblib.externals.loky",
    "joblib",
    "mpire",
    "distributed",
    "ray",
)
BLOCK_SIZES = (1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304)


def _sums(letter: str, n_blocks: int) -> Row:
    return Row(
        f"3{letter}",
        f"sqrt-sum over 256 MiB in {n_blocks:,} blocks, input already shared",
        "ms",
        MS,
        each("sum_shared", "serial", *WITH_ARRAYS, "parcompute"),
        (AtMostTimes("parcompute", 1.0, WITH_ARRAYS), AtMostTimes("parcompute", 0.45, ("joblib",))),
        {"n_blocks": n_blocks},
        "n_blocks",
    )


def _plain(letter: str, n_blocks: int) -> Row:
    return Row(
        f"4{letter}",
        f"the same in {n_blocks:,} blocks from a plain fresh array, first call",
        "ms",
        MS,
        each("sum_plain", "serial", "fork-inherit", *WITH_ARRAYS, "parcompute"),
        (AtMostTimes("parcompute", 0.6, ("joblib",)),),
        {"n_blocks": n_blocks},
        "n_blocks",
    )


def _first_touch(letter: str, job: str) -> Row:
    return Row(
        f"16{letter}",
        f"first touch: {job} on shared arrays by one new worker process, against serial on private ones",
        "ms",
        MS,
        (
            Entry("serial", "parcompute", "first_jobs", {"backend": "serial"}),
            Entry("parcompute", "parcompute", "first_jobs", {"backend": "processes"}),
            Entry("parcompute, second job", "parcompute", "first_jobs", {"backend": "processes", "again": True}),
        ),
        (AtMostTimes("parcompute", 1.1, ("serial",)),),
        {"job": job},
        each_s=10,
    )


def _short_blocks(letter: str, kib: int) -> Row:
    return Row(
        f"15{letter}",
        f"sqrt-sum over 64 MiB in blocks of {kib} KiB, input already shared, later calls",
        "ms",
        MS,
        each("sum_short", "serial", "serial backend", "threads", "parcompute", "auto"),
        (
            AtMostTimes("serial backend", 1.05, ("serial",)),
            AtMostTimes("threads", 1.05, ("serial",)),
            AtMostTimes("threads", 1.05, ("serial backend",)),
            AtMostTimes("parcompute", 1.05, ("serial",)),
            AtMostTimes("auto", 1.1, ("threads", "parcompute")),
        ),
        {"n_blocks": 2**16 // kib},
        "n_blocks",
        each_s=4,
    )


ROWS = (
    Row(
        "1",
        "cost per no-op block when every chunk is one block, 20,000 blocks",
        "µs",
        US,
        (
            *each("noop_blocks", "Pool", "ProcessPoolExecutor", "joblib", "loky", "parcompute"),
            *each("noop_blocks", "mpire", "mpi4py.futures", n=5_000),
            *each("noop_blocks", "ray", n=2_000),
            *each("noop_blocks", "dask", n=1_000),
        ),
        (AtMost("parcompute", 2.5, "µs", US), AtMostTimes("parcompute", 0.1, ("Pool",))),
        {"n": 20_000},
        "n",
        each_s=8,
    ),
    Row(
        "2",
        "map of 20,000 no-op items, automatic batching",
        "µs",
        US,
        each("map_items", "serial", *ENGINES),
        (AtMost("parcompute", 0.25, "µs", US),),
        {"n": 20_000},
        "n",
        each_s=3,
    ),
    _sums("a", 4_096),
    _sums("b", 32_768),
    _plain("a", 4_096),
    _plain("b", 32_768),
    Row(
        "4c",
        "the same in 4,096 blocks from a plain array, second call",
        "ms",
        MS,
        (
            Entry("parcompute", "parcompute", "sum_again"),
            Entry("parcompute, shared", "parcompute", "sum_shared"),
        ),
        (AtMostTimes("parcompute", 1.1, ("parcompute, shared",)),),
        {"n_blocks": 4_096},
        "n_blocks",
    ),
    Row(
        "5a",
        "array out (256 MiB in and out, 4,096 blocks), first call",
        "ms",
        MS,
        each("map_first", "serial", "threads", "Pool", "joblib", "parcompute"),
        (AtMostTimes("parcompute", 0.6, ("joblib",)), AtMostTimes("threads", 0.7, ("serial",))),
        {"n_blocks": 4_096},
        "n_blocks",
    ),
    Row(
        "5b",
        "array out (256 MiB in and out, 4,096 blocks), later calls",
        "ms",
        MS,
        (
            *each("map_later", "serial", "threads", "Pool", "joblib", "parcompute"),
            Entry("parcompute, out=", "parcompute", "map_into"),
        ),
        (AtMostTimes("parcompute", 1.0, ("Pool",)),),
        {"n_blocks": 4_096},
        "n_blocks",
    ),
    Row(
        "6",
        "hand-over of 256 MiB into shared memory",
        "ms",
        MS,
        (
            Entry("SharedMemory + np.copyto", "Pool", "hand_over"),
            Entry("parcompute, first", "parcompute", "hand_over"),
            Entry("parcompute, later", "parcompute", "hand_over_again"),
        ),
        (
            AtMostTimes("parcompute, first", 0.6, ("SharedMemory + np.copyto",)),
            AtMostTimes("parcompute, later", 0.15, ("SharedMemory + np.copyto",)),
        ),
    ),
    Row(
        "7",
        "memory for 1 GiB shared to 2 workers, by PSS, beyond what idles",
        "× input",
        1.0,
        each("extra_memory", *WITH_ARRAYS, "parcompute"),
        (AtMost("parcompute", 1.02 + 4 / 1024, "× input"),),
        {"n_bytes": 2**30},
        "n_bytes",
        is_time=False,
    ),
    Row(
        "8",
        "start to first result, numpy loaded in workers, in a new interpreter",
        "ms",
        MS,
        tuple(Entry(name, "fresh", "start", {"name": name}) for name in STARTS),
        (
            AtMostTimes("parcompute forkserver", 1.1, ("Pool forkserver",)),
            AtMost("parcompute second", 25, "ms", MS),
            AtMost("parcompute fork", 18, "ms", MS),
        ),
    ),
    Row(
        "9",
        "Monte Carlo π, 2·10⁸ points; efficiency is against two independent processes",
        "s",
        1.0,
        each("pi", "independent", "Pool", "joblib", "mpire", "dask", "ray", "parcompute"),
        (AtMostTimes("parcompute", 1 / 0.98, ("independent",)),),
        {"n_points": 2 * 10**8, "seed": 1},
        "n_points",
        each_s=10,
    ),
    Row(
        "10",
        "200 tasks of heavy-tailed length, 8 s in all: makespan over the lower bound",
        "×",
        1.0,
        (
            *each("uneven", "Pool", "parcompute"),
            Entry("parcompute blocks", "parcompute", "uneven_blocks"),
            *(
                Entry(name, name, "uneven", rounds=2)
                for name in ("ProcessPoolExecutor", "joblib", "mpire", "dask", "ray")
            ),
        ),
        (AtMost("parcompute", 1.035, "×"), AtMost("parcompute blocks", 1.035, "×")),
        {"n_tasks": 200, "total_s": 8.0},
        "n_tasks",
        each_s=40,
        is_time=False,
    ),
    Row(
        "11",
        "Monte Carlo kernel, core time per point, by block size",
        "ns",
        NS,
        (
            Entry("parcompute", "parcompute", "point_cost"),
            *(Entry(f"block_items={n}", "parcompute", "point_cost", {"block_items": n}) for n in BLOCK_SIZES),
        ),
        (AtMostTimes("parcompute", 1 / 0.9, tuple(f"block_items={n}" for n in BLOCK_SIZES)),),
        {"n_points": 2**25, "seed": 1},
        "n_points",
        is_time=False,
    ),
    Row(
        "12",
        "import beyond `import numpy`, and that itself",
        "ms",
        MS,
        tuple(Entry(name, "fresh", "imports", {"name": name}) for name in IMPORTS),
        (AtMost("parcompute.Executor", 40, "ms", MS), AtMostTimes("parcompute", 1 / 3, ("numpy",))),
    ),
    Row(
        "13a",
        "cost per no-op block against the number of blocks, default schedule",
        "µs",
        US,
        (
            *(Entry(f"10^{k} blocks", "parcompute", "block_cost", {"n_blocks": 10**k}) for k in (3, 4, 5, 6)),
            Entry("10^7 blocks", "parcompute", "block_cost", {"n_blocks": 10**7}, rounds=1),
        ),
        (AtMostTimes("10^7 blocks", 1.25, ("10^5 blocks",)),),
        size="n_blocks",
        timeout_s=90,
    ),
    Row(
        "13b",
        "memory for 10⁷ no-op blocks, all processes by PSS, beyond what idles",
        "MiB",
        MIB,
        (Entry("10^7 blocks", "parcompute", "block_memory", {"n_blocks": 10**7}, rounds=1),),
        (AtMost("10^7 blocks", 1024, "MiB", MIB),),
        size="n_blocks",
        timeout_s=90,
        is_time=False,
    ),
    Row(
        "14",
        "a short job: 4 no-op blocks, or tasks, the same as before, workers warm",
        "µs",
        US,
        each(
            "short_jobs",
            *("Pool", "ProcessPoolExecutor", "joblib", "loky", "mpire", "dask", "ray", "mpi4py.futures"),
            *("ThreadPoolExecutor", "parcompute", "threads"),
        ),
        (AtMostTimes("parcompute", 0.5, ("Pool",)), AtMostTimes("threads", 2.0, ("ThreadPoolExecutor",))),
        {"n_jobs": 50},
        each_s=3,
    ),
    *(_short_blocks(*variant) for variant in (("a", 1), ("b", 4), ("c", 16), ("d", 64), ("e", 256), ("f", 1024))),
    _first_touch("a", "triad"),
    _first_touch("b", "fft2"),
    Row(
        "17a",
        "two nodes of one worker: cost per no-op block, default schedule",
        "µs",
        US,
        each("guided_blocks", *NODES),
        (
            AtMostTimes("two under MPI", 1.5, ("one node",)),
            AtMostTimes("two on Dask", 5.0, ("one node",)),
        ),
        {"n": 100_000},
        "n",
    ),
    Row("17b", "a whole job of two no-op blocks", "ms", MS, each("two_blocks", *NODES), ()),
    Row(
        "17c",
        "sqrt-sum over 256 MiB in 4,096 blocks from a plain array, new and as before",
        "ms",
        MS,
        tuple(
            Entry(f"{name}, {'as before' if again else 'new'}", name, "plain_input", {"again": again})
            for name in NODES
            for again in (False, True)
        ),
        (),
        {"n_blocks": 4_096},
        "n_blocks",
    ),
    Row(
        "18",
        "a map of 128 MiB into each kind of output, from the second time on",
        "ms",
        MS,
        tuple(
            Entry(kind, "parcompute", "outputs", {"kind": kind})
            for kind in ("shared array", "memmap", "dataset", "Zarr array")
        ),
        (AtMostTimes("memmap", 3.0, ("shared array",)), AtMostTimes("dataset", 8.0, ("shared array",))),
        {"n_rows": 2**17},
        "n_rows",
    ),
    Row(
        "19",
        "a sum over one column of a pandas frame of 128 MiB, which is shared anew for each job",
        "ms",
        MS,
        (Entry("parcompute", "parcompute", "frames"),),
        (AtMost("parcompute", 500, "ms", MS),),
        {"n_rows": 2**17},
        "n_rows",
    ),
)
