"""The site builds without a warning, its notebooks run, search finds names, and a phone can read every page.

The build is that of `make docs`, which runs each notebook once: it is made here only where a source is newer.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import parcompute as pc

ROOT = Path(__file__).parents[1]
SITE = ROOT / "build" / "docs"

pytestmark = pytest.mark.slow


def is_built():
    """Tell whether the site is newer than all that it is made of."""
    sources = [path for folder in ("docs", "src", "results/reference") for path in (ROOT / folder).rglob("*.*")]
    newest = max(path.stat().st_mtime for path in sources if path.suffix != ".pyc" and path.is_file())
    return (SITE / "search.html").exists() and (SITE / "search.html").stat().st_mtime > newest


@pytest.fixture(scope="module")
def site():
    for package in ("sphinx", "furo", "myst_nb", "numpydoc", "sphinx_click"):
        pytest.importorskip(package)
    if shutil.which("make") is None:
        pytest.skip("no make")
    SITE.parent.mkdir(exist_ok=True)
    with open(SITE.parent / "docs.lock", "w") as lock:  # tests in another process wait for the same build
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_built():
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
            inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
            done = subprocess.run(
                ["make", "-C", ROOT, "docs"],
                env=inherited | {"PATH": path},
                capture_output=True,
                text=True,
                timeout=280,
            )
            assert done.returncode == 0, done.stdout + done.stderr
    return SITE


def pages(site):
    """Return the pages that were written; the others are lists that were made of them."""
    return sorted(path for path in site.rglob("*.html") if path.name not in ("genindex.html", "py-modindex.html"))


def test_every_page_is_in_the_menu(site):
    menu = re.findall(r'<a class="[^"]*reference internal" href="([^"]+)"', (site / "index.html").read_text("utf-8"))
    menu = {link.partition("#")[0] for link in menu}
    docs = ROOT / "docs"
    written = {path.relative_to(docs).with_suffix(".html").as_posix() for path in docs.rglob("*.md")}
    assert written - menu == {"index.html"}


def test_the_reference_has_every_public_name(site):
    page = (site / "reference" / "api.html").read_text("utf-8")
    for name in [*pc.__all__, *(f"plot.{name}" for name in pc.plot.__all__)]:
        assert re.search(rf'id="(module-)?parcompute\.{name}"', page), name


def test_the_reference_has_every_command(site):
    from parcompute.cli import commands

    page = (site / "reference" / "cli.html").read_text("utf-8")
    assert [name for name in commands.commands if f'id="parcompute-{name}"' not in page] == []


@pytest.fixture(scope="module")
def phone(site, browser):
    """A browser as narrow as a phone, on the site: its processes are there before a test begins."""
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((site / "index.html").as_uri())
    return browser


def test_search_finds_a_verb(site, phone):
    phone.get((site / "search.html").as_uri() + "?q=map_blocks")
    found = phone.execute_async_script(
        "const done = arguments[0], look = () => {"
        "  const links = [...document.querySelectorAll('#search-results li a')].map(a => a.getAttribute('href'));"
        "  links.length ? done(links) : setTimeout(look, 20)"
        "}; look()"
    )
    assert any("reference/api.html" in link for link in found)


def test_no_page_scrolls_sideways_on_a_phone(site, phone):
    wide = []
    for page in pages(site):
        phone.get(page.as_uri())
        if phone.execute_script("return document.documentElement.scrollWidth > innerWidth"):
            wide.append(page.relative_to(site).as_posix())
    assert wide == []
