"""A sweep goes over powers of two, and over its configurations in an order that is random and can be had again."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parcompute.values.sweep import Configuration, round_order, worker_counts


def configurations(n):
    return [Configuration("processes", k, 1, "guided", "fork", "strong", 1_000) for k in range(1, n + 1)]


@given(st.integers(1, 10_000))
def test_worker_counts_double_from_one_to_all_cpus(n_cpus):
    *doubling, last = worker_counts(n_cpus)
    assert last == n_cpus
    assert doubling == [2**k for k in range(len(doubling))]
    assert 2 ** len(doubling) >= n_cpus  # none is left out
    assert n_cpus not in doubling


@pytest.mark.parametrize(("n_cpus", "counts"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (8, (1, 2, 4, 8))])
def test_worker_counts_by_example(n_cpus, counts):
    assert worker_counts(n_cpus) == counts


@given(st.integers(0, 30), st.integers(0, 2**63), st.integers(0, 1_000))
def test_a_round_visits_each_configuration_once(n, seed, round_):
    assert sorted(round_order(configurations(n), seed, round_)) == configurations(n)


@given(st.integers(0, 2**63), st.integers(0, 1_000))
def test_the_same_seed_and_round_give_the_same_order(seed, round_):
    assert round_order(configurations(20), seed, round_) == round_order(configurations(20), seed, round_)


def test_rounds_and_seeds_differ_in_their_order():
    orders = [tuple(round_order(configurations(20), seed, round_)) for seed in (1, 2) for round_ in range(10)]
    assert len(set(orders)) == len(orders)


def test_each_configuration_comes_first_in_some_round():
    firsts = {round_order(configurations(4), 0, round_)[0] for round_ in range(100)}
    assert firsts == set(configurations(4))


def test_a_configuration_names_its_backend_and_workers():
    assert str(configurations(2)[1]) == "processes × 2"


def test_the_serial_case_of_weak_scaling_has_one_workers_share() -> None:
    weak, strong = (
        Configuration("pool", 4, 1, "guided", "fork", kind, 400, variant="a") for kind in ("weak", "strong")
    )
    assert (weak.n_items_of_one, strong.n_items_of_one) == (100, 400)
    serial = Configuration("serial", 1, 1, "guided", "", "strong", 100, variant="a")
    assert serial.is_serial_of(weak)
    assert not serial.is_serial_of(strong)
    assert not replace(serial, variant="b").is_serial_of(weak)
    assert not replace(serial, backend="threads").is_serial_of(weak)
