"""A digest is the same in every process for the same content, and another for another content."""

import dataclasses
import enum
import functools
import os
import subprocess
import sys
import types

import numpy as np
import pytest

import parcompute as pc
from parcompute.jobs.digests import describe, describe_kernel

# What is digested under another hash seed, at other addresses, after other lines of code.
PROGRAM = """
{lines}
import dataclasses, enum, functools, logging
import numpy as np
from numpy.random import normal
from scipy.stats import norm
from parcompute.jobs.digests import describe, describe_kernel

class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"

@dataclasses.dataclass
class Point:
    x: float
    tags: frozenset = frozenset({{"a", "b", "c"}})

    def scaled(self, factor):
        return Point(self.x * factor, self.tags)

class Slotted:
    __slots__ = ("a", "b")

    def __init__(self):
        self.a, self.b = 1, {{"x": {{1.5, "y"}}}}

log = logging.getLogger("digests")
constants = {{"names": {{"one", "two", "three"}}, "point": Point(1.0), "slotted": Slotted()}}
circle = [1, 2]
circle.append(circle)

def helper(x, depth):
    log.debug("here")
    return other(x, depth - 1) if depth else x in {{"red", "green", "blue"}}

def other(x, depth):
    return helper(x, depth) or norm.cdf(x) or normal(x) or np.linalg.norm(x)

def kernel(x, block, *, colour=Colour.RED):
    return [helper(x, y) for y in constants["names"]], Point(x).scaled(2), circle, colour

print(describe_kernel(kernel))
print(describe_kernel(functools.partial(kernel, 1, colour=Colour.BLUE)))
print(describe_kernel(Point(2.0).scaled))
print(describe_kernel(functools.lru_cache(helper)))
print(describe(constants), describe(np.random.default_rng(1)), describe([Colour.RED, Point, Slotted, len, "x".join]))
"""


def test_digests_are_the_same_in_every_process():
    printed = set()
    for hash_seed in ("1", "2", "3"):
        program = PROGRAM.format(lines="# a comment\n" * int(hash_seed) + "unused = 'x' * 100_000\n" * int(hash_seed))
        environ = os.environ | {"PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", program]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
        assert ended.returncode == 0, ended.stderr
        printed.add(ended.stdout)
    assert len(printed) == 1


def function(source, **variables):
    """Return the function f of some source, in a module of its own."""
    module = types.ModuleType("users")
    vars(module).update(variables)
    exec(source, vars(module))
    return module.f


USERS = types.ModuleType("users")
USERS.scale, USERS.unread = 2, 5


class Kernel:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x


@functools.lru_cache
def cached(x):
    return x


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (function("def f(x): return x + 1"), function("def f(x): return x + 2")),
        (function("def f(x): return x + 1"), function("def f(x): return x + 1.0")),
        (function("def f(x): return x + 1"), function("def f(x): return x - 1")),
        (function("def f(x, n=1): return x"), function("def f(x, n=2): return x")),
        (function("def f(x, *, n=1): return x"), function("def f(x, *, n=2): return x")),
        (function("def f(x): return n", n=1), function("def f(x): return n", n=True)),
        (function("def f(x): return [n for _ in x]", n=0.0), function("def f(x): return [n for _ in x]", n=-0.0)),
        (function("def g(x): return 1\ndef f(x): return g(x)"), function("def g(x): return 2\ndef f(x): return g(x)")),
        (function("def f(x): return u.scale", u=USERS), function("def f(x): return u.unread", u=USERS)),
        (functools.partial(np.add, 1), functools.partial(np.add, 2)),
        (Kernel(1), Kernel(2)),
        (np.sqrt, np.cbrt),
        (np.sum, np.prod),
        ("x".join, "y".join),
        (cached, functools.lru_cache(lambda x: x + 1)),
    ],
)
def test_what_a_kernel_does_is_in_its_digest(one, two):
    assert describe_kernel(one) == describe_kernel(one)
    assert describe_kernel(one) != describe_kernel(two)


def test_where_a_function_stands_and_what_it_does_not_read_is_not():
    one = function("def f(x): return n + x", n=1, m=1)
    two = function("# moved\n\n\ndef f(x):\n    # said why\n    return n + x", n=1, m=2)
    assert describe_kernel(one) == describe_kernel(two)


def test_a_variable_of_the_users_module_is_seen_through_the_module():
    before = describe_kernel(f := function("def f(x): return u.scale", u=USERS))
    USERS.unread += 1
    assert describe_kernel(f) == before
    USERS.scale += 1
    assert describe_kernel(f) != before


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Point:
    x: float


TABLE = np.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (1, 1.0),
        ([1, 2], (1, 2)),
        ([1, [2]], [[1], 2]),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        (Colour.RED, Colour.BLUE),
        (Point(1), Point(2)),
        (TABLE, TABLE + 1),
        (TABLE, TABLE.astype("f4")),
        (TABLE, TABLE.reshape(4, 3)),
        (TABLE, np.asfortranarray(TABLE)),  # the bits of a sum depend on the order
        (TABLE.astype("<f8"), TABLE.astype(">f8")),
        (np.ma.masked_array(TABLE, TABLE > 3), np.ma.masked_array(TABLE, TABLE > 4)),
        (np.array([1, "x"], object), np.array([1, "y"], object)),
        (np.float32(1), np.float64(1)),
        (np.random.default_rng(1), np.random.default_rng(2)),
    ],
)
def test_what_a_value_holds_is_in_its_digest(one, two):
    assert describe(one) == describe(one)
    assert describe(one) != describe(two)


def test_an_array_is_its_content_wherever_it_lies():
    assert len({describe(array) for array in (TABLE, TABLE.copy(), pc.share(TABLE))}) == 1
    assert describe(np.repeat(TABLE, 2, axis=0)[::2]) == describe(TABLE)
    assert describe(np.zeros((0, 3))) != describe(np.zeros((0, 4)))
    assert describe(np.array(1.0)) == describe(np.array(1.0))


def test_a_deep_structure_is_refused_and_named():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TypeError, match="a list, has no content that could be compared"):
        describe(deep)
    while deep:  # taken apart from outside, which needs no depth
        deep = deep[0]
