"""Values show themselves in a notebook: every text as text, and pictures of a size that does not grow with a job."""

import xml.etree.ElementTree as ET
from html import escape

import numpy as np
import pytest

import parcompute as pc
from parcompute.values import gantt, views
from parcompute.values.parts import PARTS, WORDS
from parcompute.values.timeline import CHUNK_DTYPE, DEATH_DTYPE, WORKER_DTYPE, Timeline

SVG = "{http://www.w3.org/2000/svg}"


def timeline_of(n_workers, n_chunks, busy=0.5, deaths=()):
    """A timeline of chunks of a millisecond, which take that share of it."""
    chunks = np.zeros(n_chunks, CHUNK_DTYPE)
    chunks["worker"], turn = np.arange(n_chunks) % max(1, n_workers), np.arange(n_chunks) // max(1, n_workers)
    chunks["started_ns"] = 1000 + turn * 10**6
    chunks["finished_ns"] = chunks["stored_ns"] = chunks["started_ns"] + int(busy * 10**6)
    workers = np.zeros(n_workers, WORKER_DTYPE)
    workers["worker"] = np.arange(n_workers)
    completed_ns = 1000 + (int(turn.max(initial=0)) + 1) * 10**6
    return Timeline(1000, 1000, completed_ns, chunks, workers, np.array(list(deaths), DEATH_DTYPE))


def picture(timeline):
    """Return the elements of a timeline's picture."""
    html = timeline._repr_html_()
    return ET.fromstring(html[html.index("<svg") :])


def bars(timeline):
    """Return how many bars each row has."""
    return [row.findall(f"{SVG}path")[1].get("d").count("M") for row in picture(timeline).findall(f"{SVG}g")]


def test_few_chunks_have_a_bar_each():
    assert bars(timeline_of(4, 40)) == [10] * 4


@pytest.mark.parametrize("n_workers", [1, 2, 31, 64, 1000])
@pytest.mark.parametrize("busy", [0.2, 1.0])
def test_a_picture_of_many_chunks_is_small(n_workers, busy):
    timeline = timeline_of(n_workers, 100_000, busy)
    assert len(timeline._repr_html_().encode()) < 100_000
    assert 1 <= len(bars(timeline)) <= gantt.MOST_ROWS


@pytest.mark.parametrize("n_workers", [2, 32])
def test_a_picture_of_columns_that_all_differ_is_small(n_workers):
    timeline = timeline_of(n_workers, 40_000)
    busy = np.random.default_rng(0).integers(0, 10**6, 40_000 // 50).repeat(50)
    timeline.chunks["finished_ns"] = timeline.chunks["started_ns"] + busy
    assert sum(bars(timeline)) > 500
    assert len(timeline._repr_html_().encode()) < 100_000


def test_columns_are_as_high_as_the_share_of_time_inside_kernels():
    [begin] = {height for _, _, height in gantt._columns(*stamps(timeline_of(4, 100_000, 0.5)), 4, 25_000 * 10**6, 1)}
    assert begin == 0.5


def stamps(timeline):
    return tuple(timeline.chunks[name] - timeline.called_ns for name in ("started_ns", "finished_ns"))


def test_a_picture_names_workers_counts_and_deaths():
    timeline = timeline_of(2, 10, deaths=[(1, 77, -9, 3_000_000), (0, 78, 1, 4_000_000)])
    titles = [title.text for title in picture(timeline).iter(f"{SVG}title")]
    assert titles == [
        "worker 0: 5 chunks, 50.0 % of the time in kernels",
        "worker 1: 5 chunks, 50.0 % of the time in kernels",
        "worker 1 ended by signal 9",
        "worker 0 ended with 1",
    ]
    assert "2 worker processes ended (✕)" in timeline._repr_html_()


@pytest.mark.parametrize(("n_workers", "n_chunks"), [(0, 0), (1, 0), (3, 0), (1, 1)])
def test_an_empty_timeline_has_a_picture(n_workers, n_chunks):
    picture(timeline_of(n_workers, n_chunks))
    empty = Timeline(7, 7, 7, np.zeros(0, CHUNK_DTYPE), np.zeros(1, WORKER_DTYPE))
    picture(empty)


@pytest.mark.parametrize(("span_ns", "unit"), [(5, "ns"), (5_000, "µs"), (5_000_000, "ms"), (90 * 10**9, "s")])
def test_the_axis_has_a_unit_and_a_few_numbers(span_ns, unit):
    none = np.zeros(0, np.int64)
    texts = [text.text for text in ET.fromstring(gantt.svg(none, none, none, 1, span_ns)).iter(f"{SVG}text")]
    assert texts[-1] == f"time since the call ({unit})"
    assert 3 <= len(texts[1:-1]) <= 7


def test_no_colour_is_that_of_a_page():
    html = timeline_of(2, 10)._repr_html_() + pc.losses(timeline_of(2, 10))._repr_html_()
    assert "white" not in html
    assert "black" not in html
    assert "#fff" not in html
    assert html.count("background:") == html.count(f"background:{views.INK}")


def test_a_plan_and_a_ledger_are_tables_with_units():
    plan = pc.Plan.cut(1000, 10, "guided", n_workers=4, halo=2)._repr_html_()
    assert "100 of 10 items, halo 2" in plan
    ledger = pc.losses(timeline_of(2, 10))._repr_html_()
    assert "time (core-s)" in ledger
    assert "share (%)" in ledger
    assert all(f">{escape(text)}</td>" in ledger for name in PARTS for text in (WORDS[name], PARTS[name]))


def test_every_text_is_escaped():
    assert "<td" in (shown := views.table(("<h>",), [("<lambda>",), ("a & b",)], "l"))
    assert "&lt;h&gt;" in shown
    assert "&lt;lambda&gt;" in shown
    assert "a &amp; b" in shown
    assert views.paragraph("<b>") == "<p>&lt;b&gt;</p>"
    assert views.bullets(["<b>"]) == "<ul><li>&lt;b&gt;</li></ul>"
    plan = pc.Plan.cut(10, 5).adding("<lambda> & more")
    assert "&lt;lambda&gt; &amp; more" in plan._repr_html_()


@pytest.mark.parametrize("share", [-0.5, 0.0, 0.5, 1.5, float("nan")])
def test_a_bar_is_within_its_cell(share):
    assert 0 <= float(views.bar(share).partition("width:")[2].partition("em")[0]) <= 8
