"""The stencil experiment decays as the scheme's eigenvalue says, across block edges too, and has the same bits."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import parcompute as pc

SOURCE = Path(__file__).resolve().parents[2] / "experiments" / "stencil.py"
N_ROWS = 150  # two blocks and a short one
WAYS = [
    {"backend": "threads", "workers": 2},
    {"backend": "processes", "workers": 2},
    {"backend": "processes", "workers": 2, "schedule": "static"},
]


@pytest.fixture
def stencil():
    """Return the experiment's module, with fewer steps; the arrays that it keeps are released in the end."""
    spec = importlib.util.spec_from_file_location("stencil", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.STEPS = 20
    yield module
    module.fields.cache_clear()


def field(stencil, n_rows=N_ROWS, backend="serial", **options):
    with pc.Executor(backend=backend, **options) as executor:
        return np.array(stencil.stencil(executor, n_rows, 0))  # its own fields, the next run writes to again


@pytest.mark.parametrize("n_rows", [1, 2, 64, 65, N_ROWS])
def test_the_mode_decays_as_known(stencil, n_rows):
    assert stencil.known_decay(field(stencil, n_rows), n_rows).passes


def test_the_mode_has_decayed_by_much_more_than_the_tolerance(stencil):
    check = stencil.known_decay(field(stencil), N_ROWS)
    assert check.how == "the rounding of 20 steps"
    assert np.abs(field(stencil)).max() < 0.95
    assert check.tolerance < 1e-13


def test_a_step_is_that_of_the_five_point_scheme(stencil):
    rows = np.random.default_rng(1).random((7, 5))
    padded = np.pad(rows, 1)
    neighbours = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    with pc.Executor(backend="serial") as executor:
        stepped = executor.map_blocks(stencil.heat_step, rows, halo=1, block_items=3)
    np.testing.assert_allclose(stepped, rows + stencil.R * (neighbours - 4 * rows), rtol=1e-14)


@pytest.mark.parametrize("row", [0, 63, 64, N_ROWS - 1])
def test_one_wrong_point_does_not_pass(stencil, row):
    u = field(stencil)
    u[row, 17] += 1e-12
    assert not stencil.known_decay(u, N_ROWS).passes
    u[row, 17] = np.nan
    assert not stencil.known_decay(u, N_ROWS).passes


def test_a_step_too_few_does_not_pass(stencil):
    u = field(stencil)
    stencil.STEPS += 1
    assert not stencil.known_decay(u, N_ROWS).passes


@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(map(str, way.values())))
def test_the_bits_are_the_same_whoever_computes(stencil, way):
    assert field(stencil, **way).tobytes() == field(stencil).tobytes()


def test_each_preset_is_larger_than_the_one_before(stencil):
    sizes = stencil.stencil.sizes
    assert sizes["quick"] < sizes["default"] < sizes["full"]
