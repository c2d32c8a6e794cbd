"""Turn a function with a truth into an experiment with a command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parcompute.values.sweep import Check


@dataclass(frozen=True, eq=False)
class Experiment:
    """A function of (executor, n_items, seed), the sizes at which it runs, and the truth it is held against.

    Make one with `parcompute.experiment`.

    Attributes
    ----------
    function : callable
        ``function(executor, n_items, seed)`` returns the result; with variants it has a fourth parameter ``variant``.
    sizes : mapping of str to tuple of int
        The numbers of items of each preset; ``"default"`` is one of them.
    truth : callable
        ``truth(result, n_items)`` returns a `parcompute.Check`.
    name : str
        Names the files of its results.
    question : str
        What it asks: the first line of its module.
    levels : mapping of str to tuple
        What is compared unless the command line says otherwise: ``variants``, ``backends``, ….
    """

    function: Callable[..., Any]
    sizes: Mapping[str, tuple[int, ...]]
    truth: Callable[[Any, int], Check]
    name: str
    question: str
    levels: Mapping[str, tuple[Any, ...]]

    def __call__(self, executor: Any, n_items: int, seed: int, **variant: str) -> Any:
        """Compute the result once."""
        return self.function(executor, n_items, seed, **variant)

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Run the command line of the experiment, and leave the program with its exit status.

        Parameters
        ----------
        argv : sequence of str, optional
            The arguments; None takes the program's.
        """
        from parcompute.experiments.command_line import command_line
        from parcompute.experiments.perform import Choice, perform

        command_line(
            self.name, self.question, self.sizes, self.levels, lambda **chosen: perform(self, Choice(**chosen)), argv
        )


def experiment(
    *,
    n_items: Mapping[str, int | Sequence[int]],
    truth: Callable[[Any, int], Check],
    variants: Sequence[str] = (),
    backends: Sequence[str] = ("serial", "processes", "pool", "joblib", "threads"),
    schedules: Sequence[str] = ("guided",),
    start_methods: Sequence[str] = ("forkserver",),
    blas_threads: Sequence[int] = (1,),
) -> Callable[[Callable[..., Any]], Experiment]:
    """Make an experiment of a function ``(executor, n_items, seed) -> result``.

    Parameters
    ----------
    n_items : mapping of str to int or sequence of int
        The size of each preset, or several sizes to compare. ``"quick"`` should take a fraction of a second on one
        core, ``"default"`` a second, ``"full"`` keep a node of 64 cores busy for as long.
    truth : callable
        ``truth(result, n_items)`` returns a `parcompute.Check` of the result against something that is known
        independently. No time of a run that fails it is ever shown.
    variants : sequence of str
        Ways of the experiment's own to compute the same result; the function gets one as ``variant``.
    backends, schedules, start_methods, blas_threads : sequence
        What is compared unless the command line says otherwise.

    Returns
    -------
    callable
        A decorator that returns an `Experiment`.

    Raises
    ------
    ValueError
        If there is no ``"default"`` size.
    """
    if "default" not in n_items:
        raise ValueError(f"n_items has the presets {', '.join(n_items) or 'none'}; give a 'default' one")
    sizes = {preset: (n,) if isinstance(n, int) else tuple(n) for preset, n in n_items.items()}
    levels = {
        "variants": tuple(variants),
        "backends": tuple(backends),
        "schedules": tuple(schedules),
        "start_methods": tuple(start_methods),
        "blas_threads": tuple(blas_threads),
    }

    def make(function: Callable[..., Any]) -> Experiment:
        module = inspect.getmodule(function)
        text = (getattr(module, "__doc__", None) or function.__doc__ or "").strip()
        return Experiment(function, sizes, truth, function.__name__, text.partition("\n")[0], levels)

    return make
