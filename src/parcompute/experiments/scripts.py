"""Experiments and kernels that lie in a file: take advice for them, and write a new one to begin from."""

from __future__ import annotations

import keyword
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parcompute.executor import advice
from parcompute.executor.executor import Executor
from parcompute.experiments.experiment import Experiment
from parcompute.jobs.job import asked_for, positional
from parcompute.values.blocks import Block

TEMPLATE = Path(__file__).with_name("template.py.txt")


def advice_for(target: str, arrays: Sequence[str], n_items: int | None, workers: int | None) -> advice.Advice:
    """Return how to run what a file defines.

    Parameters
    ----------
    target : str
        ``FILE.py::NAME``, of an experiment or of a kernel of one block.
    arrays : sequence of str
        Files of NumPy (``.npy``), whose rows a kernel gets.
    n_items : int or None
        Size of the problem; for an experiment None is that of its preset "default".
    workers : int or None
        The most to use.

    Raises
    ------
    ValueError
        If the file has no such function, or it is not said what a kernel runs on.
    """
    file, _, name = target.partition("::")
    if not name:
        raise ValueError(f"{target!r} names no function; pass FILE.py::NAME")
    if not Path(file).is_file():
        raise ValueError(f"{file}: does not exist; check the name")
    sys.path.insert(0, str(Path(file).parent.resolve()))
    # As a program's own main module: what it defines then travels to workers by value.
    found: Any = runpy.run_path(file, run_name="__parcompute_advise__").get(name)
    if not callable(found):
        raise ValueError(f"{file}: has no function {name}; check the name")
    if isinstance(found, Experiment):
        size = n_items or max(found.sizes["default"])
        asked = {"variant": found.levels["variants"][0]} if found.levels["variants"] else {}
        return advice_for_experiment(found.function, size, 1, workers, **asked)
    if not arrays and n_items is None:
        raise ValueError(f"{name} is a kernel: pass .npy files whose rows it gets, or --n-items")
    inputs = [_rows_of(path) for path in arrays]
    if not inputs and not asked_for(found) and len(positional(found)) == 1:
        found = _Calls(found)
    return advice.advise(found, *inputs, n_items=None if inputs else n_items, workers=workers)


def _rows_of(path: str) -> Any:
    import numpy as np

    try:
        return np.load(path, mmap_mode="r")  # which runs no pickle
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: is no array of numbers in a .npy file ({error}); make one with numpy.save") from None


class _Captured(Exception):
    """What an experiment asked of its executor first; raised instead of computing it."""

    def __init__(self, kernel: Any, arrays: tuple[Any, ...], given: dict[str, Any]) -> None:
        super().__init__("captured")
        self.kernel, self.arrays, self.given = kernel, arrays, given


class _Capturing(Executor):
    """An executor that computes nothing and says what it was asked for."""

    def map_blocks(self, kernel: Any, *arrays: Any, **given: Any) -> Any:
        """Raise what was asked for."""
        raise _Captured(kernel, arrays, given)

    def reduce_blocks(self, kernel: Any, *arrays: Any, **given: Any) -> Any:
        """Raise what was asked for."""
        raise _Captured(kernel, arrays, {name: value for name, value in given.items() if name != "combine"})


def advice_for_experiment(
    function: Callable[..., Any], n_items: int, seed: int, workers: int | None = None, **asked: Any
) -> advice.Advice:
    """Return the advice for the first job of an experiment's function.

    Raises
    ------
    ValueError
        If it calls neither `map_blocks` nor `reduce_blocks`.
    """
    try:
        with _Capturing(backend="serial") as executor:
            function(executor, n_items, seed, **asked)
    except _Captured as found:
        given = {name: value for name, value in found.given.items() if name not in ("halo", "checkpoint")}
        if found.given.get("halo"):
            raise ValueError("its first job has a halo, which advise does not sample; pass the kernel itself") from None
        return advice.advise(found.kernel, *found.arrays, workers=workers, **given)
    raise ValueError("it calls neither map_blocks nor reduce_blocks; pass a kernel of one block")


@dataclass(frozen=True, slots=True)
class _Calls:
    """A function of one number, called for each item of a block, as `Executor.map` would."""

    function: Callable[[int], Any]

    def __call__(self, block: Block) -> list[Any]:
        """Call it for each."""
        return [self.function(i) for i in range(block.start, block.stop)]


def write_template(name: str, folder: Path) -> Path:
    """Write an experiment that runs at once, and return its file.

    Raises
    ------
    ValueError
        If the name is none, or the file exists.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{name!r} cannot name a function; pass letters, digits and underscores, like heat_2d")
    path = folder / f"{name}.py"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as stream:  # never through a link to somewhere else
            stream.write(TEMPLATE.read_text(encoding="utf-8").replace("NAME", name))
    except FileExistsError:
        raise ValueError(f"{path}: exists already; choose another name") from None
    return path
