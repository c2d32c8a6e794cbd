"""Each chunk is claimed once, whoever asks, and what a dead worker has left is handed out again."""

import collections
import multiprocessing
import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parcompute.jobs import schedule
from parcompute.jobs.schedule import NO_BLOCK, Board, FileClaims, FileTokens, Pass, ThreadClaims, rows_for, written
from parcompute.values.blocks import Plan

plans = st.builds(
    Plan.cut,
    n_items=st.integers(0, 500),
    block_items=st.integers(1, 50),
    schedule=st.sampled_from(["static", "static,2", "dynamic", "dynamic,3", "guided", "guided,2"]),
    n_workers=st.integers(1, 9),
)


@pytest.fixture
def claims():
    claims = FileClaims()
    yield claims
    claims.close()


# --- claims ------------------------------------------------------------------------------------------------


def take(claims):
    return next(claims.below(2**62))


def taken_by_forked(claims, n_processes, n_numbers):
    """Have processes take numbers at the same time until they run out; return what each took."""
    gate_read, gate_write = os.pipe()
    readers, pids = [], []
    for _ in range(n_processes):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(gate_write)
            os.read(gate_read, 1)  # returns when the parent closes the other end: all begin together
            mine = []
            while (number := take(claims)) < n_numbers:
                mine.append(number)
            with open(write, "wb") as file:
                file.write(np.array(mine, np.int64).tobytes())
            os._exit(0)
        os.close(write)
        readers.append(read)
        pids.append(pid)
    os.close(gate_read)
    os.close(gate_write)
    taken = []
    for read in readers:
        with open(read, "rb") as file:
            taken.append(np.frombuffer(file.read(), np.int64))
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * n_processes
    return taken


def test_two_processes_take_each_of_100_000_numbers_exactly_once(claims):
    taken = taken_by_forked(claims, n_processes=2, n_numbers=100_000)
    assert np.sort(np.concatenate(taken)).tolist() == list(range(100_000))


def test_each_process_sees_its_numbers_rise(claims):
    for mine in taken_by_forked(claims, n_processes=3, n_numbers=3_000):
        assert (np.diff(mine) > 0).all()


def test_claims_by_the_fallback_file_are_exact_too(monkeypatch):
    refuse_nameless_files(monkeypatch)
    claims = FileClaims()
    monkeypatch.undo()
    taken = taken_by_forked(claims, n_processes=2, n_numbers=20_000)
    claims.close()
    assert np.sort(np.concatenate(taken)).tolist() == list(range(20_000))


def test_a_descriptor_of_the_same_file_goes_on_where_the_other_is(claims):
    other = FileClaims(os.dup(claims.fd))
    assert [take(claims), take(other), take(claims), take(other)] == [0, 1, 2, 3]
    other.close()


def test_each_token_is_taken_once_whoever_takes_it():
    tokens, n_tokens = FileTokens(), 3_000
    assert not tokens.taken()

    with multiprocessing.get_context("fork").Pool(2) as pool:
        others = [pool.apply_async(take_until_none_of, (tokens.fd,)) for _ in range(2)]
        own = 0
        for i in range(n_tokens):
            tokens.give()
            own += i % 3 == 0 and tokens.taken()
        taken = [other.get(30) for other in others]
        own += take_until_none_of(tokens.fd)
    tokens.close()
    assert own + sum(taken) == n_tokens


def take_until_none_of(fd):
    tokens, taken, misses = FileTokens(fd), 0, 0
    while misses < 50_000:  # nobody gives any more
        misses = 0 if (took := tokens.taken()) else misses + 1
        taken += took
    return taken


def test_reset_begins_again_at_zero(claims):
    take(claims)
    claims.reset()
    assert take(claims) == 0


def test_threads_take_each_number_exactly_once():
    claims, taken = ThreadClaims(), []

    def take_many():
        mine = [take(claims) for _ in range(5_000)]
        taken.extend(mine)

    threads = [threading.Thread(target=take_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(20_000))


def refuse_nameless_files(monkeypatch):
    really_open = os.open

    def refusing(path, flags, *args, **kwargs):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return really_open(path, flags, *args, **kwargs)

    monkeypatch.setattr(schedule.os, "open", refusing)


# --- passes ------------------------------------------------------------------------------------------------


def blocks(pass_, chunk):
    firsts, stops = pass_.spans()
    return list(range(firsts[chunk], stops[chunk]))


def walked(pass_):
    """Let the workers claim in turn until none is left; return the blocks that each got."""
    claims = ThreadClaims()
    left = {worker: pass_.claimed(worker, claims) for worker in range(pass_.plan.n_workers)}
    got = collections.defaultdict(list)
    while left:
        for worker, chunks in list(left.items()):
            chunk = next(chunks, None)
            if chunk is None:
                del left[worker]
            else:
                got[worker] += blocks(pass_, chunk)
    return got


@given(plans)
def test_a_pass_hands_out_each_block_once(plan):
    got = walked(Pass.first(plan))
    assert sorted(block for blocks in got.values() for block in blocks) == list(range(plan.n_blocks))


@given(plans, st.data())
def test_a_second_pass_hands_out_what_is_unfinished_and_nothing_else(plan, data):
    lost = data.draw(st.sets(st.integers(0, plan.n_blocks - 1), min_size=1))
    again = Pass.first(plan)
    handed = []
    while left := sorted(lost - set(handed)):  # at most as many at once as the board has rows
        again = again.again(np.array(left))
        assert again.n_chunks <= rows_for(plan)
        handed += [block for blocks in walked(again).values() for block in blocks]
    assert sorted(handed) == sorted(lost)


@given(plans, st.data())
def test_a_lost_block_keeps_the_number_of_its_chunk(plan, data):
    lost = data.draw(st.integers(0, plan.n_blocks - 1))
    again = Pass.first(plan).again(np.array([lost]))
    assert lost in plan.chunk(again.chunk_in_plan(0))
    assert (again.number, blocks(again, 0)) == (1, [lost])


@given(plans)
def test_a_chunk_of_the_first_pass_has_the_number_of_the_plan(plan):
    first = Pass.first(plan)
    assert [first.chunk_in_plan(chunk) for chunk in range(plan.n_chunks)] == list(range(plan.n_chunks))
    assert first.number == 0


def test_static_chunks_belong_to_a_worker_whoever_comes_first():
    pass_ = Pass.first(Plan.cut(8, 1, "static,1", n_workers=3))
    claims = ThreadClaims()
    assert [list(pass_.claimed(worker, claims)) for worker in (2, 0, 1)] == [[2, 5], [0, 3, 6], [1, 4, 7]]


def test_lost_static_blocks_go_to_whoever_comes_first():
    again = Pass.first(Plan.cut(8, 1, "static,1", n_workers=3)).again(np.array([1, 4]))
    assert [blocks(again, chunk) for chunk in again.claimed(2, ThreadClaims())] == [[1], [4]]


# --- the board ---------------------------------------------------------------------------------------------

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 20))


@given(SIZES)
def test_on_a_new_board_nothing_is_done_nobody_computes_and_no_row_is_written(sizes):
    board = Board(*sizes)
    assert not board.stopped
    assert list(board.current) == [NO_BLOCK] * sizes[0]
    assert board.unfinished().tolist() == list(range(sizes[1]))
    assert len(written(board.take_rows())) == 0


@given(SIZES, st.data())
def test_a_mark_changes_nothing_but_what_it_marks(sizes, data):
    n_workers, n_blocks, n_rows = sizes
    board = Board(*sizes)
    block, worker = data.draw(st.integers(0, n_blocks - 1)), data.draw(st.integers(0, n_workers - 1))
    row = data.draw(st.integers(0, n_rows - 1))
    board.done_marks[block] = 1
    board.current[worker] = block
    board.stamp(row, 7, worker, 1, 10, 20, 5, 30)
    assert board.unfinished().tolist() == [other for other in range(n_blocks) if other != block]
    assert list(board.current) == [block if other == worker else NO_BLOCK for other in range(n_workers)]
    assert not board.stopped
    assert written(board.take_rows()).tolist() == [(7, worker, 1, 10, 20, 5, 30)]


def test_rows_are_taken_once():
    board = Board(1, 1, 3)
    board.stamp(1, 1, 0, 0, 10, 20, 5, 30)
    assert len(written(board.take_rows())) == 1
    assert len(written(board.take_rows())) == 0


def test_who_attaches_a_shared_board_sees_the_marks_of_the_others():
    board = Board.in_shared_memory(2, 5, 3)
    other = Board.attached(board.reference)
    other.done_marks[3] = 1
    other.current[1] = 4
    other.stamp(2, 2, 1, 0, 10, 20, 5, 30)
    other.stop()
    assert board.stopped
    assert board.unfinished().tolist() == [0, 1, 2, 4]
    assert list(board.current) == [NO_BLOCK, 4]
    assert written(board.take_rows())["chunk"].tolist() == [2]


def test_a_cleared_board_is_as_new():
    board = Board(2, 5, 3)
    board.done_marks[3] = 1
    board.current[1] = 4
    board.stamp(2, 2, 1, 0, 10, 20, 5, 30)
    board.stop()
    board.clear()
    assert not board.stopped
    assert len(board.unfinished()) == 5
    assert list(board.current) == [NO_BLOCK] * 2
    assert len(written(board.take_rows())) == 0


def test_the_mark_of_another_process_is_seen():
    board = Board.in_shared_memory(1, 3, 1)
    if (pid := os.fork()) == 0:
        board.done_marks[2] = 1
        os._exit(0)
    os.waitpid(pid, 0)
    assert board.unfinished().tolist() == [0, 1]
