"""Functions that `functools` has wrapped travel by value, and what cannot travel is named as deep as it sits."""

import contextvars
import functools
import multiprocessing
import pickle
import queue
import socket
import sqlite3
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import numpy as np
import pytest

from parcompute.jobs import pickling

# As if it were the main module, which no worker can import.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def arrived(function):
    """Return a function as it arrives in a worker."""
    return pickling.loads(pickling.dumps((function, (), {}), "the call")[0])[0]


def returned(result):
    """Return a result as it comes back."""
    return pickle.loads(pickling.dumps_back(result))


@functools.lru_cache(maxsize=7, typed=True)
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


@functools.singledispatch
def flat(x):
    return [x]


@flat.register(list)
@flat.register(tuple)
def _(x):
    return [y for part in x for y in flat(part)]


@functools.wraps(flat)
def flat_and_told(x):
    return flat(x)


class Property(functools.cached_property):
    """One of the user's own kind."""


class Model:
    def __init__(self, n):
        self.n = n

    @functools.cached_property
    def weights(self):
        """Some weights."""
        return [self.n] * 3

    @Property
    def n_weights(self):
        return len(self.weights)

    @functools.singledispatchmethod
    def of(self, x):
        return x * self.n

    @of.register
    def _(self, x: str):
        return self.of(len(x))

    @functools.cache  # noqa: B019 (as many a user writes it)
    def power(self, exponent):
        return self.n**exponent


@pytest.mark.parametrize("way", [arrived, returned])
def test_a_cached_function_travels_with_an_empty_cache_of_its_kind(way):
    fibonacci.said = "so"
    fibonacci(20)
    copy = way(fibonacci)
    assert copy is not fibonacci
    assert copy.cache_info() == (0, 0, 7, 0)
    assert copy(20) == 6765
    assert copy.cache_info().currsize == 7  # it calls itself, and not another
    assert copy.cache_parameters() == {"maxsize": 7, "typed": True}
    assert (copy.said, copy.__name__, copy.__module__) == ("so", "fibonacci", __name__)


def test_a_cached_lambda_and_a_cached_partial_travel():
    assert arrived(functools.cache(lambda x: x + 1))(2) == 3
    assert arrived(functools.cache(functools.partial(pow, 2)))(3) == 8


def test_a_cached_function_of_an_importable_module_goes_by_name():
    from fnmatch import _compile_pattern

    assert arrived(_compile_pattern) is _compile_pattern


@pytest.mark.parametrize("function", [flat, flat_and_told])
@pytest.mark.parametrize("way", [arrived, returned])
def test_a_generic_function_travels_with_its_registry(function, way):
    flat([1])  # its cache is not empty
    copy = way(way(function))  # there and back
    assert copy([1, (2, [3]), "x"]) == [1, 2, 3, "x"]
    copy.register(str, list)
    assert copy("ab") == ["a", "b"]
    assert flat("ab") == ["ab"]


def test_a_class_travels_with_its_cached_properties_and_generic_methods():
    model = Model(2)
    power, of = arrived(model.power), arrived(model.of)
    assert (power(3), of(2.0), of("abc")) == (8, 4.0, 6)
    kind = arrived(lambda: (Model(3).weights, Model(3).n_weights, Model.weights.__doc__, Model.weights.attrname))
    assert kind() == ([3, 3, 3], 3, "Some weights.", "weights")


# --- what cannot travel ------------------------------------------------------------------------------------

A_CONTEXT = contextvars.Context()
WEAK = weakref.WeakValueDictionary()
SETTINGS = {"doors": {"front": threading.Lock()}}
QUEUE = queue.Queue()
LOCAL = threading.local()
A_FRAME = sys._getframe()
SEMAPHORE = multiprocessing.get_context("spawn").Semaphore()


class Guarded:
    __slots__ = ("door",)

    def __init__(self):
        self.door = threading.Lock()


class House:
    def __init__(self):
        self.rooms = np.zeros(3)
        self.guarded = Guarded()

    def enter(self, x):
        return x


def settings():
    return SETTINGS


def said_of(function, *args):
    with pytest.raises(pickling.CannotTravel, match="the call cannot travel to a worker: ") as caught:
        pickling.dumps((function, args, {}), "the call")
    return str(caught.value).partition(": ")[2]


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda: settings(), r"its variable 'settings', its variable 'SETTINGS', its item 'doors', its item 'front', "),
        (lambda: [SETTINGS for _ in (lambda: SETTINGS)()], r"its variable 'SETTINGS', its item 'doors', "),
        (House().enter, r"its attribute 'guarded', its attribute 'door', a lock, "),
        (functools.partial(len, [House()]), r"its argument 0, its item 0, its attribute 'guarded', "),
        (functools.partial(len, x=House()), r"its argument 'x', its attribute 'guarded', "),
        (functools.cache(settings), r"its variable 'SETTINGS', "),
    ],
    ids=["function", "nested", "method", "partial", "keyword", "cached"],
)
def test_what_cannot_travel_is_named_as_deep_as_it_sits(function, named):
    assert said_of(function).startswith(named.rstrip())


def test_an_argument_that_cannot_travel_is_named_as_deep_as_it_sits():
    assert said_of(len, [1, {"b": iter_of_three()}]).startswith("args[0], its item 1, its item 'b', a generator, ")


def iter_of_three():
    yield from range(3)


@pytest.mark.parametrize(
    ("function", "advice"),
    [
        (lambda: A_CONTEXT, "pass the values of its variables"),
        (lambda: WEAK, "pass an ordinary object, or dictionary"),
        (lambda: SETTINGS, "leave it out"),
        (lambda: QUEUE, "take a queue of a multiprocessing.Manager"),
        (lambda: SEMAPHORE, "take one of a multiprocessing.Manager"),
        (iter_of_three(), "pass a list of its items"),
        (lambda x=LOCAL: x, "create one inside the kernel"),
        (lambda: A_FRAME, "pass its text"),
    ],
)
def test_the_advice_fits_the_kind_of_thing(function, advice):
    assert advice in (said_of(function) if callable(function) else said_of(len, function))


def test_connections_pools_and_executors_get_an_advice_of_their_own():
    with socket.socket() as door, ThreadPoolExecutor(1) as pool:
        assert "once per worker" in said_of(lambda: door)
        assert "pass what it returns" in said_of(lambda: pool)
    base = sqlite3.connect(":memory:")
    assert "once per worker" in said_of(lambda: base)
    base.close()


def test_whatever_a_reduce_of_the_users_raises_names_the_variable():
    class Refuses:
        def __reduce__(self):
            raise ValueError("not this one")

    refuses = Refuses()
    assert said_of(lambda: refuses).startswith("its variable 'refuses', a Refuses, cannot be pickled (not this one)")


def test_a_search_shares_no_arrays(monkeypatch):
    large = np.zeros(2**18)

    def kernel():
        return large, SETTINGS

    monkeypatch.setattr(pickling.shared.Arena, "fill", None)
    assert "'SETTINGS'" in said_of(kernel)
