"""Arrays are known to nodes by what they hold, as long as the caller holds them."""

import gc

import numpy as np
import pytest

import parcompute as pc
from parcompute.backends.nodes import wire

N = wire.KEPT_ABOVE  # of float64: eight times what travels with a job


@pytest.fixture
def arrays():
    return wire.Arrays()


def test_equal_arrays_are_one_until_the_last_of_them_is_dropped(arrays):
    x, y = np.ones(N), np.ones(N)
    digest = arrays.keep(x).digest
    assert arrays.keep(y).digest == digest
    del x
    gc.collect()
    assert arrays.gone() == set()
    del y
    gc.collect()
    assert arrays.gone() == {digest}
    assert arrays.gone() == set()


def test_an_array_that_is_written_to_is_another_one(arrays):
    x = np.ones(N)
    before = arrays.keep(x).digest
    x[-1] = 2
    after = arrays.keep(x).digest
    assert after != before
    assert arrays.gone() == {before}
    x[-1] = 1  # and what comes back has not gone
    assert arrays.keep(x).digest == before
    assert arrays.gone() == {after}


@pytest.mark.parametrize(
    "other",
    [
        np.ones(N, "f4"),
        np.ones((N // 2, 2)),
        np.asfortranarray(np.ones((N // 2, 2))),
        np.ones(N, ">f8"),
        np.ones(N + 1),
    ],
)
def test_dtype_shape_and_order_belong_to_what_an_array_is(arrays, other):
    assert arrays.keep(other).digest != arrays.keep(np.ones(N)).digest


def test_what_nobody_can_write_to_is_looked_at_once(arrays, monkeypatch):
    looks = []
    monkeypatch.setattr(wire, "digest_of", lambda array: looks.append(array.shape) or b"digest")
    constant, view = np.ones(N), np.ones(N)[1:]
    constant.flags.writeable = view.flags.writeable = False  # whoever has the view's base can still write to it
    for _ in range(2):
        arrays.keep(constant)
        arrays.keep(view)
    assert looks == [(N,), (N - 1,), (N - 1,)]


@pytest.mark.parametrize(
    "array", [np.arange(24.0).reshape(2, 3, 4), np.asfortranarray(np.eye(3)), np.arange(9)[::2], np.zeros((0, 2))]
)
def test_the_bytes_of_an_array_are_the_array(array):
    content = wire.as_bytes(array)
    back = wire.from_bytes(content, array.shape, array.dtype, wire.is_fortran(array))
    assert np.array_equal(back, array)
    assert back.flags.f_contiguous == (array.flags.f_contiguous or array[...].copy().flags.f_contiguous)


@pytest.mark.usefixtures("files_of_mpi")
def test_calls_leave_no_arrays_on_a_node():
    pytest.importorskip("mpi4py.MPI", exc_type=ImportError)
    with pc.Executor(1, backend="mpi") as executor:
        node = executor._backend._engine._local._server
        for i in range(20):
            assert executor.submit(np.sum, np.full(N, float(i))).result() == i * N
        assert executor.submit(len, ()).result() == 0  # by now it has been told of what was dropped before
        assert len(node._arrays) <= 1
