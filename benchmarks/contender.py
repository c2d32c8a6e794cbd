"""What a contender is: an engine that answers the rows' questions, each as a generator of samples.

A *question* is a method, called once per row with the row's parameters. What it does before its first ``yield``
is preparation; each ``yield`` hands over one sample as ``(value, answer)``: the value in the row's unit, and the
result as a number where it is one, compared with the truth before. What follows in ``finally`` cleans up.
"""

from __future__ import annotations

import importlib
import math
import time
from functools import partial

import family
import tasks
from tasks import N_WORKERS


class Missing(Exception):
    """The engine cannot be imported here."""


class Contender:
    """An engine; its processes start once and serve all rows in which start-up is not measured."""

    package = ""  # what it stands on; empty for the standard library

    def __init__(self):
        if self.package:
            try:
                importlib.import_module(self.package)
            except ImportError as error:
                raise Missing(f"{self.package} cannot be imported ({error}); pip install {self.package}") from None

    def close(self):
        """End all that the contender has started."""


def samples(call, check, per=1, fresh=tuple):
    """Yield a sample per call: the seconds it took, divided by `per`. `fresh` makes its arguments, untimed."""
    while True:
        arguments = fresh()
        started = time.perf_counter()
        answer = call(*arguments)
        seconds = time.perf_counter() - started
        del arguments
        check(answer)
        number = answer if isinstance(answer, (int, float)) else None
        del answer  # dropped before the next call, as in a program that goes on
        yield seconds / per, number


class Engine(Contender):
    """An engine to which all questions are put in the same way, over a few verbs that each spells in its own."""

    # --- the verbs -----------------------------------------------------------------------------------------

    def each(self, function, items):
        """Return the results of one task per item, in any order."""
        raise NotImplementedError

    def batched(self, function, items):
        """Return the results in order, batched as the engine likes best."""
        raise NotImplementedError

    def share(self, x):
        """Return what tasks get in place of a big array."""
        raise NotImplementedError

    def unshare(self, handle):
        """Let go of it."""

    def touch(self, handle):
        """See to it that the array's pages are mapped somewhere: PSS counts no others."""

    def sums(self, handle, n_blocks, block_items, gate=None):
        """Return the sum of square roots of each block, in tasks of the size that suits the engine."""
        raise NotImplementedError

    def share_and_sum(self, x, n_blocks, block_items):
        """Do both; return the sums and what is to be unshared."""
        handle = self.share(x)
        return self.sums(handle, n_blocks, block_items), handle

    # --- the questions -------------------------------------------------------------------------------------

    def noop_blocks(self, n):
        return samples(lambda: sum(1 for _ in self.each(tasks.noop, range(n))), tasks.equal_to(n), per=n)

    def map_items(self, n):
        expected = list(range(n))
        return samples(lambda: list(self.batched(tasks.identity, range(n))), tasks.equal_to(expected), per=n)

    def short_jobs(self, n_jobs):
        def call():
            for _ in range(n_jobs):
                values = list(self.batched(tasks.noop, range(4)))
            return sum(values)

        return samples(call, tasks.equal_to(0.0), per=n_jobs)

    def pi(self, n_points, seed):
        edges = tasks.ranges(tasks.n_pi_blocks(n_points))
        work = partial(tasks.pi_hits_between, seed, n_points)
        return samples(lambda: sum(self.each(work, edges)), tasks.pi_from(n_points))

    def uneven(self, n_tasks, total_s):
        lengths, bound = tasks.durations(n_tasks, total_s, N_WORKERS)
        return samples(lambda: sorted(self.each(tasks.spin, lengths)), tasks.equal_to(sorted(lengths)), per=bound)

    def sum_shared(self, n_blocks):
        x = tasks.values()
        block_items = len(x) // n_blocks
        handle = self.share(x)
        try:
            yield from samples(
                lambda: math.fsum(self.sums(handle, n_blocks, block_items)), tasks.root_sum_of(x, n_blocks)
            )
        finally:
            self.unshare(handle)

    def sum_plain(self, n_blocks):
        source = tasks.values()
        block_items = len(source) // n_blocks
        handles = []

        def call(x):
            parts, handle = self.share_and_sum(x, n_blocks, block_items)
            handles.append(handle)
            return math.fsum(parts)

        def unshared(check, answer):
            self.unshare(handles.pop())
            check(answer)

        check = partial(unshared, tasks.root_sum_of(source, n_blocks))
        return samples(call, check, fresh=lambda: (source.copy(),))

    def extra_memory(self, n_bytes):
        n_blocks, n = 4096, n_bytes // 8

        def extra(n, idle):
            x = tasks.halves(n)
            check = tasks.root_sum_of(x, n_blocks)
            handle = self.share(x)
            del x
            self.touch(handle)
            gate = tasks.Gate(n_blocks // 2)
            held, answer = gate.look(
                family.own_bytes, lambda: math.fsum(self.sums(handle, n_blocks, n // n_blocks, gate))
            )
            check(answer)
            self.unshare(handle)
            return held - idle

        extra(2**20, 0)  # an idle worker is one that has worked
        idle = family.own_bytes()
        while True:
            yield extra(n, idle) / n_bytes, None
