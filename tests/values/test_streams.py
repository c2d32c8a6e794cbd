"""A block's random stream depends on the seed and the block's number, and on nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parcompute.values.streams import fresh_seed, generator

seeds = st.integers(0, 2**128)
indices = st.integers(0, 10**9)


@given(seeds, indices)
def test_the_stream_of_a_block_is_a_function_of_seed_and_number(seed, index):
    assert generator(seed, index).random(5).tobytes() == generator(seed, index).random(5).tobytes()


@given(seeds, st.integers(1, 20))
def test_the_streams_are_the_ones_that_numpy_spawns(seed, n_blocks):
    for index, child in enumerate(np.random.SeedSequence(seed).spawn(n_blocks)):
        assert generator(seed, index).random(3).tobytes() == np.random.default_rng(child).random(3).tobytes()


@given(seeds, indices, indices)
def test_two_blocks_draw_different_numbers(seed, one, other):
    same = generator(seed, one).random(4).tobytes() == generator(seed, other).random(4).tobytes()
    assert same == (one == other)


@given(st.integers(0, 2**64), st.integers(0, 2**64), indices)
def test_two_seeds_draw_different_numbers(one, other, index):
    same = generator(one, index).random(4).tobytes() == generator(other, index).random(4).tobytes()
    assert same == (one == other)


def test_neighbouring_streams_are_not_correlated():
    draws = np.array([generator(1, index).standard_normal(2_000) for index in range(50)])
    correlations = np.corrcoef(draws)[np.triu_indices(50, 1)]
    assert np.abs(correlations).max() < 0.12  # 5.4 standard errors, for 1,225 pairs


def test_the_first_draw_of_a_known_stream_never_changes():
    # Results in files refer to (seed, block): another construction would silently make them irreproducible.
    assert generator(7, 3).integers(0, 2**63, 2).tolist() == [9060328639024953766, 562176943756317143]


def test_a_fresh_seed_is_new_each_time_and_fits_into_63_bits():
    drawn = {fresh_seed() for _ in range(100)}
    assert len(drawn) == 100
    assert all(0 <= seed < 2**63 for seed in drawn)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="non-negative"):
        generator(-1, 0)
