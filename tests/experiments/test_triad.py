"""The triad experiment ends at the values for which STREAM checks, whoever computes."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import parcompute as pc

SOURCE = Path(__file__).resolve().parents[2] / "experiments" / "triad.py"
N_ITEMS = 3 * 2**15 + 7  # three blocks and a short one
WAYS = [
    {"backend": "threads", "workers": 2},
    {"backend": "processes", "workers": 2},
    {"backend": "processes", "workers": 2, "schedule": "static"},
]


@pytest.fixture
def triad():
    """Return the experiment's module; the arrays that it keeps are released in the end."""
    spec = importlib.util.spec_from_file_location("triad", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    module.arrays.cache_clear()


def arrays(triad, n_items=N_ITEMS, backend="serial", **options):
    with pc.Executor(backend=backend, **options) as executor:
        return tuple(map(np.array, triad.triad(executor, n_items, 0)))  # its own, the next run writes to again


def test_ten_repetitions_end_at_the_published_values_exactly(triad):
    triad.REPETITIONS = 10
    a, b, c = arrays(triad)
    assert (set(a), set(b), set(c)) == ({1153300781250.0}, {230660156250.0}, {307546875000.0})  # stream.c, scalar 3
    assert triad.stream_values((a, b, c), N_ITEMS).error == 0


def test_a_second_run_on_the_same_arrays_ends_at_the_same_values(triad):
    with pc.Executor(backend="serial") as executor:
        for _ in range(2):
            assert triad.stream_values(triad.triad(executor, N_ITEMS, 0), N_ITEMS).error == 0


@pytest.mark.parametrize("wrong", [1 + 1e-12, 1 - 1e-12, 0.0, np.nan])
@pytest.mark.parametrize("which", range(3))
def test_one_wrong_item_does_not_pass(triad, which, wrong):
    result = arrays(triad, 100)
    result[which][50] *= wrong
    assert not triad.stream_values(result, 100).passes


@pytest.mark.parametrize("left_out", range(4))
def test_a_sweep_left_out_does_not_pass(triad, left_out):
    del triad.SWEEPS[left_out]
    assert not triad.stream_values(arrays(triad, 100), 100).passes


@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(map(str, way.values())))
def test_the_bits_are_the_same_whoever_computes(triad, way):
    for x, y in zip(arrays(triad, **way), arrays(triad), strict=True):
        assert x.tobytes() == y.tobytes()


def test_each_preset_is_larger_than_the_one_before(triad):
    sizes = triad.triad.sizes
    assert sizes["quick"] < sizes["default"] < sizes["full"]
