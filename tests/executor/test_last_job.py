"""An executor says what it is and what its last job was, as text and in a notebook."""

import pytest

import parcompute as pc


def test_it_shows_its_workers_and_then_its_last_job():
    with pc.Executor(2, backend="threads", schedule="dynamic,3") as executor:
        before = executor._repr_html_()
        executor.reduce_blocks(lambda block, rng: 1 // block.index, n_items=7, block_items=1, seed=42, on_error="keep")
        after = executor._repr_html_()
    assert "last job" not in before
    for shown in ("open", "2", "threads", "dynamic,3", "7 items in 7 blocks, 3 chunks", "42", "1"):
        assert f">{shown}</td>" in after
    assert "last job (s)" in after
    assert ">closed</td>" in executor._repr_html_()
    assert repr(executor) == "<Executor: 2 workers, backend 'threads', closed>"


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_it_shows_how_its_workers_start(method):
    with pc.Executor(1, start_method=method) as executor:
        assert f">processes, started by {method}</td>" in executor._repr_html_()
