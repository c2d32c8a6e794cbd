"""A report is one page that needs nothing else, and reads well in a window of any width, in the dark and on paper."""

import base64
import csv
import html.parser
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from parcompute.analysis import rules, tables
from parcompute.analysis.studies import studies
from parcompute.figures import panels, report
from parcompute.machine.provenance import Provenance
from parcompute.record.record import Record, read

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "montecarlo.h5"


@pytest.fixture(scope="module")
def page() -> str:
    return report.render([REFERENCE])


class Tags(html.parser.HTMLParser):
    """All tags with their attributes, and whether they close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def of(self, wanted: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == wanted]


def test_the_page_is_whole_and_asks_nobody_for_anything(page):
    tags = Tags(page)
    assert tags.open == []
    links = [value for _, attributes in tags.found for name, value in attributes.items() if name in ("href", "src")]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not tags.of("script")
    assert not re.search(r"url\(|@import", page)


def test_every_figure_table_and_rule_is_there(page):
    (study,) = studies(read(REFERENCE, timelines=True))
    tags = Tags(page)
    assert [image["alt"].partition(":")[0] for image in tags.of("img")] == panels.available(study)
    for rule in rules.checklist(study):
        assert rule.text in page
    assert page.count(">met<") + page.count(">not met<") == 12
    assert page.count('<p class="verdict">') == len(study.curves)
    assert study.provenance.cpu_model in page
    assert "1.94× (95 % 1.74–1.98, within 15 rounds)" in page


def test_the_data_can_be_taken_out_of_the_page(page):
    table, whole = Tags(page).of("a")
    assert (table["download"], whole["download"]) == ("montecarlo.csv", "montecarlo.h5")
    assert base64.b64decode(whole["href"].partition(",")[2]) == REFERENCE.read_bytes()
    rows = base64.b64decode(table["href"].partition(",")[2]).decode().splitlines()
    assert len(rows) == 1 + len(read(REFERENCE).runs)


def test_the_same_file_gives_the_same_bytes(page):
    assert report.render([REFERENCE]) == page


def named(run, text):
    """Return a configuration with that for every name."""
    own = {} if run.configuration.backend == "serial" else {"backend": text}
    return replace(run.configuration, start_method=text, variant=text, **own)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A record whose every text would be a tag, in two sets of conditions."""
    evil = '<script>alert("1")</script>&$\\frac{$ "../../x'
    source = read(REFERENCE)
    with Record.open(tmp_path / "<b>evil.h5", evil) as file:
        for model in (evil, "other"):
            provenance = Provenance(cpu_model=model, usable_cpus=2, command_line=evil, clock=evil)
            file.add_provenance(provenance.id, provenance.as_dict())
            for run in source.runs[:20]:
                disturbed = evil if run.round == 1 else ""
                file.append(replace(run, provenance=provenance.id, disturbed=disturbed, configuration=named(run, evil)))
        file.append(replace(run, provenance=provenance.id, configuration=replace(run.configuration, kind=evil)))
    return file.path


def test_what_stands_in_a_file_is_text_and_no_page(hostile, tmp_path):
    written = report.write([hostile])
    assert written == hostile.with_suffix(".html")
    text = written.read_text(encoding="utf-8")
    assert not Tags(text).of("script")
    assert "&lt;script&gt;" in text
    assert Tags(text).open == []
    assert "Unlike conditions" in text
    assert text.count('href="#study-') == 3
    assert [entry.name for entry in tmp_path.iterdir() if entry.suffix != ".h5"] == [written.name]
    for image in Tags(text).of("img"):
        tags = ElementTree.fromstring(base64.b64decode(image["src"].partition(",")[2])).iter()
        assert not any("script" in str(tag.tag) for tag in tags)


def test_no_name_is_a_formula():
    table = tables.csv_of(
        [(Path("=1+1.h5"), replace(run, disturbed="@x", value=-1.0)) for run in read(REFERENCE).runs[:1]]
    )
    (row,) = csv.DictReader(io.StringIO(table))
    assert (row["file"], row["disturbed"], row["value"]) == ("'=1+1.h5", "'@x", "-1.0")


def test_a_record_without_runs_gives_a_page_that_says_so(tmp_path):
    with Record.open(tmp_path / "empty.h5", "empty"):
        pass
    assert "There are no runs yet." in report.write([tmp_path / "empty.h5"], tmp_path / "page.html").read_text()


# ── in a browser ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def opened(browser, page, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "page.html"
    path.write_text(page, encoding="utf-8")
    browser.get_log("performance")  # what the browser's own first page asked for
    browser.get(path.as_uri())
    return browser


def emulate(browser, width, media="screen", scheme="light"):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


@pytest.mark.parametrize(
    ("width", "media", "scheme"),
    [
        *((width, "screen", scheme) for width in (320, 390, 1200) for scheme in ("light", "dark")),
        (680, "print", "light"),  # A4 between its margins
    ],
)
def test_nothing_sticks_out_of_a_window_and_no_figure_is_broken(opened, width, media, scheme):
    emulate(opened, width, media, scheme)
    assert opened.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    widths = opened.execute_script(
        "return [...document.images].map(i => [i.complete && i.naturalWidth > 0, i.getBoundingClientRect().right])"
    )
    assert widths
    assert all(loaded and right <= width for loaded, right in widths)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(opened, scheme):
    emulate(opened, 1200, scheme=scheme)
    for selector in ("body", ".soft", ".yes", "a"):
        ink, paper = opened.execute_script(
            f"return [getComputedStyle(document.querySelector('{selector}')).color, "
            "getComputedStyle(document.body).backgroundColor]"
        )
        assert contrast(ink, paper) >= 4.5, (selector, ink, paper)
    dark = luminance(opened.execute_script("return getComputedStyle(document.body).backgroundColor")) < 0.2
    assert dark == (scheme == "dark")


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2)."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_browser_has_nothing_to_complain_about_and_asks_nobody(opened):
    assert opened.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    requests = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    # The browser has a first page of its own, which may still be asking.
    asked = [each["request"]["url"] for each in requests if each["documentURL"] == opened.current_url]
    assert asked
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
