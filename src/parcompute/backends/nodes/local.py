"""A node in the caller's own process: messages are handed over as they are."""

from __future__ import annotations

from collections.abc import Callable

from parcompute.backends.nodes import wire
from parcompute.backends.nodes.server import Server


class Local:
    """The one node of an engine, or the one that is this process.

    Parameters
    ----------
    number : int
        Of the node.
    heard : callable
        As for `parcompute.backends.nodes.peers.Engine.open`.
    n_cpus : int, optional
        CPUs that are its part of the host.
    """

    def __init__(
        self, number: int, heard: Callable[[int, wire.Message | None], None], n_cpus: int | None = None
    ) -> None:
        self._server = Server(lambda message: heard(number, message), n_cpus)

    def send(self, message: wire.Message) -> None:
        """Hand a message over."""
        self._server.hear(message)

    def close(self) -> None:
        """Wait until it has ended, which it has been asked to."""
        self._server.join()
