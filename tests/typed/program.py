"""A program as users write one, for mypy and pyright in their strict modes; tests/test_typing.py runs them over it.

What must be an error has a `type: ignore`, and one that is not needed is an error as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

import parcompute as pc
from parcompute.analysis.choice import Compared
from parcompute.analysis.studies import Study
from parcompute.executor.advice import Advice
from parcompute.experiments.experiment import Experiment

Floats = npt.NDArray[np.float64]


def power(x: float, n: int = 2) -> float:
    return x**n


def halves(block: Floats) -> Floats:
    return block / 2


def both(block: Floats) -> tuple[Floats, npt.NDArray[np.int64]]:
    return block, block.astype(np.int64)


def fill(block: Floats, out: Floats) -> None:
    out[:] = block


def hits(block: pc.Block, rng: np.random.Generator) -> int:
    return int(np.count_nonzero(rng.random(block.stop - block.start) < 0.5))


def moments(block: Floats) -> dict[str, float]:
    return {"n": block.size, "sum": float(block.sum())}


def larger(a: int, b: int) -> int:
    return max(a, b)


def enough(partial: int, n_items: int) -> bool:
    return partial > 100 or n_items > 1_000


def told(n_done: int, n_blocks: int) -> None:
    print(n_done, n_blocks)


def prepare(level: int) -> None:
    print(level)


def blocks(x: Floats, out: Floats) -> None:
    """Jobs of blocks."""
    with pc.Executor(
        2, backend="processes", threads_per_worker=1, schedule="dynamic,16", start_method="forkserver",
        blas_threads=None, pin="cores", retries=1, worker_output="here", progress=told, state=dict,
        initializer=prepare, initargs=(3,),
    ) as ex:  # fmt: skip
        assert_type(ex, pc.Executor)
        assert_type(ex.map_blocks(halves, x), Floats)
        assert_type(ex.map_blocks(halves, x, halo=1, block_items=10, seed=None, on_error="keep"), Floats)
        assert_type(ex.map_blocks(both, x, checkpoint="job.h5"), tuple[Floats, npt.NDArray[np.int64]])
        assert_type(ex.map_blocks(fill, x, dtype=float, item_shape=()), npt.NDArray[Any])
        assert_type(ex.map_blocks(halves, x, dtype=np.float32), npt.NDArray[Any])
        assert_type(ex.map_blocks(halves, x, out=out, args=(1,), kwargs={"a": 2}), Floats)
        assert_type(ex.map_blocks(both, x, out=(out, out)), tuple[Floats, Floats])
        assert_type(ex.reduce_blocks(hits, n_items=100, seed=1), int)
        assert_type(ex.reduce_blocks(hits, n_items=100, combine=larger, until=enough), int)
        assert_type(ex.reduce_blocks(moments, x, block_timeout=1.5), dict[str, float])
        assert_type(ex.iter_blocks(hits, n_items=100, ordered=False), Iterator[tuple[pc.Block, int]])
        for block, mean in ex.iter_blocks(moments, x):
            print(block.start, mean["sum"])
        assert_type(ex.plan, pc.Plan)
        assert_type(ex.timeline, pc.Timeline)
        assert_type(ex.failures, tuple[pc.KernelError | pc.WorkerLost, ...])
        assert_type(ex.seed, int | None)
        assert_type(ex.n_workers, int)
        assert_type(ex.worker_pids, tuple[int, ...])
        assert_type(ex.wait_until_ready(), float)
        assert_type(pc.losses(ex.timeline), pc.Losses)


def calls(numbers: list[float]) -> None:
    """Calls, as `concurrent.futures` has them."""
    with pc.Executor(max_workers=2, max_tasks_per_child=5, backend="auto", progress=True) as ex:
        assert_type(ex.submit(power, 2.0), Future[float])
        assert_type(ex.submit(power, 2.0, n=3).result(timeout=1), float)
        assert_type(ex.map(power, numbers), Iterator[float])
        assert_type(list(ex.map(power, numbers, [1, 2], timeout=3, chunksize=2, buffersize=4)), list[float])
        assert_type(ex.shutdown(wait=True, cancel_futures=True), None)


def arrays(x: Floats) -> None:
    """Shared arrays are arrays."""
    shared = pc.share(x)
    assert_type(shared, pc.SharedArray)
    assert_type(pc.SharedArray.empty((2, 3), np.float32, order="F"), pc.SharedArray)
    plain: npt.NDArray[Any] = shared
    print(plain.sum())


def records(path: str) -> None:
    """What was measured, and what to make of it."""
    record = pc.read(path)
    assert_type(record, pc.Results)
    assert_type(record.verdicts, tuple[str, ...])
    assert_type(record.studies, tuple[Study, ...])
    assert_type(record.compared, Mapping[str, Compared])
    axes = pc.plot.speedup(record, legend=False)
    assert_type(axes, Axes)
    pc.plot.ledger(record, ax=axes)
    assert_type(pc.advise(halves, np.arange(10.0), workers=2), Advice)


def truth(result: float, n_items: int) -> pc.Check:
    check = pc.Check(result, 1.0 * n_items, tolerance=0.0, how="exactly")
    assert_type(check.passes, bool)
    return check


def experiments() -> None:
    """An experiment, as `parcompute new` writes one."""

    @pc.experiment(n_items={"quick": 10, "default": [10, 100]}, truth=truth, variants=("a", "b"))
    def count(executor: pc.Executor, n_items: int, seed: int, variant: str) -> float:
        return float(executor.reduce_blocks(hits, n_items=n_items, seed=seed))

    assert_type(count, Experiment)
    assert_type(count.name, str)
    count.main(["--preset", "quick"])


def errors(x: Floats) -> None:
    """What must be an error."""
    with pc.Executor(workers="2") as ex:  # type: ignore[arg-type]
        ex.submit(power, "2")  # type: ignore[arg-type]
        ex.submit(power)  # type: ignore[call-arg]
        ex.map(power, 3)  # type: ignore[arg-type]
        ex.map_blocks(halves, x, block_items="many")  # type: ignore[call-overload]
        ex.map_blocks(halves, x, blok_items=3)  # type: ignore[call-overload]
        ex.reduce_blocks(hits, n_items=3, combine=len)  # type: ignore[arg-type]
        ex.iter_blocks(hits, n_items=3, checkpoint="a.h5")  # type: ignore[call-arg]
    pc.Executor(backends="threads")  # type: ignore[call-arg]
    pc.read(3)  # type: ignore[arg-type]
    pc.shared(x)  # type: ignore[attr-defined]
