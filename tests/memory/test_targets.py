"""HDF5 datasets get whole chunks, each once, in whatever order the rows come."""

import pickle

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parcompute.memory import targets
from parcompute.memory.targets import DatasetTarget, chunk_rows, target_of


class Recorder:
    """Looks like a dataset, and notes what is written."""

    def __init__(self, n_rows, chunk):
        self.content, self.chunks, self.written = np.full(n_rows, -1.0), (chunk,) if chunk else None, []
        self.dtype, self.shape = self.content.dtype, self.content.shape

    def __setitem__(self, rows, content):
        self.written.append((rows.start, rows.stop))
        self.content[rows] = content

    def __getitem__(self, rows):
        return self.content[rows].copy()


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 20), st.randoms(use_true_random=False))
def test_each_chunk_is_written_once_and_whole(n_rows, chunk, block, random):
    dataset = Recorder(n_rows, chunk)
    target, starts = DatasetTarget(dataset), [*range(0, n_rows, block)]
    random.shuffle(starts)
    for start in starts:
        rows = slice(start, min(start + block, n_rows))
        target[rows] = np.arange(rows.start, rows.stop, dtype=float)
    assert np.array_equal(dataset.content, np.arange(n_rows))
    assert all(a % chunk == 0 and (b % chunk == 0 or b == n_rows) for a, b in dataset.written)
    assert sum(b - a for a, b in dataset.written) == n_rows
    target.finish()
    assert sum(b - a for a, b in dataset.written) == n_rows


def test_rows_that_are_held_back_are_written_when_they_are_read_or_at_the_end():
    dataset = Recorder(10, 4)
    target = DatasetTarget(dataset)
    target[1:3] = np.array([1.0, 2.0])
    assert dataset.written == []
    assert target[0:4].tolist() == [-1, 1, 2, -1]
    target[5:6] = target[7:8] = np.array([5.0])
    target.finish()
    assert dataset.written == [(1, 3), (5, 6), (7, 8)]


def test_rows_that_come_twice_are_written_twice():
    dataset = Recorder(8, 4)
    target = DatasetTarget(dataset)
    for _ in range(2):
        target[0:6] = np.arange(6.0)
    target[6:8] = np.array([6.0, 7.0])
    target.finish()
    assert dataset.content.tolist() == [*range(8)]


def test_chunks_that_would_fill_memory_and_contiguous_rows_are_written_as_they_come(monkeypatch):
    monkeypatch.setattr(targets, "_HELD_BYTES", 31)
    for chunk in (4, 0):
        dataset = Recorder(8, chunk)
        DatasetTarget(dataset)[1:3] = np.ones(2)
        assert dataset.written == [(1, 3)]


def test_a_worker_gets_to_know_what_fits_and_not_the_file(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        target = pickle.loads(pickle.dumps(target_of(file.create_dataset("x", (3, 2), "f4"))))
    assert (target.dtype, target.shape, target.nbytes, len(target)) == (np.float32, (3, 2), 24, 3)


def test_what_is_no_file_has_no_target_and_no_chunks():
    assert target_of(np.zeros(3)) is None
    assert chunk_rows(None) == chunk_rows((np.zeros(3), [1])) == 1


def test_a_file_that_cannot_be_written_says_how_to_open_it(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset = file["x"] = np.zeros(3)
        dataset = file["x"]
    with pytest.raises(ValueError, match="closed; open it with mode 'r\\+' or 'a'"):
        target_of(dataset)
    with h5py.File(tmp_path / "x.h5", "r") as file, pytest.raises(ValueError, match="open read-only; open it with"):
        target_of(file["x"])
