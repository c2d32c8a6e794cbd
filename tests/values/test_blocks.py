"""A plan covers each item exactly once, whatever the schedule, and costs little however large the problem is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parcompute.values.blocks import BLOCK_BYTES, SCHEDULES, Block, Plan, Schedule, block_items_for, whole

schedules = st.builds(Schedule, st.sampled_from(SCHEDULES), st.none() | st.integers(1, 50))
plans = st.builds(
    Plan.cut,
    n_items=st.integers(0, 5_000),
    block_items=st.integers(1, 500),
    schedule=schedules,
    n_workers=st.integers(1, 70),
    halo=st.integers(0, 600),
)


def chunk_sizes(plan):
    return np.diff(plan.edges)


# --- coverage ----------------------------------------------------------------------------------------------


@given(plans)
def test_blocks_cover_each_item_once_and_in_order(plan):
    covered = [item for block in plan.blocks() for item in range(block.start, block.stop)]
    assert covered == list(range(plan.n_items))


@given(plans)
def test_chunks_cover_each_block_once_and_in_order(plan):
    covered = [block for k in range(plan.n_chunks) for block in plan.chunk(k)]
    assert covered == list(range(plan.n_blocks))


@given(plans)
def test_chunk_edges_increase_from_the_first_block_to_the_last(plan):
    assert (plan.edges[0], plan.edges[-1]) == (0, plan.n_blocks)
    assert (chunk_sizes(plan) > 0).all()


@given(plans)
def test_each_block_but_the_last_has_the_size_asked_for(plan):
    *others, last = [block.size for block in plan.blocks()]
    assert set(others) <= {plan.block_items}
    assert 0 < last <= plan.block_items or plan.n_items == 0


@given(plans, schedules, st.integers(1, 70))
def test_blocks_depend_on_neither_the_schedule_nor_the_workers(plan, schedule, n_workers):
    other = Plan.cut(plan.n_items, plan.block_items, schedule, n_workers, halo=plan.halo)
    assert list(other.blocks()) == list(plan.blocks())


@given(schedules, st.integers(1, 70))
def test_empty_index_space_is_one_empty_block(schedule, n_workers):
    plan = Plan.cut(0, schedule=schedule, n_workers=n_workers, halo=3)
    assert list(plan.blocks()) == [Block(0, 0, 0)]
    assert list(plan.chunk(0)) == [0]
    assert plan.n_chunks == 1


# --- schedules ---------------------------------------------------------------------------------------------


@given(st.integers(1, 5_000), st.integers(1, 70), st.integers(1, 50))
def test_guided_chunks_shrink_and_only_the_last_is_below_the_smallest_asked_for(n_blocks, n_workers, smallest):
    sizes = np.diff(Schedule("guided", smallest).edges(n_blocks, n_workers))
    assert (np.diff(sizes) <= 0).all()
    assert (sizes[:-1] >= smallest).all()


@given(st.integers(1, 5_000), st.integers(1, 70))
def test_no_guided_chunk_exceeds_half_of_an_equal_share_of_what_is_left(n_blocks, n_workers):
    edges = Schedule("guided").edges(n_blocks, n_workers)
    left = n_blocks - edges[:-1]
    assert (np.diff(edges) <= np.maximum(1, left // (2 * n_workers))).all()


@given(st.integers(1, 5_000), st.integers(1, 70))
def test_static_is_one_chunk_per_worker_and_they_differ_by_at_most_one_block(n_blocks, n_workers):
    sizes = np.diff(Schedule("static").edges(n_blocks, n_workers))
    assert len(sizes) == min(n_blocks, n_workers)
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("kind", ["static", "dynamic"])
@given(n_blocks=st.integers(1, 5_000), n_workers=st.integers(1, 70), chunk_blocks=st.integers(1, 50))
def test_chunks_with_a_size_have_it_and_the_last_has_the_rest(kind, n_blocks, n_workers, chunk_blocks):
    sizes = np.diff(Schedule(kind, chunk_blocks).edges(n_blocks, n_workers))
    assert (sizes[:-1] == chunk_blocks).all()
    assert sizes[-1] == (n_blocks % chunk_blocks or chunk_blocks)


def test_dynamic_without_a_size_claims_single_blocks():
    assert Schedule("dynamic").edges(4, n_workers=2).tolist() == [0, 1, 2, 3, 4]


@given(schedules)
def test_parse_reads_what_str_writes(schedule):
    assert Schedule.parse(str(schedule)) == schedule
    assert Schedule.parse(schedule) is schedule


def test_parse_forgives_spaces():
    assert Schedule.parse(" dynamic , 16 ") == Schedule("dynamic", 16)


@pytest.mark.parametrize("text", ["", "guidde", "Static", ",4", "auto"])
def test_unknown_schedule_is_answered_with_the_valid_names(text):
    with pytest.raises(ValueError, match="static, dynamic, guided"):
        Schedule.parse(text)


@pytest.mark.parametrize("text", ["dynamic,", "dynamic,0", "dynamic,-1", "dynamic,x", "dynamic,1.5", "dynamic,1,2"])
def test_bad_chunk_size_is_answered_with_its_range(text):
    with pytest.raises(ValueError, match="at least 1"):
        Schedule.parse(text)


@pytest.mark.parametrize("value", [None, 4, b"static", ["static"]])
def test_schedule_that_is_no_string_is_answered_with_its_type(value):
    with pytest.raises(TypeError, match=f"{type(value).__name__}; pass one of static, dynamic, guided"):
        Schedule.parse(value)


# --- halo --------------------------------------------------------------------------------------------------


@given(plans)
def test_halo_is_full_inside_and_clipped_at_the_ends(plan):
    for block in plan.blocks():
        items = range(*block.reach.indices(plan.n_items))
        assert block.halo_before == min(plan.halo, block.start)
        assert block.halo_after == min(plan.halo, plan.n_items - block.stop)
        assert len(items) == block.reach.stop - block.reach.start  # nothing is asked for beyond the ends


@given(plans)
def test_core_of_what_a_kernel_receives_is_the_blocks_own_items(plan):
    items = np.arange(plan.n_items)
    for block in plan.blocks():
        np.testing.assert_array_equal(items[block.reach][block.core], items[block.start : block.stop])


# --- block size --------------------------------------------------------------------------------------------


@given(st.integers(0, 10**12))
def test_block_size_is_the_largest_that_keeps_a_block_within_its_bytes(item_bytes):
    n = block_items_for(item_bytes)
    assert n >= 1
    assert n == 1 or n * (item_bytes or 8) <= BLOCK_BYTES
    assert (n + 1) * (item_bytes or 8) > BLOCK_BYTES


@given(st.integers(0, 10**6), schedules, st.integers(1, 70), st.integers(0, 10**6))
def test_default_block_size_depends_on_the_bytes_of_an_item_only(n_items, schedule, n_workers, item_bytes):
    plan = Plan.cut(n_items, None, schedule, n_workers, item_bytes=item_bytes)
    assert plan.block_items == block_items_for(item_bytes)


def test_plan_says_why_its_blocks_have_their_size():
    assert "24 bytes" in Plan.cut(100, item_bytes=24).why
    assert "as asked" in Plan.cut(100, 7).why
    assert Plan.cut(100, 7).why in str(Plan.cut(100, 7))


# --- a plan is a value -------------------------------------------------------------------------------------


def test_edges_of_a_plan_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        Plan.cut(100, 7).edges[0] = 1


@pytest.mark.parametrize("schedule", ["static", "guided"])
def test_plan_of_a_huge_problem_is_cheap(schedule):
    plan = Plan.cut(10**12, 1_000, schedule, n_workers=1_000)
    assert plan.n_blocks == 10**9
    assert plan.n_chunks < 50_000
    assert plan.block(10**9 - 1) == Block(10**9 - 1, 10**12 - 1_000, 10**12)


def test_items_beyond_32_bits_are_counted_exactly():
    plan = Plan.cut(2**33 + 1, 2**31, "static", n_workers=3)
    assert plan.block(plan.n_blocks - 1) == Block(4, 2**33, 2**33 + 1)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"n_items": -1}, "n_items=-1"),
        ({"n_items": 5, "block_items": 0}, "block_items=0"),
        ({"n_items": 5, "n_workers": 0}, "n_workers=0"),
        ({"n_items": 5, "halo": -2}, "halo=-2"),
    ],
)
def test_number_out_of_range_is_answered_with_its_name_and_value(arguments, named):
    with pytest.raises(ValueError, match=f"{named} is out of range; pass at least"):
        Plan.cut(**arguments)


@pytest.mark.parametrize("value", [1.0, "4", None, True, np.bool_(True)])
def test_what_is_no_whole_number_is_answered_with_its_type(value):
    with pytest.raises(TypeError, match=type(value).__name__):
        whole("n_items", value, at_least=0)


@given(st.integers(0, 2**62))
def test_whole_takes_numpys_integers_and_gives_pythons(value):
    number = whole("n_items", np.int64(value), at_least=0)
    assert (type(number), number) == (int, value)
