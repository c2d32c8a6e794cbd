"""Code of the user that raises SystemExit where results are taken costs its own future, and nobody waits for ever."""

import sys

import cloudpickle
import pytest

import parcompute as pc

# The workers of a test session can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def leave(kind):
    raise kind("told")


class Unbuilt:
    """A result, or an argument of an exception, that raises when it is rebuilt."""

    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        return leave, (self.kind,)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, ValueError])
@pytest.mark.parametrize("backend", ["processes", "pool"])
def test_a_result_that_cannot_be_rebuilt_costs_its_future_only(backend, kind):
    with pc.Executor(1, backend=backend) as executor:
        bad, good = executor.submit(Unbuilt, kind), executor.submit(abs, -1)
        assert type(bad.exception(60)) is kind
        assert good.result(60) == 1
        with pytest.raises(kind):
            list(executor.map(Unbuilt, [kind], timeout=60))
        assert executor.reduce_blocks(lambda block: 1, n_items=3, block_items=1) == 3


@pytest.mark.parametrize("backend", ["processes", "pool"])
def test_a_callback_that_raises_systemexit_ends_no_thread_of_ours(backend, capfd):
    with pc.Executor(1, backend=backend) as executor:
        gate = executor.submit(sum, range(10**6))  # so that the callback is there before the result
        future = executor.submit(abs, -1)
        future.add_done_callback(lambda _: leave(SystemExit))
        assert (gate.result(60), future.result(60)) == (499999500000, 1)
        assert executor.submit(abs, -2).result(60) == 2


def test_an_exception_that_cannot_be_rebuilt_arrives_as_text():
    class Bad(Exception):
        def __reduce__(self):
            return leave, (SystemExit,)

    def fail(block):
        raise Bad("told")

    with pc.Executor(1) as executor:
        with pytest.raises(pc.KernelError, match="Bad: told"):
            executor.reduce_blocks(fail, n_items=1)
        assert executor.submit(abs, -1).result(60) == 1
