"""Three hosts compute the bits that one does, and each thing is on the wires once."""

import contextlib
import sys
import time
from pathlib import Path

import cloudpickle
import engines
import h5py
import numpy as np
import pytest

import parcompute as pc
from parcompute.values.blocks import Schedule

# The programs on the hosts can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(1)
X = RNG.standard_normal(20_000) * np.exp(RNG.standard_normal(20_000) * 20)
LARGE = RNG.standard_normal((3, 30_000, 2))


def bits(value):
    if isinstance(value, (tuple, list)):
        return tuple(map(bits, value))
    if isinstance(value, dict):
        return {key: bits(part) for key, part in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return type(value), value.dtype.str, value.shape, value.tobytes()
    return type(value), value


def drawn(block, rng):
    return rng.standard_normal(block.size)


def smoothed(x, block):
    core = range(block.core.start, block.core.stop)
    return np.array([x[max(0, i - 2) : i + 3].mean() for i in core])


def core_sums(x, block):
    return np.full(block.size, x.sum())


def block_sums(x):
    """Return one number that depends on the order of summation, hence on the block's memory layout."""
    return np.full(len(x), x.sum())


def written(x):
    x = x.copy()
    yield x
    x[len(x) // 2] = 0.5
    yield x


def of_file(path, name=None):
    """Return the array of a file, as the caller opens it."""
    return np.memmap(path, "f8", "r", shape=(60_000, 2)) if name is None else h5py.File(path, "r")[name]


def computed(executor, common, own):
    """Return what is to be the same, whoever computes it; the files are the same for all, and on one host only."""
    halves = [executor.reduce_blocks(np.sum, x, block_items=137) for x in written(X)]
    out = np.full((20_000, 3), np.nan)
    executor.map_blocks(lambda x: np.stack([x, x, -x], 1), X, block_items=137, out=out)
    found = {
        "random rows": executor.map_blocks(drawn, n_items=50_000, block_items=137, seed=5),
        "float sum": executor.reduce_blocks(lambda x: float((x * x).sum()), X, block_items=137),
        "halo": executor.map_blocks(smoothed, X, halo=2, block_items=137),
        "tuple": executor.map_blocks(lambda x: (x > 0, np.sqrt(np.abs(x))), X, block_items=137),
        "dict": executor.reduce_blocks(lambda x: {"sum": x.sum(), "of": (len(x), x.max())}, X, block_items=137),
        "objects": executor.reduce_blocks(
            lambda block: f"{block.index}", n_items=200, block_items=1, combine=lambda a, b: f"({a} {b})"
        ),
        "array that is written to between two jobs": halves,
        "out": out,
        "strided": executor.map_blocks(block_sums, LARGE.transpose(1, 2, 0)[::-2, ::-1], block_items=101),
        "Fortran order": executor.map_blocks(block_sums, np.asfortranarray(LARGE[0]), block_items=101),
        "arguments": executor.map_blocks(lambda x, table: x + table.sum(), X, args=(LARGE,), block_items=137),
    }
    for where, folder in (("everywhere", common), ("here only", own)):
        for name in (None, "x"):
            x = of_file(folder / ("x.h5" if name else "x.npy"), name)
            found[f"file {where}, {name}"] = executor.map_blocks(core_sums, x, halo=1, block_items=1_001)
            if name:
                x.file.close()
    return {name: bits(value) for name, value in found.items()}


def make_files(folder):
    x = np.random.default_rng(2).standard_normal((60_000, 2))
    x.tofile(folder / "x.npy")
    with h5py.File(folder / "x.h5", "w") as file:
        file["x"] = x


def test_a_clock_that_is_off_is_set_right(hosts):
    """n2 has a clock of its own, 5,000 s ahead; what it tells is put on the caller's within the bound that is said.

    Its cluster is one of its own, beside that of the other tests.
    """
    pytest.importorskip("distributed")

    def slow(x):
        time.sleep(0.005)
        return x.sum()

    def program(options):
        with pc.Executor(2, **options) as executor:
            for _ in range(3):
                before = time.perf_counter_ns()
                executor.reduce_blocks(slow, np.arange(300.0), block_items=1)
                after = time.perf_counter_ns()
            timeline, ledger = executor.timeline, pc.losses(executor.timeline)
            offsets = {node.host: (node.offset_ns, node.bound_ns) for node in executor.nodes}
        return before, after, timeline.nodes, timeline.spans, timeline.chunks, offsets, ledger.parts_ns, ledger.total_ns

    with contextlib.closing(engines.OnDask(hosts, ahead={"n2": 5_000})) as dask:
        before, after, nodes, spans, chunks, offsets, parts_ns, total_ns = dask.run(program)
    off = {name: offset_ns / 1e9 for name, (offset_ns, _) in offsets.items()}
    bounds = {name: bound_ns / 1e9 for name, (_, bound_ns) in offsets.items()}
    # The machine has one clock, so that the true offsets are known.
    assert abs(off["n2"] + 5_000) <= bounds["n2"]
    assert abs(off["n1"]) <= bounds["n1"]
    assert abs(off["n3"]) <= bounds["n3"]
    assert max(bounds.values()) < 1
    assert sorted((nodes["offset_ns"] / 1e9).round().astype(int).tolist()) == [-5_000, 0, 0]
    bound_ns = nodes["bound_ns"][spans["node"]]
    assert (before <= spans["sent_ns"]).all()
    assert (spans["sent_ns"] <= spans["arrived_ns"] + bound_ns).all()
    assert (spans["arrived_ns"] <= spans["finished_ns"]).all()
    assert (spans["finished_ns"] <= spans["received_ns"] + bound_ns).all()
    assert (spans["received_ns"] <= after).all()
    slack = nodes["bound_ns"].max()
    assert (chunks["started_ns"] >= before - slack).all()
    assert (chunks["stored_ns"] <= after + slack).all()
    assert sum(parts_ns.values()) == total_ns


def test_three_hosts_compute_the_bits_of_one(engine, hosts, tmp_path):
    make_files(tmp_path)

    def program(options, common, own):
        make_files(own)
        found, used = [], {}
        with pc.Executor(**options) as executor:
            for schedule in ("guided", "static", "dynamic,3"):
                executor.schedule = Schedule.parse(schedule)
                found.append(computed(executor, common, own))
                used[schedule] = sorted(set(executor.timeline.spans["node"].tolist()))
            return found, sorted({node.host for node in executor.nodes}), used

    found, names, used = engine.run(program, tmp_path, hosts.own)
    assert names == hosts.names
    assert used["static"] == [0, 1, 2]  # else a short job may be over before a node has heard of it
    with pc.Executor(backend="serial") as serial:
        expected = computed(serial, tmp_path, tmp_path)
    for one in found:
        assert one == expected


MIB = 2**20


def test_an_input_is_on_each_cable_once_and_so_are_the_rows(engine, hosts):
    def sent_and_received():
        counts = Path("/proc/net/dev").read_text().partition("eth0:")[2].split()
        return np.array([int(counts[8]), int(counts[0])])

    def program(options):
        x, table = np.arange(8 * MIB, dtype="f8"), np.ones(2 * MIB)
        with pc.Executor(**options) as executor:
            executor.wait_until_ready()
            jobs = (
                lambda: executor.reduce_blocks(lambda x, table: x.sum() + table[0], x, args=(table,)),
                lambda: executor.reduce_blocks(lambda x, table: x.sum() - table[0], x, args=(table,)),
                lambda: executor.map_blocks(np.sqrt, x),
            )
            found = []
            for job in jobs:
                before = sent_and_received()
                job()
                found.append((sent_and_received() - before).tolist())
            spans = executor.timeline.spans
            elsewhere = spans[spans["node"] != [node.host for node in executor.nodes].index("n1")]
            blocks = (elsewhere["stop"] - elsewhere["first"]).sum()
            return found, blocks * executor.plan.block_items * 8

    found, rows = engine.run(program)
    (first_out, first_in), (second_out, second_in), (rows_out, rows_in) = found
    assert 2 * 80 * MIB <= first_out < 2 * 84 * MIB
    assert max(first_in, second_in, second_out, rows_out) < 4 * MIB
    assert rows <= rows_in < 1.05 * rows + 2 * MIB
