"""Experiments and kernels that lie in a file: take advice for them, and write a new one to begin from."""

from __future__ import annotations

import keyword
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parcompute import job as jobs
from parcompute.blocks import Block
from parcompute.experiment import Experiment

if TYPE_CHECKING:
    from parcompute.advice import Advice

TEMPLATE = Path(__file__).with_name("template.py.txt")


def advice_for(target: str, arrays: Sequence[str], n_items: int | None, workers: int | None) -> Advice:
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
    import numpy as np

    from parcompute import advice

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
        return advice.of_experiment(found.function, size, 1, workers, **asked)
    if not arrays and n_items is None:
        raise ValueError(f"{name} is a kernel: pass .npy files whose rows it gets, or --n-items")
    inputs = [np.load(path, mmap_mode="r") for path in arrays]
    if not inputs and not jobs.asked_for(found) and len(jobs.positional(found)) == 1:
        found = _Calls(found)
    return advice.advise(found, *inputs, n_items=None if inputs else n_items, workers=workers)


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
    if path.exists():
        raise ValueError(f"{path}: exists already; choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(TEMPLATE.read_text(encoding="utf-8").replace("NAME", name), encoding="utf-8")
    return path
