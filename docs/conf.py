"""How the site is built: `make docs` runs every notebook, and a warning is an error."""

import logging
import os
import re
import sys
from importlib import metadata
from pathlib import Path

project = "parcompute"
author = "The parcompute developers"
release = metadata.version("parcompute")
extensions = ["myst_nb", "sphinx.ext.autodoc", "numpydoc", "sphinx_click"]

html_theme = "furo"
html_title = "parcompute"
pygments_dark_style = "github-dark"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False  # the sources stand in the repository

# A notebook is a page of Markdown with cells; what it writes goes with its folder.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 240
nb_merge_streams = True
logging.getLogger("traitlets").setLevel(logging.ERROR)  # a line per notebook otherwise
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `python`, `parcompute` in cells
os.environ["PARCOMPUTE_WORKERS"] = "2"  # the same on a laptop and in CI
os.environ["CHECKOUT"] = str(Path(__file__).parents[1])  # with the records that pages read
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

# The page of the API shows each class whole; the docstrings speak of parameters in single backticks.
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say it, in words
numpydoc_show_class_members = False
default_role = "code"
smartquotes = False  # `--help` has two hyphens

# What this project names has to be there; other packages' pages are not asked for, since a build needs no network.
nitpick_ignore_regex = [(r"py:.*", r"(?!parcompute\b).*")]

# Only `make docs-links` asks the network.
linkcheck_timeout = 10


def link_pages(app, what, name, obj, options, lines):
    """Make a link of each page that a docstring names by its file."""
    lines[:] = [re.sub(r"docs/([\w/-]+)\.md", r":doc:`/\1`", line) for line in lines]


def as_commands(app, ctx, lines):
    """Set the examples of the command line as such: a shell's `*` is no emphasis."""
    lines[:] = [re.sub(r"(?<=: )(parcompute .*)", r"``\1``", line) for line in lines]


def setup(app):
    """Have docstrings lead to the pages that they name, and show examples as commands."""
    app.connect("autodoc-process-docstring", link_pages)
    app.connect("sphinx-click-process-epilog", as_commands)
