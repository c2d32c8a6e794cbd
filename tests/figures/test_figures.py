"""Figures show what the runs tell and say under which conditions; nothing collides, and the bytes never change."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from parcompute.analysis import laws
from parcompute.analysis.losses import losses
from parcompute.analysis.simulate import predict
from parcompute.analysis.studies import Study, choose, fit_limit, studies
from parcompute.figures import captions, curves, ledgers, pages, panels
from parcompute.machine.provenance import Provenance
from parcompute.record.record import Record, Recorded, read
from parcompute.values.sweep import Configuration, Run
from parcompute.values.timeline import CHUNK_DTYPE, NODE_DTYPE, SPAN_DTYPE, WORKER_DTYPE, Timeline

CONDITIONS = Provenance(
    cpu_model="Imaginary 9000 64-Core Processor",
    usable_cpus=64,
    n_threads=64,
    n_cores=64,
    clock="time.perf_counter_ns: clock_gettime(CLOCK_MONOTONIC)",
)
NAMES = {"processes": "forkserver", "pool": "forkserver"}


def a_timeline(wall_s: float, n_workers: int, kernel_s: float, cpu_s: float) -> Timeline:
    """Return one chunk per worker: `kernel_s` and `cpu_s` in all, late start, early end."""
    end, each, cpu = (round(x * 1e9) for x in (wall_s, kernel_s / n_workers, cpu_s / n_workers))
    begin = min(round(0.01 * end), end - each)
    chunks = [(i, i, 0, begin, begin + each, cpu, begin + each + (end - begin - each) // 3) for i in range(n_workers)]
    workers = [(i, 100 + i, begin // 2) for i in range(n_workers)]
    return Timeline(0, begin // 4, end, np.array(chunks, CHUNK_DTYPE), np.array(workers, WORKER_DTYPE))


def a_run(
    backend: str,
    n_workers: int,
    wall_s: float,
    round_: int = 0,
    *,
    kind: str = "strong",
    n_items: int = 2**20,
    schedule: str = "guided",
    faster: float = 1.0,
    timed: bool = True,
) -> Run:
    c = Configuration(backend, n_workers, 1, schedule, NAMES.get(backend, ""), kind, n_items)
    faster = 1.0 if backend == "serial" else faster
    kernel_s = min(8.0 * (1.02 ** math.log2(n_workers)) / faster, 0.97 * wall_s * n_workers)
    return Run(
        configuration=c,
        round=round_,
        seed=1,
        block_items=4096,
        n_chunks=40,
        wall_s=wall_s,
        startup_s=0.1,
        cpu_s=wall_s,
        digest="f" * 64,
        value=1.0,
        error=0.0,
        tolerance=1e-3,
        verified=True,
        disturbed="",
        started_utc="2025-01-01T00:00:00+00:00",
        provenance=CONDITIONS.id,
        timelines=(a_timeline(wall_s, n_workers, kernel_s, 0.99 * kernel_s),) if timed else (),
    )


def a_file(*runs: Run, provenance: Provenance = CONDITIONS, **others: Provenance) -> Recorded:
    conditions = {p.id: p.as_dict() for p in (provenance, *others.values())}
    runs = tuple(run if run.provenance in conditions else replace(run, provenance=provenance.id) for run in runs)
    return Recorded(Path("montecarlo.h5"), "montecarlo", "2025-01-01T00:00:00+00:00", runs, conditions, ())


def a_sweep(
    counts: tuple[int, ...] = (1, 2),
    backends: tuple[str, ...] = ("processes", "pool", "joblib", "threads"),
    *,
    n_rounds: int = 6,
    serial: bool = True,
    cv: float = 0.01,
    s: float = 0.02,
    usable: int | None = None,
    law=laws.amdahl,
    **how,
) -> Recorded:
    """Runs of each backend, the later ones with a larger serial fraction, that scatter around a law."""
    rng = np.random.default_rng(0)
    runs = []
    for round_ in range(n_rounds):
        noise = lambda: float(rng.lognormal(0, cv))  # noqa: E731
        if serial:
            runs.append(a_run("serial", 1, 8.2 * noise(), round_, **how))
        for i, backend in enumerate(backends):
            runs += [a_run(backend, N, 8.3 / float(law(N, s * (i + 1))) * noise(), round_, **how) for N in counts]
    n = max(counts) if usable is None else usable
    return a_file(*runs, provenance=replace(CONDITIONS, usable_cpus=n, n_cores=n, n_threads=n))


def all_runs(recorded: Recorded, **changes) -> Recorded:
    return replace(recorded, runs=tuple(replace(run, **changes) for run in recorded.runs))


def some_runs(recorded: Recorded, every: int, **changes) -> Recorded:
    runs = (run if i % every else replace(run, **changes) for i, run in enumerate(recorded.runs))
    return replace(recorded, runs=tuple(runs))


FOUR = ("processes", "pool", "joblib", "threads")
POWERS = (1, 2, 4, 8, 16, 32, 64)
COLLAPSE = lambda N, s: laws.usl(N, 5 * s, s / 2)  # noqa: E731
BUSY = "3 threads of others runnable at its end, room for 0; 2.5 % of its CPU time stolen by the hypervisor"


def weak() -> Recorded:
    at = {"kind": "weak", "timed": False}
    runs = [
        a_run("processes", N, 8 * (1 + 0.02 * math.log2(N) + 0.004 * round_), round_, n_items=2**20 * N, **at)
        for round_ in range(6)
        for N in (1, 2, 4, 8)
    ]
    return a_file(*runs, a_run("serial", 1, 7.9), provenance=replace(CONDITIONS, usable_cpus=8, n_cores=8))


def hardware_threads() -> Recorded:
    here = replace(CONDITIONS, usable_cpus=8, n_cores=4)
    runs = (replace(run, provenance=here.id) for run in a_sweep((1, 2, 4, 8), FOUR[:2]).runs)
    return a_file(*runs, provenance=here)


def unknown_machine() -> Recorded:
    nowhere = Provenance()
    return a_file(*(replace(run, provenance=nowhere.id) for run in a_sweep().runs), provenance=nowhere)


def nodes() -> Recorded:
    """Both vary: 1, 2 and 4 workers on each of 1 and 2 nodes; then 4 on each of 1, 2 and 4, whose number N tells."""
    shapes = [("mpi", n * k, k) for n in (1, 2, 4) for k in (1, 2)] + [("dask", n, k) for n, k in ((1, 1), (4, 1))]
    runs = []
    for round_ in range(6):
        runs.append(a_run("serial", 1, 8.2 + 0.01 * round_, round_))
        for backend, n_workers, n_nodes in [*shapes, ("dask", 8, 2), ("dask", 16, 4)]:
            wall_s = (8.3 + 0.02 * round_) / laws.amdahl(n_workers, 0.02) + 0.05 * n_nodes
            run = a_run(backend, n_workers, float(wall_s), round_)
            timelines = tuple(on_nodes(timeline, n_nodes) for timeline in run.timelines)
            configuration = replace(run.configuration, n_nodes=n_nodes)
            runs.append(replace(run, configuration=configuration, timelines=timelines))
    return a_file(*runs, provenance=replace(CONDITIONS, usable_cpus=4, n_cores=4, n_threads=4))


def on_nodes(timeline: Timeline, n_nodes: int) -> Timeline:
    """Return the same with a span for each worker, the nodes one after the other."""
    if n_nodes == 1:
        return timeline
    n_workers, chunks = timeline.n_workers // n_nodes, timeline.chunks
    spans = np.zeros(len(chunks), SPAN_DTYPE)
    spans["node"], spans["first"], spans["stop"] = chunks["worker"] // n_workers, chunks["chunk"], chunks["chunk"] + 1
    spans["sent_ns"], spans["arrived_ns"] = timeline.submitted_ns, chunks["started_ns"] * 9 // 10
    spans["finished_ns"] = chunks["stored_ns"]
    spans["received_ns"] = (chunks["stored_ns"] + timeline.completed_ns) // 2
    nodes = np.array([(i, i * n_workers, n_workers, 0, 1_000) for i in range(n_nodes)], NODE_DTYPE)
    return replace(timeline, nodes=nodes, spans=spans)


def schedules() -> Recorded:
    files = [a_sweep((1, 2, 4), ("processes", "pool"), schedule=name) for name in ("static", "dynamic,16", "guided")]
    return replace(files[0], runs=tuple(run for file in files for run in file.runs))


CASES = {
    "two cores": a_sweep(),
    "two cores, ranges": a_sweep(n_rounds=3),
    "one round": a_sweep(n_rounds=1),
    "four cores": a_sweep((1, 2, 3, 4)),
    "a node": a_sweep(POWERS),
    "a node, every count": a_sweep(tuple(range(1, 33))),
    "a node, few chunks": a_sweep((1, 12, 24, 48, 64), FOUR[:2], schedule="static"),
    "no multiples": a_sweep((1, 2, 4, 8, 12)),
    "more workers than CPUs": a_sweep((1, 2, 4, 8, 16), FOUR, usable=4),
    "hardware threads": hardware_threads(),
    "one backend": a_sweep((1, 2, 4, 8), FOUR[:1]),
    "one count": a_sweep((1,)),
    "one run": a_sweep((2,), FOUR[:1], n_rounds=1, serial=False),
    "no serial": a_sweep((1, 2, 4), serial=False),
    "no one worker": a_sweep((2, 4, 8), FOUR[:2], serial=False),
    "collapse": a_sweep(POWERS, FOUR, law=COLLAPSE),
    "noise": a_sweep(POWERS, FOUR, cv=0.3),
    "disturbed": some_runs(a_sweep((1, 2, 4), FOUR), 5, disturbed=BUSY),
    "disturbed all day": all_runs(a_sweep(backends=FOUR[:2]), disturbed=BUSY),
    "faster than the reference": a_sweep(faster=1.15),
    "no timelines": a_sweep(timed=False),
    "schedules": schedules(),
    "weak": weak(),
    "nodes": nodes(),
    "NaN": some_runs(a_sweep(), 7, value=math.nan, error=math.nan, verified=False, wall_s=math.nan),
    "unknown machine": unknown_machine(),
}


# ── nothing collides ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("case", CASES)
def test_figures_can_be_read_and_say_their_units_and_their_base(case: str) -> None:
    chosen = choose(CASES[case])
    with pages.own_style():
        page = {kind: pages.compose(panels.PANELS[kind].make(chosen)) for kind in panels.available(chosen)}
    for figure in page.values():
        assert_readable(figure)
    assert_every_axis_says_its_unit(page)
    assert_every_figure_names_the_base_with_time_unit_and_interval(chosen, page)


REFERENCE = Path(__file__).parents[2] / "results" / "reference"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("granularity", "chunk-size"),
        ("linalg", "grid"),
        ("concurrency", "ratios"),
        ("startup", "ratios"),
        ("stencil", "timeline"),
        ("bootstrap", "karp-flatt"),
        ("bootstrap", "ratios"),
        ("mandelbrot", "chunk-size"),
        ("mandelbrot", "speedup"),
        ("transports", "sizes"),
        ("montecarlo", "prediction"),
    ],
)
def test_no_text_overlaps_on_the_figures_of_the_gallery(name: str, kind: str) -> None:
    recorded = read(REFERENCE / f"{name}.h5", timelines=True)
    newest = choose(recorded, conditions="newest")
    if kind == "sizes":
        panel = panels.of_sizes(studies(recorded))
    elif kind == "prediction":
        counts = tuple(2**k for k in range(11))
        panel = panels.of_prediction(newest, predict(newest.runs, "processes", counts, ("guided", "static")))
    else:
        panel = panels.PANELS[kind].make(newest)
    with pages.own_style():
        assert_readable(pages.compose(panel))


def test_ways_of_several_backends_are_named_with_theirs() -> None:
    panel = panels.PANELS["ratios"].make(choose(read(REFERENCE / "bootstrap.h5"), conditions="newest"))
    ax = Figure().add_axes((0, 0, 1, 1))
    panel.draw(ax)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert len(set(names)) == len(names) == 5
    assert {name.split()[0] for name in names} == {"joblib", "processes"}


def assert_readable(figure: Figure) -> None:
    """No text overlaps another, all is inside of the page, which is one column wide, and no letter too small."""
    with pages.own_style():
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
        boxes = {text: text.get_window_extent(renderer) for text in texts if is_drawn(text, figure)}
    assert len(boxes) > 2
    for (a, first), (b, second) in itertools.combinations(boxes.items(), 2):
        overlap = min(first.x1, second.x1) > max(first.x0, second.x0) and min(first.y1, second.y1) > max(
            first.y0, second.y0
        )
        assert not overlap, f"{a.get_text()!r} and {b.get_text()!r}"
    for text, box in boxes.items():
        assert box.x0 >= 0 and box.y0 >= 0, text  # noqa: PT018
        assert box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, text  # noqa: PT018
    assert figure.get_size_inches()[0] == pages.WIDTH
    assert min(text.get_fontsize() for text in boxes) >= 7


def is_drawn(text: Text, figure: Figure) -> bool:
    """Tell whether a text is on the page: axes that are off, and ticks beyond the limits, are not."""
    for ax in figure.axes:
        if text in ax.findobj(Text) and text not in ax.texts and not ax.axison:
            return False
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                if text in (tick.label1, tick.label2) and not low <= tick.get_loc() <= high:
                    return False
    return True


def assert_every_axis_says_its_unit(page: dict[str, Figure]) -> None:
    axes = {kind: figure.axes[0] for kind, figure in page.items()}
    labels = {kind: (ax.get_xlabel(), ax.get_ylabel()) for kind, ax in axes.items() if ax.axison}
    assert labels["speedup"][0] == labels["efficiency"][0] == "workers"
    assert labels["speedup"][1].endswith("1 = base")
    assert labels["efficiency"][1] == "efficiency, % of ideal"
    share, whose = labels.get("ledger", UNITS["ledger"])
    assert (share, whose.removesuffix(" on nodes")) == UNITS["ledger"]
    for kind in labels.keys() & UNITS.keys():
        assert all(map(str.startswith, labels[kind], UNITS[kind]))


def assert_every_figure_names_the_base_with_time_unit_and_interval(chosen: Study, page: dict[str, Figure]) -> None:
    for kind in page.keys() & {"speedup", "efficiency", "karp-flatt", "ledger"}:
        said = " ".join(text.get_text() for text in page[kind].texts)
        for curve in chosen.curves:
            wall = curve.base.wall.median
            spread = f"({'range' if wall.is_range else '95 %'} {wall.low:.4g}–{wall.high:.4g}) s"
            assert f"{wall.value:.4g} {spread}" in " ".join(said.split())


UNITS = {
    "karp-flatt": ("workers", "apparent serial fraction, %"),
    "ledger": ("share of all core-seconds, %", "workers"),
    "timeline": ("time since the call, ", "worker"),
    "ratios": ("time / time of ", ""),
}


# ── what is drawn ─────────────────────────────────────────────────────────────────────────────────────


def drawn(case: str, kind: str = "speedup"):
    chosen = choose(CASES[case])
    ax = Figure().add_axes((0, 0, 1, 1))
    draw = curves.speedup if kind == "speedup" else curves.efficiency
    draw(ax, chosen.curves, usable_cpus=chosen.provenance.usable_cpus)
    return chosen, ax


def marks(ax, *, hollow: bool | None = None) -> list:
    """Return the marked points, not the small ones of runs and not those of the legend."""
    found = [line for line in ax.lines if len(line.get_xdata()) == 1 and line.get_marker() in "osD^"]
    found = [line for line in found if line.get_markersize() == 3.6]
    return [line for line in found if hollow is None or (line.get_markerfacecolor() == "white") == hollow]


def labels(ax) -> list[str]:
    return ax.get_legend_handles_labels()[1]


def test_each_point_has_its_mark_its_interval_and_its_runs() -> None:
    chosen, ax = drawn("two cores")
    assert len(marks(ax)) == len(ax.containers) == 4 * 2
    values = sorted(float(line.get_ydata()[0]) for line in marks(ax))
    assert values == sorted(point.speedup.value for curve in chosen.curves for point in curve.points)
    runs = [line for line in ax.lines if line.get_markersize() == 1.7]
    assert sum(len(line.get_ydata()) for line in runs) == 4 * 2 * 6
    for bar, point in zip(ax.containers, (p for c in chosen.curves for p in c.points), strict=True):
        ends = bar.lines[2][0].get_segments()[0][:, 1]
        assert ends == pytest.approx([point.speedup.low, point.speedup.high])


def test_points_are_never_joined_and_two_counts_have_no_model() -> None:
    chosen, ax = drawn("two cores")
    assert labels(ax) == ["joblib", "pool", "processes", "threads", "ideal"]
    assert "Amdahl's law not identifiable from 2 points" in captions.of_curves(chosen)


def test_at_two_counts_no_two_backends_stand_at_the_same_place() -> None:
    _, ax = drawn("two cores")
    places = sorted(float(line.get_xdata()[0]) for line in marks(ax))
    assert len(set(places)) == 8
    assert [round(place) for place in places] == [1] * 4 + [2] * 4
    assert ax.get_xticks().tolist() == [1, 2]


def test_the_efficiency_is_the_speedup_as_per_cent_of_the_ideal() -> None:
    chosen, ax = drawn("a node", "efficiency")
    values = [float(line.get_ydata()[0]) for line in marks(ax)]
    assert values == pytest.approx([100 * point.efficiency.value for c in chosen.curves for point in c.points])


def test_the_models_line_and_its_band_follow_amdahls_law() -> None:
    chosen, ax = drawn("one backend")
    (curve,) = chosen.curves
    (line,) = [line for line in ax.lines if len(line.get_xdata()) == 200]
    N, fit = line.get_xdata(), curve.fit
    T1, s = fit.parameters["T1"], fit.parameters["s"]
    assert line.get_ydata() == pytest.approx(curve.base.wall.median.value / T1 * laws.amdahl(N, s))
    assert len(ax.collections) == 1 + len(ax.containers)
    assert "Amdahl's law, fitted" in labels(ax)
    assert f"processes {100 * s:#.3g} % (" in captions.of_curves(chosen)


def test_a_law_that_does_not_hold_is_dashed_and_has_no_band() -> None:
    chosen, ax = drawn("collapse")
    assert "Amdahl's law, does not hold" in labels(ax)
    assert len(ax.collections) == len(ax.containers)
    assert "Amdahl's law does not hold (dashed; lack of fit): joblib p = " in captions.of_curves(chosen)


def test_more_workers_than_cpus_are_hollow_beyond_the_line() -> None:
    chosen, ax = drawn("more workers than CPUs")
    assert sorted(float(line.get_xdata()[0]) for line in marks(ax, hollow=True)) == [8] * 4 + [16] * 4
    assert "beyond: not fitted" in labels(ax)
    assert [text.get_text() for text in ax.texts] == ["4 usable CPUs"]
    assert "Hollow: more workers than usable CPUs, not fitted." in captions.of_curves(chosen)


def test_no_law_is_fitted_across_the_hardware_threads_of_a_core() -> None:
    chosen, ax = drawn("hardware threads")
    assert [text.get_text() for text in ax.texts] == ["4 cores, 8 usable CPUs"]
    assert {curve.fit.n_workers.max() for curve in chosen.curves} == {4}
    assert len(marks(ax, hollow=True)) == 2
    assert fit_limit(replace(CONDITIONS, usable_cpus=8, n_cores=4), 1) == 8


def test_the_bound_by_chunks_is_drawn_where_it_is_below_the_ideal() -> None:
    _, ax = drawn("a node, few chunks")
    heights = {float(line.get_ydata()[0]) for line in ax.lines if line.get_linewidth() == 1.6}
    assert heights == {10.0, 20.0, 40.0}  # 40 chunks in 4 waves on 12 workers, in 2 on 24, in 1 on 48 and 64
    assert "bound by the number of chunks" in labels(ax)
    assert "bound by the number of chunks" not in labels(drawn("two cores")[1])


def test_too_few_runs_for_an_interval_give_a_dotted_range() -> None:
    chosen, ax = drawn("two cores, ranges")
    assert {bar.lines[2][0].get_linestyle()[0][1] is not None for bar in ax.containers} == {True}
    said = captions.of_curves(chosen)
    assert "Dotted bars: range, too few rounds for an interval." in said
    assert "95 % interval" not in said
    assert "(range " in captions.base_line(chosen)


def test_each_way_has_its_own_look_and_a_name_with_what_tells_it_apart() -> None:
    ways = curves.looks(choose(CASES["schedules"]).curves)
    assert len({(way.colour, way.marker) for way in ways}) == len(ways) == 6
    of_one = curves.looks([curve for curve in choose(CASES["schedules"]).curves if curve.backend == "pool"])
    assert len({way.colour for way in of_one}) == len({way.marker for way in of_one}) == len(of_one) > 1
    assert [way.name for way in ways][:2] == ["pool, dynamic,16", "pool, guided"]
    (way,) = curves.looks(choose(CASES["one backend"]).curves)
    assert way.name == "processes"
    assert way in curves.looks(choose(CASES["two cores"]).curves)


def test_curves_of_unlike_problems_are_refused() -> None:
    two, four = choose(CASES["two cores"]).curves, choose(CASES["four cores"]).curves
    for draw in (curves.speedup, curves.efficiency):
        with pytest.raises(ValueError, match="unlike problems are mixed: strong, 1048576 items, 2 CPUs"):
            draw(Figure().add_subplot(), [*two, *four])
        with pytest.raises(ValueError, match="none; pass those of one Study"):
            draw(Figure().add_subplot(), [])


# ── the ledger ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("case", ["two cores", "faster than the reference", "a node"])
def test_the_parts_of_a_bar_add_up_to_all_core_seconds(case: str) -> None:
    bars = panels.bars(choose(CASES[case]))
    ax = Figure().add_subplot()
    ledgers.ledger(ax, bars)
    for i, bar in enumerate(bars):
        boxes = [container.patches[i].get_bbox() for container in ax.containers]
        assert sum(box.x1 - box.x0 for box in boxes) == pytest.approx(100)
        ends = sorted((min(box.intervalx), max(box.intervalx)) for box in boxes if box.width)
        assert all(end == pytest.approx(start) for (_, end), (start, _) in itertools.pairwise(ends))
        assert f"{bar.core_s:#.3g}" in [text.get_text() for text in ax.texts]


def test_a_bar_says_the_mean_core_seconds_of_its_runs() -> None:
    chosen = choose(CASES["two cores"])
    bar = panels.bars(chosen)[1]
    walls = [r.wall_s for r in chosen.runs if (r.configuration.backend, r.configuration.n_workers) == ("joblib", 2)]
    assert (bar.way, bar.n_workers) == ("joblib", 2)
    assert bar.core_s == pytest.approx(2 * np.mean(walls))


def test_faster_than_the_reference_stands_left_of_zero_and_is_said() -> None:
    chosen = choose(CASES["faster than the reference"])
    ax = Figure().add_subplot()
    bars = panels.bars(chosen)
    ledgers.ledger(ax, bars)
    assert ax.get_xlim()[0] < -5
    assert (
        "Left of zero, less than in the base case: waiting for a CPU (processes on 1: −0.1 %), slower "
        "computing (" in captions.of_ledger(chosen, bars)
    )
    assert "Left of zero" not in captions.of_ledger(chosen, panels.bars(choose(CASES["two cores"])))


def test_a_ledger_of_more_numbers_than_a_page_holds_is_thinned_and_says_so() -> None:
    chosen = choose(CASES["a node, every count"])
    bars = panels.bars(chosen)
    assert [bar.n_workers for bar in bars[:6]] == [1, 2, 4, 8, 16, 32]
    assert f"{4 * 32 - 4 * 6} bars of other numbers of workers are not drawn." in captions.of_ledger(chosen, bars)


def test_without_timelines_the_ledger_says_so() -> None:
    ax = Figure().add_subplot()
    ledgers.ledger(ax, panels.bars(choose(CASES["no timelines"])))
    assert [text.get_text() for text in ax.texts] == ["no run has a timeline"]


def test_without_a_serial_reference_the_ledger_says_so() -> None:
    chosen = choose(CASES["no one worker"])
    assert "No serial reference" in captions.of_ledger(chosen, panels.bars(chosen))


def test_only_runs_on_nodes_have_transfer_in_their_legends() -> None:
    for case, there in (("two cores", False), ("nodes", True)):
        chosen = choose(CASES[case])
        for kind in ("ledger", "timeline"):
            ax = Figure().add_subplot()
            panels.PANELS[kind].make(chosen).draw(ax)
            assert ("sending to nodes" in ax.get_legend_handles_labels()[1]) == there


def test_the_timeline_shows_each_worker_what_the_ledger_books() -> None:
    """The widths of the boxes of each colour, over all workers, are the parts of the ledger."""
    (timeline,) = next(run.timelines for run in CASES["nodes"].runs if run.configuration.n_nodes == 4)
    ax = Figure().add_subplot()
    ledgers.timeline(ax, (timeline,))
    drawn: dict[str, float] = dict.fromkeys(ledgers.LOOKS, 0.0)
    names = {matplotlib.colors.to_rgba(colour): name for name, (colour, _) in ledgers.LOOKS.items()}
    for boxes in ax.collections:
        if len(colours := boxes.get_facecolor()):
            drawn[names[tuple(colours[0])]] += sum(np.ptp(path.vertices[:, 0]) for path in boxes.get_paths())
    parts = losses(timeline).parts_ns
    parts["useful"] += parts["lost_cpu"]
    scale = 1e9 if timeline.makespan_ns >= 1e9 else 1e6
    assert parts["transfer"] > 0
    for name in ledgers.LOOKS.keys() - {"lost_cpu", "slowdown"}:
        assert drawn[name] * scale == pytest.approx(parts[name], abs=1_000)


def test_a_point_on_several_nodes_has_an_edge_of_its_own_where_the_curve_has_one_on_one_node() -> None:
    chosen = choose(CASES["nodes"])
    assert [(curve.backend, curve.n_nodes) for curve in chosen.curves] == [("dask", 0), ("mpi", 1), ("mpi", 2)]
    for curve, look in zip(chosen.curves, curves.looks(chosen.curves), strict=True):
        edges = [curves.edge_of(curve, point, look) == look.colour for point in curve.points]
        assert edges == ([True, True, False, False] if curve.backend == "dask" else [True] * len(curve.points))
    assert [look.name for look in curves.looks(chosen.curves)] == ["dask", "mpi, 1 node", "mpi, 2 nodes"]
    assert "dask with 8 workers on 2 nodes, dask with 16 workers on 4 nodes, mpi with 2, 4, 8 workers on 2 nodes" in (
        captions.measured(chosen)
    )


# ── captions ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_caption_says_what_was_measured_and_what_was_left_out() -> None:
    chosen = choose(CASES["disturbed"])
    n = chosen.left_out["disturbed"]
    assert n > 0
    for said in (captions.of_curves(chosen), captions.of_ledger(chosen, panels.bars(chosen))):
        assert said.startswith("1,048,576 items, seed 1; serial, joblib, pool, processes, threads (guided, forkserver)")
        assert f"6 rounds in random order, 78 runs, {n} left out: {n} disturbed ({BUSY})." in said
        assert "Clock: perf_counter_ns: clock_gettime(CLOCK_MONOTONIC), from call to result" in said
        assert "Imaginary 9000 64-Core Processor, 4 usable CPUs; parcompute/1, conditions" in said


def test_the_caption_says_which_numbers_are_of_disturbed_rounds() -> None:
    said = captions.of_curves(choose(CASES["disturbed all day"]))
    assert " none left out. 30 disturbed ones have no others beside them: their times are ranges. " in said
    assert "Marks keep up to 6 disturbed rounds: fewer than six others are there." in said
    assert "Bars with caps: 95 % interval." in said


def test_runs_without_a_value_or_a_time_are_left_out() -> None:
    assert "8 left out: 8 not verified" in captions.measured(choose(CASES["NaN"]))
    untimed = some_runs(a_sweep(), 9, wall_s=math.nan)
    assert "6 left out: 6 without a time" in captions.measured(choose(untimed))


def test_what_is_not_known_is_said() -> None:
    said = captions.conditions(choose(CASES["unknown machine"]))
    assert "Clock unknown" in said
    assert "CPU model unknown, usable CPUs unknown" in said


# ── which runs ────────────────────────────────────────────────────────────────────────────────────────


def two_machines() -> tuple[Recorded, Provenance, Provenance]:
    here, there = replace(CONDITIONS, usable_cpus=2), replace(CONDITIONS, usable_cpus=2, cpu_model="other")
    old = [replace(run, provenance=there.id, wall_s=run.wall_s / 3) for run in a_sweep().runs]
    new = [replace(run, provenance=here.id) for run in a_sweep().runs]
    return a_file(*old, *new, provenance=here, other=there), here, there


def test_unlike_conditions_are_never_drawn_together_and_one_has_to_be_chosen() -> None:
    recorded, here, there = two_machines()
    with pytest.raises(ValueError, match=r"unlike conditions are never mixed; choose with --conditions: ") as refused:
        choose(recorded)
    for id in (here.conditions_id, there.conditions_id):
        assert id[:8] in str(refused.value)
    assert "cpu_model" in str(refused.value)
    newest, asked = choose(recorded, conditions="newest"), choose(recorded, conditions=there.conditions_id[:8])
    assert (newest.conditions, asked.conditions) == (here.conditions_id, there.conditions_id)
    assert {run.provenance for run in newest.runs} == {here.id}
    assert {run.provenance for run in asked.runs} == {there.id}
    assert newest.n_not_shown == 54
    assert "54 runs of the file under other conditions, seeds or sizes are not shown." in captions.measured(newest)


def test_conditions_that_differ_only_in_what_may_vary_are_drawn_together() -> None:
    later = replace(CONDITIONS, load_1min=1.5)
    runs = [replace(run, provenance=later.id if run.round > 3 else CONDITIONS.id) for run in a_sweep().runs]
    chosen = choose(a_file(*runs, later=later))
    assert len(chosen.runs) == 54
    assert chosen.n_not_shown == 0


def test_seeds_sizes_and_kinds_are_kept_apart() -> None:
    runs = a_sweep().runs
    larger = [replace(run, configuration=replace(run.configuration, n_items=2**22)) for run in runs]
    seeds = [replace(run, seed=2) for run in runs]
    recorded = replace(a_sweep(), runs=(*larger, *seeds, *runs))
    assert choose(recorded).runs == tuple(runs)
    assert choose(recorded, n_items=2**22).runs == tuple(larger)
    assert choose(recorded, seed=2).runs == tuple(seeds)
    with pytest.raises(
        ValueError, match=r"has no run with seed=7; it has conditions .*seed 1, 2; kind strong; n_items"
    ):
        choose(recorded, seed=7)


def test_weak_scaling_takes_the_serial_run_of_one_share_as_its_base() -> None:
    chosen = choose(CASES["weak"])
    assert (chosen.kind, chosen.n_items, chosen.curves[0].base.kind) == ("weak", 2**20, "best_serial")
    assert "1,048,576 items per worker" in captions.measured(chosen)


@pytest.mark.parametrize(
    ("case", "base"), [("two cores", "best_serial"), ("no serial", "one_worker"), ("no one worker", "smallest_n")]
)
def test_the_base_is_the_fairest_that_was_measured(case: str, base: str) -> None:
    assert {curve.base.kind for curve in choose(CASES[case]).curves} == {base}


@pytest.mark.parametrize(
    ("recorded", "reason"),
    [
        (all_runs(a_sweep(n_rounds=5), disturbed=BUSY), r"none of 45 like runs gives a curve \(45 disturbed\); run"),
        (all_runs(a_sweep(), wall_s=math.nan), r"\(54 without a time\)"),
        (a_sweep(backends=()), r"\(all are of the serial backend\)"),
        (a_file(), r"montecarlo.h5: has no run$"),
    ],
)
def test_nothing_to_draw_is_said_with_the_reason(recorded: Recorded, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        choose(recorded)


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def file(tmp_path: Path) -> Path:
    recorded = CASES["two cores"]
    with Record.open(tmp_path / "montecarlo.h5", "montecarlo") as record:
        for id, fields in recorded.provenance.items():
            record.add_provenance(id, fields)
        for run in recorded.runs:
            record.append(run)
    return tmp_path / "montecarlo.h5"


def test_figures_are_saved_beside_the_file_and_are_the_same_bytes_in_every_process(file: Path) -> None:
    written = pages.save(file)
    kinds = ("speedup", "efficiency", "karp-flatt", "ledger", "timeline", "ratios")
    names = [f"montecarlo-{kind}.{format}" for kind in kinds for format in ("png", "svg")]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in file.parent.iterdir()) == sorted([file.name, *names])
    assert [path.name for path in pages.save(file, figures=("ratios",), formats=("pdf",))] == ["montecarlo-ratios.pdf"]
    first = {path.name: path.read_bytes() for path in file.parent.iterdir() if path != file}
    for path in pages.save(file, figures=("ratios",), formats=("png", "svg", "pdf")):
        assert path.read_bytes() == first[path.name]
    program = (
        "from parcompute.figures import pages; "
        f"pages.save({str(file)!r}); pages.save({str(file)!r}, figures=('ratios',), formats=('pdf',))"
    )
    # Another reader: other settings, other hashes, no screen.
    settings = file.parent / "matplotlibrc"
    settings.write_text("font.size: 20\nsvg.fonttype: none\naxes.grid: True\nfont.family: serif\n")
    environment = os.environ | {"PYTHONHASHSEED": "1", "MATPLOTLIBRC": str(settings), "TZ": "Asia/Tokyo"}
    for name in first:
        (file.parent / name).unlink()
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, env=environment)
    assert {name: (file.parent / name).read_bytes() for name in first} == first


def test_figures_and_formats_that_cannot_be_are_refused(file: Path) -> None:
    with pytest.raises(ValueError, match="format 'bmp' is unknown; pass some of png, svg, pdf"):
        pages.save(file, formats=("png", "bmp"))
    with pytest.raises(ValueError, match="figure 'pie' is unknown; pass some of speedup, efficiency"):
        pages.save(file, figures=("pie",))
    with pytest.raises(ValueError, match="the runs allow none of the figures grid"):
        pages.save(file, figures=("grid",))


def test_the_letters_of_an_svg_are_outlines_and_nothing_tells_the_hour(file: Path) -> None:
    contents = pages.render(panels.PANELS["speedup"].make(choose(CASES["two cores"])), ("svg", "png", "pdf"))
    assert b"<text" not in contents["svg"]
    assert b"font-family" not in contents["svg"]
    assert b"<dc:date" not in contents["svg"]
    assert b"CreationDate" not in contents["pdf"]
    assert b"tEXt" not in contents["png"]


def test_nothing_global_changes_and_pyplot_is_not_loaded(file: Path) -> None:
    before = dict(matplotlib.rcParams)
    pages.save(file, figures=("speedup", "ledger"), formats=("svg",))
    assert dict(matplotlib.rcParams) == before
    program = (
        "import sys; from parcompute.figures import pages; loaded = 'matplotlib' in sys.modules; "
        f"pages.save({str(file)!r}, figures=('speedup',)); print(loaded, 'matplotlib.pyplot' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert told.split() == ["False", "False"]


def test_a_figure_that_cannot_be_written_leaves_the_old_one(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (old,) = pages.save(file, figures=("ledger",), formats=("png",))
    content = old.read_bytes()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        pages.save(file, figures=("ledger",), formats=("png",))
    assert old.read_bytes() == content
    assert not [path for path in file.parent.iterdir() if path.suffix == ".tmp"]
