"""Results find their place: rows where the block's items are, partials combined over a tree that only blocks fix."""

import collections
import functools
import operator
import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parcompute.jobs.job import Job
from parcompute.jobs.outputs import Field, ResultError, Rows
from parcompute.jobs.partials import Partials, add
from parcompute.values.blocks import Plan

PRIVATE = np.empty


def plan_of(n_blocks, block_items=3):
    return Plan.cut(n_blocks * block_items, block_items)


def tree(values, combine):
    """((0 1) (2 3)) ((4 5) 6), as the documentation draws it: halves whose left one is the largest power of two."""
    if len(values) == 1:
        return values[0]
    left = 1 << (len(values) - 1).bit_length() - 1
    return combine(tree(values[:left], combine), tree(values[left:], combine))


def reduced(values, combine=None):
    """Store the partials in an order that no scheduler would choose, and combine them."""
    plan = plan_of(len(values))
    partials = Partials(plan, combine)
    partials.allocate(partials.shape_of(values[0], plan.block(0)), PRIVATE)
    for index in reversed(range(len(values))):
        if not partials.store(values[index], plan.block(index)):
            partials.keep(index, values[index])
    return partials.result()


def bits(value):
    """Type and bytes: 1 and True and 1.0 differ, and so do 0.0 and -0.0."""
    if isinstance(value, tuple):
        return tuple(map(bits, value))
    if isinstance(value, dict):
        return {key: bits(part) for key, part in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return type(value), value.dtype, value.shape, value.tobytes()
    return type(value), pickle.dumps(value)


# --- the tree ----------------------------------------------------------------------------------------------

floats = st.floats(-1e150, 1e150, allow_subnormal=True)
numbers = {
    "float": floats,
    "int": st.integers(-(2**63), 2**63 - 1),
    "int beyond 64 bits": st.integers(-(2**100), 2**100),
    "bool": st.booleans(),
    "complex": st.complex_numbers(max_magnitude=1e150),
    "a mixture": st.one_of(st.integers(-(2**70), 2**70), st.floats(-1e9, 1e9), st.booleans()),
    "tuple": st.tuples(floats, st.integers(-10, 10)),
    "dict": st.fixed_dictionaries({"mean": floats, "n": st.integers(0, 10)}),
    "string": st.text(max_size=3),
}


@pytest.mark.parametrize("kind", numbers)
@given(data=st.data())
def test_a_sum_is_the_plain_recursive_one_whatever_the_partials_are(kind, data):
    values = data.draw(st.lists(numbers[kind], min_size=1, max_size=40))
    assert bits(reduced(values)) == bits(tree(values, add))


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "c8", "c16", "i8", "i4", "i1", "u2", ">f8", ">i4"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2), (0,)])
@pytest.mark.filterwarnings("ignore:overflow")  # small integers wrap in either tree
@given(n_blocks=st.integers(1, 70), seed=st.integers(0, 1000))
def test_a_sum_of_arrays_is_the_plain_recursive_one_bit_for_bit(dtype, shape, n_blocks, seed):
    rng = np.random.default_rng(seed)
    values = [part[()] for part in (rng.standard_normal((n_blocks, *shape)) * 100).astype(dtype)]
    if shape == ():
        values = [np.dtype(dtype).newbyteorder("=").type(value) for value in values]
    assert bits(reduced(values)) == bits(tree(values, operator.add))


@given(st.lists(st.text(max_size=2), min_size=1, max_size=40))
def test_combine_is_called_with_neighbours_in_their_order(values):
    assert reduced(values, combine=lambda a, b: f"({a} {b})") == tree(values, lambda a, b: f"({a} {b})")


@given(st.lists(floats, min_size=1, max_size=40))
def test_a_combine_of_ones_own_meets_the_same_tree_as_the_sum(values):
    assert bits(reduced(values, combine=lambda a, b: a + b)) == bits(reduced(values))


def test_the_tree_is_the_one_that_the_documentation_draws():
    assert reduced(list("0123456"), combine=lambda a, b: f"({a} {b})") == "(((0 1) (2 3)) ((4 5) 6))"


def test_the_order_of_a_float_sum_shows_in_its_bits():
    values = [1e16, 1.0, -1e16, 1.0]  # from the left it would be 1.0
    assert (reduced(values), functools.reduce(operator.add, values)) == (0.0, 1.0)


# --- what partials may be ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [1, 2**80, True, 1.5, 2j, np.float32(1.5), np.int8(3), np.bool_(True), np.arange(3), (), (1, np.ones(2)), {"n": 1}],
    ids=repr,
)
def test_a_single_partial_comes_back_as_it_was(value):
    assert bits(reduced([value])) == bits(value)


def test_a_dict_keeps_the_order_of_its_keys_though_another_block_has_another_order():
    total = reduced([{"b": 1, "a": 2.0}, {"a": 2.0, "b": 1}])
    assert list(total.items()) == [("b", 2), ("a", 4.0)]


def test_partials_nest():
    one = {"sums": (np.ones(2), 1), "n": {"inner": 1}}
    assert bits(reduced([one] * 5)) == bits({"sums": (np.full(2, 5.0), 5), "n": {"inner": 5}})


def test_a_namedtuple_is_no_mere_tuple_and_travels_as_it_is():
    Moments = collections.namedtuple("Moments", "mean n")
    total = reduced([Moments(1.0, 2)] * 3, combine=lambda a, b: Moments(a.mean + b.mean, a.n + b.n))
    assert (type(total), total) == (Moments, Moments(3.0, 6))


def test_an_array_of_another_shape_than_block_zeros_travels_as_it_is():
    values = [np.ones(2), np.ones((3, 2)), np.ones(2)]
    assert bits(reduced(values)) == bits(tree(values, operator.add))


PARTIALS = [
    *(1, 2**70, True, 1.5, 2j, None, "text"),
    *(kind(1) for kind in (np.bool_, np.int8, np.int64, np.uint64, np.float16, np.float32, np.float64)),
    *(np.complex64(2j), np.complex128(2j), np.str_("ab"), np.str_("abc"), np.bytes_(b"a")),
    *(np.datetime64(1, "s"), np.datetime64(1, "ms"), np.timedelta64(1, "s")),
    *(
        np.ones(2),
        np.ones(2, ">f8"),
        np.ones(2, "f4"),
        np.ones((1, 2)),
        np.array(1.0),
        np.ma.ones(2),
        np.ones(1, object),
    ),
    *((1.0, 2.0), (1.0, 2), (1.0,), (1.0, 2.0, 3.0), (1.0, (2.0,)), [1.0, 2.0], (1.0, None)),
    *(
        {"a": 1.0, "b": 2},
        {"b": 2, "a": 1.0},
        {"a": 1.0},
        {"a": 1.0, "b": 2.0},
        {np.str_("a"): 1.0},
        {1: 1.0},
        {True: 1.0},
    ),
]


def test_a_partial_has_a_row_where_it_looks_like_block_zeros():
    plan = plan_of(1)
    for like in PARTIALS:
        partials = Partials(plan)
        partials.allocate(shape := partials.shape_of(like, plan.block(0)), PRIVATE)
        for result in PARTIALS:
            stored = partials.store(result, plan.block(0))
            assert stored == (shape is not None and partials.shape_of(result, plan.block(0)) == shape), (like, result)
            if stored:
                assert bits(partials.result()) == bits(result), (like, result)


def test_what_is_kept_of_a_partial_is_not_an_array_that_the_kernel_goes_on_using():
    plan, buffer = plan_of(2), np.zeros(2)
    partials = Partials(plan)
    partials.allocate(partials.shape_of(buffer, plan.block(0)), PRIVATE)
    for index in range(2):
        buffer[:] = index + 1
        assert partials.store(buffer, plan.block(index))
    assert partials.result().tolist() == [3, 3]


def test_partials_that_cannot_be_added_say_so():
    with pytest.raises(TypeError, match=r"unsupported operand .*\+"):
        reduced([{1}, {2}])


def test_a_worker_gets_neither_the_combining_function_nor_what_the_caller_keeps():
    partials = Partials(plan_of(2), combine=lambda a, b: a)  # a lambda: plain pickle would refuse it
    partials.keep(0, {1})
    copy = pickle.loads(pickle.dumps(partials))
    assert (copy.combine, copy.odd, copy.arrays) == (None, {}, None)


# --- rows --------------------------------------------------------------------------------------------------


def rows_after(result, *, n_blocks=2, **options):
    """Shape the output by the fields, or else by block 0's result, and store that."""
    plan = plan_of(n_blocks)
    rows = Rows(plan, **options)
    fixed = rows.fields is not None
    rows.allocate(rows.shape if fixed else rows.shape_of(result, plan.block(0)), np.zeros)
    assert rows.store(result, plan.block(0))
    return rows


def test_block_zero_decides_dtype_and_shape_of_an_item():
    rows = rows_after(np.ones((3, 2, 4), "f4"))
    assert (rows.result().shape, rows.result().dtype) == ((6, 2, 4), "f4")


def test_rows_go_to_the_items_of_their_block_and_nowhere_else():
    rows = rows_after(np.array([1, 2, 3]))
    assert rows.result().tolist() == [1, 2, 3, 0, 0, 0]


def test_a_tuple_gives_an_output_per_entry():
    rows = rows_after((np.ones(3), np.ones((3, 2), bool)))
    assert [(array.shape, array.dtype.char) for array in rows.result()] == [((6,), "d"), ((6, 2), "?")]


def test_a_tuple_of_one_stays_a_tuple():
    assert [array.shape for array in rows_after((np.ones(3),)).result()] == [(6,)]


def test_a_list_is_an_array():
    assert rows_after([1, 2, 3]).result().tolist() == [1, 2, 3, 0, 0, 0]


def test_a_dtype_that_was_asked_for_is_cast_to():
    assert rows_after(np.array([1, 2, 3]), dtype=np.dtype("f4")).result().dtype == "f4"


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (np.ones(2), "expected 3 rows, one per item; got float64 (2,)"),
        (np.float64(1), "expected 3 rows, one per item; got float64 ()"),
        (1.5, "expected 3 rows, one per item; got float 1.5"),
        ((np.ones(3), np.ones(4)), "expected 3 rows, one per item; got float64 (4,)"),
        (None, "expected an array of numbers, got None"),
        (np.array([None] * 3), "expected an array of numbers, got object (3,)"),
        ({"a": 1}, "expected an array of numbers, got dict {'a': 1}"),
    ],
    ids=["too few", "NumPy scalar", "number", "in a tuple", "None", "objects", "dict"],
)
def test_a_first_result_that_is_no_row_per_item_is_answered_with_what_was_expected(result, said):
    plan = plan_of(2)
    with pytest.raises(ResultError, match=f"^{re.escape(said)}$"):
        Rows(plan).shape_of(result, plan.block(0))


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (np.ones((3, 3)), "expected float64 (3, 2), got float64 (3, 3)"),
        (np.ones((2, 2)), "expected float64 (3, 2), got float64 (2, 2)"),
        (np.ones((3, 2), "f4"), "expected float64 (3, 2), got float32 (3, 2)"),
        ((np.ones((3, 2)), np.ones(3)), "expected one array, got a tuple of 2"),
        (None, "expected an array of numbers, got None"),
    ],
    ids=["item shape", "rows", "dtype", "tuple", "None"],
)
def test_a_later_result_that_does_not_fit_is_answered_with_both(result, said):
    rows = rows_after(np.ones((3, 2)))
    with pytest.raises(ResultError, match=f"^{re.escape(said)}$"):
        rows.store(result, rows.plan.block(1))


@pytest.mark.parametrize("result", [np.ones(3), (np.ones(3),), (np.ones(3),) * 3], ids=["one", "of one", "of three"])
def test_a_result_with_another_number_of_arrays_is_answered_with_both(result):
    rows = rows_after((np.ones(3), np.ones(3)))
    with pytest.raises(ResultError, match=r"^expected a tuple of 2 arrays, got (float64 \(3,\)|a tuple of [13])$"):
        rows.store(result, rows.plan.block(1))


def test_a_result_is_not_cast_to_a_lesser_kind():
    with pytest.raises(ResultError, match=r"^expected int64 \(3,\), got float64 \(3,\)$"):
        rows_after(np.ones(3), fields=[Field(np.dtype("i8"), ())])


def test_rows_travel_without_their_arrays():
    rows = rows_after(np.ones(3))
    copy = pickle.loads(pickle.dumps(rows))
    assert (copy.arrays, copy.fields) == (None, rows.fields)


# --- functions of NumPy, which write to the rows themselves ------------------------------------------------


def bound(kernel, x, target, halo=0):
    """Return the function of a block of a job, and its plan, whose output is this array."""
    rows = Rows(plan := Plan.cut(len(x), 4, halo=halo), [Field(target.dtype, target.shape[1:])])
    rows.arrays = (target,)
    return Job(kernel, (x,), plan, rows).bind(), plan


def test_a_function_of_numpy_writes_to_the_rows_itself():
    x, target = np.arange(10.0).reshape(5, 2), np.full((5, 2), -1.0)
    compute, plan = bound(np.sqrt, x, target)
    assert np.shares_memory(compute(plan.block(1)), target)
    assert target.tolist() == [[-1.0, -1.0]] * 4 + [np.sqrt(x[4]).tolist()]


@pytest.mark.parametrize(
    ("kernel", "target", "halo"),
    [
        (np.sqrt, np.zeros(10, np.float32), 0),  # a cast is for who stores
        (np.sqrt, np.zeros(20)[::2], 0),  # other loops for rows that lie apart
        (np.sqrt, np.zeros((10, 2)), 0),  # not of this shape
        (np.sqrt, np.zeros(10), 1),  # with the neighbours' rows
        (np.isnan, np.zeros(10), 0),
        (np.frompyfunc(abs, 1, 1), np.zeros(10), 0),
        (np.modf, np.zeros(10), 0),  # returns two
        (lambda x: np.sqrt(x), np.zeros(10), 0),
    ],
)
def test_what_does_not_fit_exactly_is_returned(kernel, target, halo):
    x = np.arange(10.0)
    compute, plan = bound(kernel, x, target, halo)
    found, block = compute(plan.block(1)), plan.block(1)
    np.testing.assert_array_equal(found, kernel(x[block.reach]))
    assert not any(np.shares_memory(part, target) for part in (found if isinstance(found, tuple) else (found,)))
    assert not target.any()
