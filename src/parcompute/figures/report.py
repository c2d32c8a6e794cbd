"""Write one self-contained HTML page about records: verdict, figures, tables, conditions, rules, data.

    FILE … ── studies ──▶ sections ──▶ page.html      nothing is fetched: figures and data are in the page

The same files give the same bytes.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from parcompute.analysis import rules, tables
from parcompute.analysis.studies import Study, studies
from parcompute.figures import captions, pages, panels
from parcompute.machine.provenance import meanings
from parcompute.record import record

# Larger files are named and not held in the page.
MOST_BYTES = 2 * 2**20

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --paper: #fff; --card: #f6f8fa; --line: #d0d7de;
  --good: #116329; --bad: #a40e26; --link: #0550ae; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9da7b3; --paper: #0d1117; --card: #161b22;
  --line: #30363d; --good: #56d364; --bad: #ff7b72; --link: #79c0ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
a { color: var(--link); }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.3rem; margin-top: 2.5rem; } h3 { font-size: 1.05rem; }
.soft { color: var(--soft); }
.verdict { border-left: .25rem solid var(--good); background: var(--card); padding: .6rem 1rem; margin: .5rem 0; }
.verdict .soft { display: block; font-size: .9rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: .3rem; padding: .5rem; }
figure img { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: .3rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; white-space: nowrap; } td:first-child { white-space: nowrap; }
th { background: var(--card); }
tr:last-child td { border-bottom: 0; }
.yes { color: var(--good); font-weight: 600; white-space: nowrap; }
.no { color: var(--bad); font-weight: 600; white-space: nowrap; }
code, pre { font-family: ui-monospace, monospace; font-size: .85rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .3rem; padding: .6rem; margin: 0;
  white-space: pre-wrap; }
summary { cursor: pointer; font-weight: 600; margin: 1rem 0 .5rem; }
@media print { :root { --ink: #000; --soft: #333; --paper: #fff; --card: #fff; --line: #999; --good: #000; --bad: #000;
  --link: #000; } body { max-width: none; padding: 0; font-size: 9pt; } h2 { break-before: page; }
  h2:first-of-type { break-before: auto; } figure, tr { break-inside: avoid; }
  details::details-content { content-visibility: visible; }
  .wide { overflow: visible; border: 0; } td.n, th.n { white-space: normal; } nav, .data { display: none; } }
"""


def write(files: Sequence[Path], page: Path | None = None) -> Path:
    """Write the page about records, and return where.

    Parameters
    ----------
    files : sequence of Path
        The records.
    page : Path, optional
        Where to write; beside the first file if left out.

    Raises
    ------
    RecordError
        If a file cannot be read.
    OSError
        If the page cannot be written.
    """
    from parcompute.machine import atomic

    page = files[0].with_suffix(".html") if page is None else page
    atomic.replace(page, render(files).encode())
    return page


def render(files: Sequence[Path]) -> str:
    """Return the page about records as text."""
    recorded = [record.read(file, timelines=True) for file in files]
    found = [(each.path, study) for each in recorded for study in studies(each)]
    names = ", ".join(dict.fromkeys(each.experiment for each in recorded))
    title = f"{names}: how it scales"
    body = [f"<h1>{escape(title)}</h1>"]
    if not found:
        body.append("<p>There are no runs yet.</p>")
    if len(found) > 1:
        links = (f'<li><a href="#study-{i}">{escape(str(s))}</a></li>' for i, (_, s) in enumerate(found))
        body.append(f"<nav><ul>{''.join(links)}</ul></nav>")
        body += _unlike([study for _, study in found])
    for i, (path, study) in enumerate(found):
        body += [f'<section id="study-{i}">', *_section(path, study), "</section>"]
    body += _data(files)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _section(path: Path, study: Study) -> list[str]:
    size = f"{study.n_items:,} items{' per worker' if study.kind == 'weak' else ''}"
    lines = [f"<h2>{escape(f'{study.experiment}, {study.kind} scaling, {size}')}</h2>"]
    for told in tables.verdicts(study):
        numbers = "".join(f'<span class="soft">{escape(line)}</span>' for line in told.numbers)
        lines.append(f'<p class="verdict">{escape(told.sentence)}{numbers}</p>')
    lines.append(f'<p class="soft">{escape(captions.measured(study))} {escape(captions.conditions(study))}</p>')
    if drawn := panels.available(study):
        lines.append('<div class="figures">')
        for name in drawn:
            panel = panels.PANELS[name].make(study)
            svg = base64.b64encode(pages.render(panel, ["svg"])["svg"]).decode()
            alt = f"{name}: {panel.title}; {panel.base}"
            lines.append(
                f'<figure><img src="data:image/svg+xml;base64,{svg}" alt="{escape(alt, quote=True)}"></figure>'
            )
        lines.append("</div>")
    lines += ["<h3>Times</h3>", *_times(study), "<h3>The twelve rules</h3>", *_rules(study)]
    lines += ["<h3>Again</h3>", f"<pre>{escape(study.provenance.command_line or 'the command is not on record')}</pre>"]
    lines += ["<details><summary>Conditions</summary>", *_conditions(study), "</details>"]
    lines.append(f'<p class="soft">From <code>{escape(path.name)}</code>, conditions {study.conditions[:8]}.</p>')
    return lines


def _times(study: Study) -> list[str]:
    heading, *rows = tables.points(study)
    if not rows:
        return [f"<p>{escape(line)}</p>" for line in tables.table(study)]
    return _table(heading, rows, numbers_from=1)


def _rules(study: Study) -> list[str]:
    rows = [
        (f"{rule.number}", rule.text, "met" if rule.met else "not met", rule.evidence)
        for rule in rules.checklist(study)
    ]
    return _table(("", "rule", "", "evidence"), rows)


def _conditions(study: Study) -> list[str]:
    told = meanings()
    values = study.provenance.as_dict()
    rows = [
        (name, str(value), told[name]) for name, value in values.items() if value not in ("", -1) and value == value
    ]
    return _table(("field", "value", "meaning"), rows)


def _unlike(found: Sequence[Study]) -> list[str]:
    rows = {(name, str(one), str(other)) for a, b in itertools.pairwise(found) for name, one, other in a.unlike(b)}
    if not rows:
        return []
    return [
        "<h3>Unlike conditions, never compared as if they were one</h3>",
        *_table(("field", "of one", "of another"), sorted(rows)),
    ]


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int | None = None) -> list[str]:
    def cell(kind: str, i: int, text: str) -> str:
        name = {"met": "yes", "not met": "no"}.get(text, "n" if numbers_from is not None and i >= numbers_from else "")
        return f'<{kind} class="{name}">{escape(text)}</{kind}>' if name else f"<{kind}>{escape(text)}</{kind}>"

    lines = ['<div class="wide"><table>', f"<tr>{''.join(cell('th', i, text) for i, text in enumerate(heading))}</tr>"]
    lines += [f"<tr>{''.join(cell('td', i, text) for i, text in enumerate(row))}</tr>" for row in rows]
    return [*lines, "</table></div>"]


def _data(files: Sequence[Path]) -> list[str]:
    lines = ['<div class="data"><h2>Data</h2>', "<ul>"]
    for file in files:
        rows = tables.csv_of([(file, run) for run in record.read(file).runs])
        lines.append(f"<li>{_download(rows.encode(), 'text/csv', f'{file.stem}.csv')}: one row per run</li>")
        content = file.read_bytes()
        if len(content) <= MOST_BYTES:
            lines.append(
                f"<li>{_download(content, 'application/x-hdf5', file.name)}: everything, with the timelines</li>"
            )
        else:
            lines.append(
                f"<li><code>{escape(file.name)}</code>: too large to be held here ({len(content):,} bytes)</li>"
            )
    return [*lines, "</ul></div>"]


def _download(content: bytes, kind: str, name: str) -> str:
    data = base64.b64encode(content).decode()
    return f'<a download="{escape(name, quote=True)}" href="data:{kind};base64,{data}">{escape(name)}</a>'
