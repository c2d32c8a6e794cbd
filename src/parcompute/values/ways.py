"""What the spans of a job on several nodes took: on their way, on their node, and inside the kernels of blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parcompute.values.parts import works_on
from parcompute.values.timeline import Timeline

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Way:
    """What the spans of one node take beside their chunks, in nanoseconds.

    Attributes
    ----------
    first : float
        How much longer the first one is on its way: with the job and its inputs.
    out, back : tuple of (float, float)
        From the caller to the node, and from the node's last result until the caller has stored them: of any span, and
        more for each block of it.
    around : float
        On the node, from when it could begin until its first kernel did, and from its last result until it is done.
    """

    first: float
    out: tuple[float, float]
    back: tuple[float, float]
    around: float

    @classmethod
    def of(cls, timeline: Timeline, node: np.void) -> Way:
        """Read them off the spans of a node, at least one."""
        spans, chunks = _of_node(timeline, node)
        sizes = spans["stop"] - spans["first"]
        took = spans["arrived_ns"] - spans["sent_ns"]
        out = _line(sizes[1:], took[1:]) if len(spans) > 1 else (max(0.0, float(took[0])), 0.0)
        of_span = _span_of(spans, chunks)
        could = np.maximum(spans["arrived_ns"], np.append(spans["arrived_ns"][0], spans["finished_ns"][:-1]))
        around = [
            chunks["started_ns"][of_span == i].min() - could[i]
            + spans["finished_ns"][i] - chunks["stored_ns"][of_span == i].max()
            for i in np.unique(of_span)
        ]  # fmt: skip
        return cls(
            first=max(0.0, float(took[0]) - out[0] - out[1] * float(sizes[0])),
            out=out,
            back=_line(sizes, spans["received_ns"] - spans["finished_ns"]),
            around=max(0.0, float(np.median(around))) if around else 0.0,
        )


def _line(x: Ints, y: Ints) -> tuple[float, float]:
    """Return intercept and slope through points by medians (Theil 1950, Sen 1968), neither below 0."""
    every = 1 + len(x) // 1000
    x, y = x[::every].astype(float), y[::every].astype(float)
    i, j = np.triu_indices(len(x), 1)
    apart = x[i] != x[j]
    i, j = i[apart], j[apart]
    slope = max(0.0, float(np.median((y[j] - y[i]) / (x[j] - x[i])))) if len(i) else 0.0
    return max(0.0, float(np.median(y - slope * x))), slope


def _span_of(spans: npt.NDArray[np.void], chunks: npt.NDArray[np.void]) -> npt.NDArray[np.intp]:
    """Return for each chunk of a node its span: a node computes one after the other, in the order of their arrival."""
    ends = np.maximum.accumulate(spans["finished_ns"])
    return np.minimum(np.searchsorted(ends, chunks["stored_ns"]), len(spans) - 1)


def kernel_ns_of_blocks(timeline: Timeline, n_blocks: int) -> Floats:
    """Return the kernel time of each block in nanoseconds, that of a span shared by its blocks alike.

    Returns
    -------
    ndarray of float, shape (n_blocks,)
        NaN for a block that is in no span.
    """
    took = np.full(n_blocks, np.nan)
    for node in timeline.nodes:
        spans, chunks = _of_node(timeline, node)
        if not len(spans):
            continue
        of_span = _span_of(spans, chunks)
        inside = np.bincount(of_span, chunks["finished_ns"] - chunks["started_ns"], len(spans))
        for first, stop, ns in zip(spans["first"].tolist(), spans["stop"].tolist(), inside.tolist(), strict=True):
            took[max(0, first) : max(0, stop)] = ns / max(1, stop - first)
    return took


def _of_node(timeline: Timeline, node: np.void) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    spans = timeline.spans[timeline.spans["node"] == node["node"]]
    return spans, timeline.chunks[works_on(node, timeline.chunks["worker"])]
