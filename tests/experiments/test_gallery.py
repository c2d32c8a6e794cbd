"""Each experiment at a tiny size: its truth holds, a wrong result is refused, and who computes is no matter."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parcompute as pc
from parcompute.experiments.measure import digest

FOLDER = Path(__file__).resolve().parents[2] / "experiments"


@dataclass(frozen=True)
class Tiny:
    """One experiment: a size that takes a moment, and what makes its result wrong."""

    n_items: int
    spoilt: Any
    executors: tuple[str, ...] = ("serial", "threads", "processes")


def first(result, by):
    """Change the first number of an array a little."""
    changed = np.array(result)
    changed.flat[0] += by
    return changed


TINY = {
    "nas_ep": Tiny(2**24, lambda r: (r[0] * (1 + 1e-11), r[1])),
    "mandelbrot": Tiny(96, lambda r: first(r, 1)),
    "nbody": Tiny(300, lambda r: first(r, 1e-3)),
    "linalg": Tiny(6, lambda r: first(r, 1e-4)),
    "ode": Tiny(6, lambda r: r + 1e-3, ("serial", "processes")),
    "integrate": Tiny(2**13, lambda r: r * 1.01),
    "bootstrap": Tiny(6, lambda r: r * [0.9, 1, 1.1]),
    "granularity": Tiny(2**12, lambda r: r + 1e-3),
    "startup": Tiny(8, lambda r: r + 1),
    "transports": Tiny(1_000, lambda r: (r[0] + 1, r[1]), ("serial",)),
    "concurrency": Tiny(4, lambda r: r - 1, ("serial",)),
}
OWN_TESTS = {"montecarlo", "stencil", "triad", "fft2"}


@pytest.fixture(params=TINY)
def name(request):
    return request.param


@pytest.fixture
def module(name, monkeypatch):
    """The experiment's module, under its name: what is pickled by reference is found in workers."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    yield module
    for made in vars(module).values():
        if hasattr(made, "cache_clear"):
            if made.__name__ == "standard_pool" and made.cache_info().currsize:
                made(2).shutdown()
            if made.__name__ in ("folder", "files") and made.cache_info().currsize:
                made().cleanup()
            made.cache_clear()
    if name == "transports":
        module.close()


def test_every_experiment_is_tested():
    assert {path.stem for path in FOLDER.glob("[!_]*.py")} == set(TINY) | OWN_TESTS


@pytest.mark.slow
def test_the_truth_holds_whoever_computes_and_a_wrong_result_is_refused(name, module):
    tiny, experiment = TINY[name], getattr(module, name)
    digests = set()
    for variant in experiment.levels["variants"] or ("",):
        asked = {"variant": variant} if variant else {}
        if variant == "joblib":  # its workers stay for minutes
            continue
        for backend in tiny.executors:
            with pc.Executor(1 if backend == "serial" else 2, backend=backend) as executor:
                result = experiment(executor, tiny.n_items, 1, **asked)
            digests.add(digest(result))
            if backend == "serial":
                check = experiment.truth(result, tiny.n_items)
                assert check.passes, check
                assert not experiment.truth(tiny.spoilt(result), tiny.n_items).passes
    assert len(digests) == 1


def test_it_asks_a_question_and_has_three_sizes(name, module):
    experiment = getattr(module, name)
    assert experiment.question.endswith(".")
    assert "?" in experiment.question
    quick, default, full = (max(experiment.sizes[preset]) for preset in ("quick", "default", "full"))
    assert quick <= default <= full
