"""Each figure is drawn on anybody's axes, with their settings, and nothing else there is touched."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import parcompute as pc
from parcompute.figures import ink, pages, panels

GALLERY = Path(__file__).parents[2] / "results" / "reference"
DARK = {"figure.facecolor": "#101010", "axes.facecolor": "#101010", "text.color": "w"}


@pytest.fixture(scope="module")
def records():
    return {name: pc.read(GALLERY / f"{name}.h5") for name in ("linalg", "transports")}


def axes(**settings):
    with matplotlib.rc_context(settings):
        return Figure(figsize=(6, 4)).add_subplot()


OF_RECORDS = {
    **dict.fromkeys(("speedup", "efficiency", "karp_flatt", "ledger", "timeline", "ratios", "grid"), "linalg"),
    "sizes": "transports",
}


@pytest.mark.parametrize("figure", OF_RECORDS)
def test_a_figure_is_drawn_on_given_axes_and_nothing_else_changes(records, figure):
    before, ax = dict(matplotlib.rcParams), axes()
    (mine,) = ax.plot([1, 2], [1, 2], "k--", lw=3, ms=5)
    record = records[OF_RECORDS[figure]]
    assert getattr(pc.plot, figure)(record, ax=ax, legend=figure != "ratios") is ax
    assert (mine.get_linewidth(), mine.get_markersize(), mine.get_color()) == (3, 5, "k")
    assert len(ax.get_children()) > 12
    assert ax.get_xlabel()
    assert (ax.get_legend() is None) == (figure in ("ratios", "grid"))
    assert ax.get_title() == ""
    ax.figure.draw_without_rendering()
    assert dict(matplotlib.rcParams) == before
    assert figure in pc.plot.available(record)
    assert pc.plot.caption(record, figure)


def test_every_kind_of_figure_has_a_function():
    kinds = {name.replace("-", "_") for name in panels.PANELS} | {"sizes", "prediction"}
    assert set(pc.plot.__all__) == kinds | {"available", "caption"}


def test_lines_and_marks_are_in_proportion_to_the_letters(records):
    drawn = []
    for size in (7, 14):
        with matplotlib.rc_context({"font.size": size}):
            drawn.append(pc.plot.speedup(records["linalg"], ax=axes()))
    small, large = ([(line.get_markersize(), line.get_linewidth()) for line in ax.lines] for ax in drawn)
    assert np.array(large) == pytest.approx(2 * np.array(small))
    collections = [np.mean([c.get_linewidth() for c in ax.collections if len(c.get_linewidth())]) for ax in drawn]
    assert collections[1] == pytest.approx(2 * collections[0])


def test_on_a_page_of_its_own_nothing_is_scaled_or_coloured(records):
    panel = panels.PANELS["speedup"].make(records["linalg"].study)
    with pages.own_style():
        plain, fitted = axes(), axes()
        panel.draw(plain)
        ink.draw(fitted, panel.draw)
    for one, other in zip(plain.lines, fitted.lines, strict=True):
        assert (one.get_color(), one.get_markersize()) == (other.get_color(), other.get_markersize())


@pytest.mark.parametrize("figure", ["speedup", "ledger", "timeline", "sizes"])
def test_on_a_dark_background_everything_shows(records, figure):
    with matplotlib.rc_context(DARK):
        ax = getattr(pc.plot, figure)(records[OF_RECORDS[figure]], ax=axes(**DARK))
        inks = [line.get_color() for line in ax.lines] + [text.get_color() for text in ax.texts]
        inks += [patch.get_facecolor() for patch in ax.patches] + [c for p in ax.collections for c in p.get_facecolor()]
    assert inks
    assert min(float(np.dot(to_rgb(colour), [0.2126, 0.7152, 0.0722])) for colour in inks) > 0.2


def test_the_line_of_the_cpus_is_named_in_the_legend_and_the_title_has_its_place(records):
    ax = pc.plot.speedup(records["linalg"], ax=axes())
    assert any("usable CPU" in text.get_text() for text in ax.get_legend().get_texts())
    assert not [text for text in ax.texts if "CPU" in text.get_text()]


def test_a_figure_that_the_runs_do_not_allow_is_refused_with_those_they_do(records):
    with pytest.raises(ValueError, match="'speedup' is not what these runs allow; they allow ratios, sizes"):
        pc.plot.speedup(records["transports"], ax=axes())
    with pytest.raises(ValueError, match="'sizes' is not what these runs allow; they allow speedup"):
        pc.plot.sizes(records["linalg"], ax=axes())
    with pytest.raises(ValueError, match="'pie' is unknown"):
        pc.plot.caption(records["linalg"], "pie")


def test_a_study_and_a_path_are_taken_as_well_and_a_caption_names_the_base(records):
    study = records["linalg"].study
    assert len(pc.plot.speedup(study, ax=axes()).lines) == len(pc.plot.speedup(records["linalg"], ax=axes()).lines)
    assert pc.plot.available(GALLERY / "transports.h5") == ["ratios", "sizes"]
    assert "base: " in pc.plot.caption(study, "speedup")
    ax = pc.plot.prediction(study, ax=axes(), workers=(1, 2, 64))
    assert ax.get_ylabel() == "speedup, 1 = base"


def test_without_axes_those_of_pyplot_are_taken(records):
    from matplotlib import pyplot

    with matplotlib.rc_context({"backend": "agg"}):
        try:
            mine = pyplot.figure().add_subplot()
            assert pc.plot.ratios(records["transports"]) is mine
        finally:
            pyplot.close("all")


def test_a_page_has_its_width_its_fonts_and_its_style(records):
    panel = panels.PANELS["speedup"].make(records["linalg"].study)
    pdf = pages.render(panel, ("pdf",), pages.Page(pages.inches("85mm")))["pdf"]
    assert b"/MediaBox [ 0 0 240.94" in pdf
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    light, dark = (pages.render(panel, ("svg",), pages.Page(style=style))["svg"] for style in ("light", "dark"))
    assert b"#111111" in dark
    assert b"#111111" not in light
    for width in ("85", "85 km", "0.1in", "9in9"):
        with pytest.raises(ValueError, match="width"):
            pages.Page(pages.inches(width))
    with pytest.raises(ValueError, match="style='sepia' is unknown; pass one of light, dark"):
        pages.Page(style="sepia")
