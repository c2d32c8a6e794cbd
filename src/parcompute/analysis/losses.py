"""Where the core-seconds of a run went: a ledger that closes to the nanosecond, and the POP efficiencies.

    worker 0  ┃prologue┃startup┃dispatch│ kernel │return│dispatch│ kernel │return┃   tail    ┃drain┃
    worker 1  ┃prologue┃   startup    ┃dispatch│     kernel      │return┃  tail  ┃drain┃
              called   submitted      ready    started  finished stored         last      completed

Kernel time is split once more, against a serial reference: useful + lost_cpu + slowdown. Each worker is paid
for from the call to the complete result, so the parts of all workers add up to n_workers · makespan.

On several nodes, what of startup, dispatch, tail and drain lies where a worker's node had nothing in hand is transfer:

    node      ┃prologue┃  transfer  ┃ its workers, as above ┃transfer┃ its workers ┃transfer┃  tail  ┃drain┃
              called   submitted    arrived        finished          arrived ...   finished received last  completed
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from parcompute.values import views
from parcompute.values.parts import PARTS, WORDS, time_of_workers, works_on
from parcompute.values.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Reference:
    """What the kernels of the same problem take without parallelism.

    Attributes
    ----------
    wall_ns, cpu_ns : int
        Sums over all chunks of a serial run: wall time and CPU time inside kernels.
    """

    wall_ns: int
    cpu_ns: int

    @classmethod
    def of(cls, *timelines: Timeline) -> Reference:
        """Return the reference that a serial run, of one job or of several, gives.

        Only the sums enter the ledger, so the serial run may have been cut into other chunks; it must
        have computed the same items.
        """
        return cls(sum(_computing_ns(t.chunks) for t in timelines), sum(t.cpu_ns for t in timelines))


@dataclass(frozen=True, eq=False)
class Losses:
    """The core-second ledger of one run, in whole nanoseconds summed over the workers.

    Attributes
    ----------
    n_workers : int
        W; a process that runs several threads counts once per thread.
    makespan_ns : int
        M, from the call to the complete result.
    useful_ns, prologue_ns, startup_ns, dispatch_ns, transfer_ns : int
    lost_cpu_ns, slowdown_ns, return_ns, tail_ns, drain_ns : int
        The parts, see `PARTS`. A negative one is never clipped; `notes` says what it means.
    computing_ns : ndarray of int64, shape (n_workers,)
        Time inside kernels of each worker.
    kernels_ns : ndarray of int64, shape (n_chunks,)
        Time inside kernels of each chunk, in the order in which they began.
    reference : Reference or None
        What `useful` was measured against. None: useful is the CPU time inside the kernels of the run
        itself, and slowdown, which then cannot be seen, is 0.
    bound_ns : int
        The stamps of nodes may be wrong by this; 0 where the run had none.
    nodes : tuple of Losses
        The same of each node, without reference: what is not kernel time adds up to that of the run. Empty where the
        run had none.
    """

    n_workers: int
    makespan_ns: int
    useful_ns: int
    prologue_ns: int
    startup_ns: int
    dispatch_ns: int
    transfer_ns: int
    lost_cpu_ns: int
    slowdown_ns: int
    return_ns: int
    tail_ns: int
    drain_ns: int
    computing_ns: npt.NDArray[np.int64]
    kernels_ns: npt.NDArray[np.int64]
    reference: Reference | None
    bound_ns: int = 0
    nodes: tuple[Losses, ...] = ()

    @property
    def parts_ns(self) -> dict[str, int]:
        """The parts by name, in the order of `PARTS`."""
        return {name: getattr(self, f"{name}_ns") for name in PARTS}

    @property
    def total_ns(self) -> int:
        """Core-time paid for: n_workers · makespan."""
        return self.n_workers * self.makespan_ns

    @property
    def closes(self) -> bool:
        """Whether the parts add up to the total, to the nanosecond."""
        return sum(self.parts_ns.values()) == self.total_ns

    def share(self, part: str) -> float:
        """Return a part as a fraction of the total."""
        return _ratio(self.parts_ns[part], self.total_ns)

    @cached_property
    def ideal_ns(self) -> int:
        """M_ideal: makespan of the same kernel times under list scheduling without any overhead."""
        return list_schedule(self.kernels_ns.tolist(), self.n_workers)

    # ── POP: multiplicative ───────────────────────────────────────────────────────────────────────────

    @property
    def parallel_efficiency(self) -> float:
        """PE = ΣC/(W·M), with C the kernel time of each worker. PE = LB · CommE."""
        return _ratio(int(self.computing_ns.sum()), self.total_ns)

    @property
    def load_balance(self) -> float:
        """LB = mean C/max C."""
        return _ratio(int(self.computing_ns.sum()), self.n_workers * int(self.computing_ns.max()))

    @property
    def communication_efficiency(self) -> float:
        """CommE = max C/M = SerE · TE."""
        return _ratio(int(self.computing_ns.max()), self.makespan_ns)

    @property
    def serialisation_efficiency(self) -> float:
        """SerE = max C/M_ideal. Above 1 where the run was balanced worse than list scheduling is.

        POP replays messages on an ideal network; here tasks are independent, and the replay is list
        scheduling of the kernel times in the order in which they began.
        """
        return _ratio(int(self.computing_ns.max()), self.ideal_ns)

    @property
    def transfer_efficiency(self) -> float:
        """TE = M_ideal/M, with the replay of `serialisation_efficiency`."""
        return _ratio(self.ideal_ns, self.makespan_ns)

    @property
    def computation_scaling(self) -> float:
        """CompS = Σc⁰/Σ(e − s): below 1 where kernels run slower than in the reference."""
        return _ratio(self.useful_ns, int(self.computing_ns.sum()))

    @property
    def global_efficiency(self) -> float:
        """GE = PE · CompS = useful/(W·M)."""
        return self.share("useful")

    # ── Karp–Flatt: additive ──────────────────────────────────────────────────────────────────────────

    def karp_flatt(self, base_ns: int) -> dict[str, float]:
        """Split the experimentally determined serial fraction into the parts that cause it.

        Parameters
        ----------
        base_ns : int
            T1, the makespan of the base case.

        Returns
        -------
        dict of str to float
            A summand per loss, and ``base`` = (useful − T1)/(T1(W − 1)), what the base case itself loses.
            They add up to e = (1/S − 1/W)/(1 − 1/W) with S = T1/M (Karp & Flatt 1990).

        Raises
        ------
        ValueError
            If there is one worker only, or `base_ns` is not positive.
        """
        if self.n_workers < 2:
            raise ValueError("n_workers=1 has no serial fraction; pass a run with at least 2 workers")
        if base_ns <= 0:
            raise ValueError(f"base_ns={base_ns} is out of range; pass the makespan of the base case, above 0")
        scale = base_ns * (self.n_workers - 1)
        summands = {name: ns / scale for name, ns in self.parts_ns.items() if name != "useful"}
        return summands | {"base": (self.useful_ns - base_ns) / scale}

    # ── in words ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know before trusting the numbers."""
        notes = []
        if self.reference is not None and self.computation_scaling > 1:
            notes.append(
                f"kernels ran faster than in the serial reference (CompS = {self.computation_scaling:.3f}): "
                "the reference is no baseline; measure it again"
            )
        if self.reference is None:
            notes.append(
                "no serial reference: computing is CPU time inside kernels, and that it is slower cannot be seen"
            )
        for name in ("prologue", "dispatch", "transfer", "return", "drain"):
            if (ns := self.parts_ns[name]) < 0:
                known = f", the clocks of the nodes are known within {self.bound_ns} ns" if self.bound_ns else ""
                notes.append(f"{WORDS[name]} is negative ({ns} ns): stamps of the timeline overlap{known}")
        return tuple(notes)

    def __str__(self) -> str:
        lines = [f"{self.n_workers} workers × {self.makespan_ns * 1e-9:.6f} s = {self.total_ns * 1e-9:.6f} core-s"]
        for name, ns in self.parts_ns.items():
            lines.append(f"  {WORDS[name]:<17} {ns * 1e-9:13.6f} s {100 * _ratio(ns, self.total_ns):7.2f} %  {name}")
        lines.append(f"  {'sum':<17} {sum(self.parts_ns.values()) * 1e-9:13.6f} s {100:7.2f} %")
        lines.append(
            f"PE {self.parallel_efficiency:.3f} = LB {self.load_balance:.3f}"
            f" × CommE {self.communication_efficiency:.3f};"
            f" CompS {self.computation_scaling:.3f}; GE {self.global_efficiency:.3f}"
        )
        for i, node in enumerate(self.nodes):
            told = ", ".join(
                f"{WORDS[name]} {100 * node.share(name):.1f} %" for name, ns in node.parts_ns.items() if ns
            )
            lines.append(f"node {i}, {node.n_workers} workers: {told}")
        lines.extend(f"note: {note}" for note in self.notes)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows: list[tuple[str, ...]] = []
        for name, ns in self.parts_ns.items():
            share = _ratio(ns, self.total_ns)
            rows.append((WORDS[name], f"{ns * 1e-9:.6f}", f"{100 * share:.2f}", views.bar(share), PARTS[name]))
        rows.append(("sum", f"{sum(self.parts_ns.values()) * 1e-9:.6f}", "100.00", "", "workers × makespan"))
        head, *lines = str(self).splitlines()
        heading = ("part", "time (core-s)", "share (%)", "", "what it is")
        rest = views.bullets(line for line in lines if not line.startswith(" "))
        return views.paragraph(head) + views.table(heading, rows, "lrrll") + rest


def losses(timeline: Timeline | Sequence[Timeline], reference: Reference | Timeline | None = None) -> Losses:
    """Account for every core-second of a run.

    Parameters
    ----------
    timeline : Timeline, or sequence of Timeline
        Of the run: of its one job, or of its jobs in their order.
    reference : Reference or Timeline, optional
        The same problem without parallelism, or the timeline of such a run. Without one, useful is the CPU
        time inside the kernels, lost_cpu the rest of the time inside them, slowdown 0.

    Raises
    ------
    ValueError
        If a chunk names a worker that the timeline does not have, the same worker has two rows, or there is no
        job or jobs of different numbers of workers.

    Notes
    -----
    W(t1 − t0) = prologue + startup + dispatch + transfer + useful + lost_cpu + slowdown + return + tail + drain,
    exactly: each worker's time from t0 to t1 is cut at stamps, every cut ends one part and begins the next.

    * A worker that was ready only after the last result had been stored (t_L) is in startup until t_L; from
      then on, like everyone, in drain. One that got nothing is in tail from when it was ready until t_L.
    * Who has begun a chunk was ready, and a chunk that was begun could be claimed: a stamp that says otherwise
      lost a race with the event it stamps, or is that of a replacement, and the begin of the chunk is taken.
    * A result that travels while its worker computes the next chunk, as in `multiprocessing.Pool`, is in return
      until that chunk begins.
    * A replacement that goes on under its predecessor's number: the time from the last stored result before
      the death to the next begin, with what was being computed, is in dispatch.
    * A node has nothing in hand from the call until its first span has arrived, between its spans, and from its last
      result until the caller has stored it. One that got no span is in startup and tail, as a worker is.
    * The time between two jobs of a run, when the caller has the workers wait, is in the prologue of the second.
    * A chunk that was computed twice is useful once; the other time is in lost_cpu and slowdown, since the
      reference has it once.

    Examples
    --------
    >>> from parcompute.values.timeline import CHUNK_DTYPE, WORKER_DTYPE
    >>> chunks = np.array([(0, 0, 0, 20, 80, 50, 85), (1, 1, 0, 30, 70, 40, 75)], CHUNK_DTYPE)
    >>> workers = np.array([(0, 100, 5), (1, 101, 25)], WORKER_DTYPE)
    >>> ledger = losses(Timeline(0, 10, 100, chunks, workers))
    >>> ledger.closes, ledger.parts_ns["dispatch"], ledger.parts_ns["tail"]
    (True, 15, 10)
    """
    if isinstance(reference, Timeline):
        reference = Reference.of(reference)
    return _of_job(timeline, reference) if isinstance(timeline, Timeline) else _of_jobs(timeline, reference)


def _of_jobs(timelines: Sequence[Timeline], reference: Reference | None) -> Losses:
    if len({timeline.n_workers for timeline in timelines}) != 1:
        raise ValueError(f"the run has jobs of {[t.n_workers for t in timelines]} workers; pass one or more of as many")
    makespan_ns = timelines[-1].completed_ns - timelines[0].called_ns
    return _joined([_of_job(timeline, None) for timeline in timelines], makespan_ns, reference)


def _joined(ledgers: Sequence[Losses], makespan_ns: int, reference: Reference | None) -> Losses:
    parts_ns = {name: sum(ledger.parts_ns[name] for ledger in ledgers) for name in PARTS}
    parts_ns["prologue"] += ledgers[0].n_workers * (makespan_ns - sum(ledger.makespan_ns for ledger in ledgers))
    same = {tuple(node.n_workers for node in ledger.nodes) for ledger in ledgers}
    return _ledger(
        parts_ns,
        makespan_ns,
        np.sum([ledger.computing_ns for ledger in ledgers], axis=0),
        np.concatenate([ledger.kernels_ns for ledger in ledgers]),
        reference,
        max(ledger.bound_ns for ledger in ledgers),
        # None where the jobs were of unlike nodes, one of them from its checkpoint alone.
        tuple(_joined(each, makespan_ns, None) for each in zip(*(ledger.nodes for ledger in ledgers), strict=True))
        if len(same) == 1
        else (),
    )


def _ledger(
    parts_ns: dict[str, int],
    makespan_ns: int,
    computing_ns: npt.NDArray[np.int64],
    kernels_ns: npt.NDArray[np.int64],
    reference: Reference | None,
    bound_ns: int,
    nodes: tuple[Losses, ...],
) -> Losses:
    """Return the ledger of parts in which useful is the CPU time inside the kernels."""
    if reference is not None:
        cpu_ns = parts_ns["useful"]
        parts_ns["useful"] = reference.wall_ns
        parts_ns["lost_cpu"] -= reference.wall_ns - reference.cpu_ns
        parts_ns["slowdown"] = cpu_ns - reference.cpu_ns
    return Losses(
        n_workers=len(computing_ns),
        makespan_ns=makespan_ns,
        **{f"{name}_ns": ns for name, ns in parts_ns.items()},
        computing_ns=computing_ns,
        kernels_ns=kernels_ns,
        reference=reference,
        bound_ns=bound_ns,
        nodes=nodes,
    )


def _of_job(timeline: Timeline, reference: Reference | None) -> Losses:
    spent, makespan_ns = time_of_workers(timeline), timeline.makespan_ns
    computing = spent["useful"] + spent["lost_cpu"]
    numbers = np.sort(timeline.workers["worker"])
    chunks = timeline.chunks[np.argsort(timeline.chunks["started_ns"], kind="stable")]
    kernels = chunks["finished_ns"] - chunks["started_ns"]
    nodes = []
    for node in timeline.nodes:
        mine = works_on(node, numbers)
        parts_ns = {name: int(ns[mine].sum()) for name, ns in spent.items()}
        theirs = kernels[works_on(node, chunks["worker"])]
        nodes.append(_ledger(parts_ns, makespan_ns, computing[mine], theirs, None, int(node["bound_ns"]), ()))
    parts_ns = {name: int(ns.sum()) for name, ns in spent.items()}
    bound_ns = max((node.bound_ns for node in nodes), default=0)
    return _ledger(parts_ns, makespan_ns, computing, kernels, reference, bound_ns, tuple(nodes))


def shares(ledgers: Sequence[Losses]) -> dict[str, float]:
    """Return the share of each part in the core-seconds of several runs; nothing for none."""
    total = sum(ledger.total_ns for ledger in ledgers)
    return {name: sum(ledger.parts_ns[name] for ledger in ledgers) / total for name in PARTS} if total else {}


def summands(ledgers: Sequence[Losses], base_ns: int) -> dict[str, float]:
    """Return what the serial fraction of several runs, at least one, consists of: mean of `Losses.karp_flatt`."""
    of_runs = [ledger.karp_flatt(base_ns) for ledger in ledgers]
    return {name: sum(each[name] for each in of_runs) / len(of_runs) for name in of_runs[0]}


def list_schedule(durations: Iterable[int], n_workers: int) -> int:
    """Return the makespan when each task in turn goes to the worker that is free first (Graham 1966).

    Examples
    --------
    >>> list_schedule([3, 3, 2, 2, 2], n_workers=2)
    7
    """
    free = [0] * n_workers
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def _computing_ns(chunks: npt.NDArray[np.void]) -> int:
    return int((chunks["finished_ns"] - chunks["started_ns"]).sum())


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
