"""Measure parcompute against other engines, row by row, and print the table of numbers to reach.

Each contender lives in a process of its own with two workers. A row visits its contenders in rounds of random
order; every answer is verified before its time counts. A contender too slow for its share of the time has fewer
rounds than others: each cell says how many, and in how many of them the machine was not quiet; these count all the
same. Every sample goes to ``results/<machine>/bench.h5``.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import recording
from rows import CONTENDERS, ROWS, Row
from session import Entry, Failure, Hosts, Sample, ask, compile_all
from verdicts import Verdict, all_reached

from parcompute.values.intervals import ratio, summarise

ROUNDS = 6
TOTAL_S = 1500.0  # all rows with all contenders take about 15 minutes


@dataclass
class Answers:
    """What a row's entries have said: samples in the order in which they came, and by label why one gave no more."""

    samples: list[Sample] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def of(self, label: str) -> list[Sample]:
        """Return the samples of an entry."""
        return [sample for sample in self.samples if sample.entry.label == label]

    def values(self, label: str) -> list[float]:
        """Return the values of an entry."""
        return [sample.value for sample in self.of(label)]


def measure(row: Row, hosts: Hosts, rounds: int, seed: int, until: float, record) -> Answers:
    """Ask all entries of a row, and record each sample as it comes."""
    answers = Answers()
    for said in ask(
        row.entries,
        hosts,
        parameters=row.parameters,
        rounds=rounds,
        seed=seed,
        row=row.name,
        each_s=row.each_s,
        timeout_s=row.timeout_s,
        until=until,
    ):
        if isinstance(said, Failure):
            answers.failures[said.entry.label] = said.why
        else:
            answers.samples.append(said)
            record(row, said)
    return answers


def lines(row: Row, answers: Answers) -> list[str]:
    """Return the row as text: a line per entry, then a line per target."""
    text = [f"{row.name}. {row.title}  [{row.unit}]"]
    text += [f"    {entry.label:<26} {cell(row, entry, answers)}" for entry in row.entries]
    return text + [f"    → {verdict}" for verdict in judge(row, answers)]


def cell(row: Row, entry: Entry, answers: Answers) -> str:
    """Return what an entry has reached, in how many rounds, and how parcompute stands against it."""
    samples, own = answers.of(entry.label), answers.values("parcompute")
    parts = []
    if samples:
        median = summarise([sample.value * row.scale for sample in samples]).median
        kind = "range" if median.is_range else "95 %"
        n_disturbed = sum(bool(sample.disturbed) for sample in samples)
        told = f"{median.value:9.4g}   {kind} {median.low:.4g}–{median.high:.4g}, n = {len(samples)}"
        parts.append(f"{told}{f' ({n_disturbed} disturbed)' if n_disturbed else ''}")
        if own and entry.label != "parcompute":
            against = ratio(own, [sample.value for sample in samples])
            parts.append(f"parcompute is {against.value:.3g} × it ({against.low:.3g}–{against.high:.3g})")
        if row.n_items(entry) != row.parameters.get(row.size, row.n_items(entry)):
            parts.append(f"at {row.n_items(entry):,}")
    if entry.label in answers.failures:
        parts.append(answers.failures[entry.label])
    if not parts:
        return "n = 0: no time was left"
    return "   ".join([f"{parts[0]:<60}", *parts[1:]]).rstrip()


def judge(row: Row, answers: Answers) -> list[Verdict]:
    """Return the verdict on each target of a row."""
    values = {entry.label: answers.values(entry.label) for entry in row.entries}
    return [target.judge(values) for target in row.targets]


def chosen(rows: tuple[Row, ...], asked: list[str], contenders: list[str]) -> list[Row]:
    """Return the rows that are asked for, by number or name, with the contenders that are."""
    known = {row.name for row in rows} | {str(row.number) for row in rows}
    if unknown := set(asked) - known:
        raise SystemExit(f"row {', '.join(sorted(unknown))}: unknown; pass some of {', '.join(r.name for r in rows)}")
    kept = [row for row in rows if not asked or row.name in asked or str(row.number) in asked]
    if not contenders:
        return kept
    if unknown := set(contenders) - set(CONTENDERS):
        raise SystemExit(f"contender {', '.join(sorted(unknown))}: unknown; pass some of {', '.join(CONTENDERS)}")

    def keeps(entry: Entry) -> bool:
        # New interpreters are asked about several.
        return entry.contender in contenders or (entry.contender == "fresh" and entry.label.split()[0] in contenders)

    return [replace(row, entries=tuple(filter(keeps, row.entries))) for row in kept]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", action="append", default=[], help="number or name; may be given again")
    parser.add_argument("--contenders", default="", help=f"with commas between them: {', '.join(CONTENDERS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="that count; below 6 there are no intervals")
    parser.add_argument("--seed", type=int, default=1, help="of the order of runs")
    parser.add_argument("--results", type=Path, help="folder; results/<machine> if left out")
    parser.add_argument("--list", action="store_true", help="list rows and contenders, and measure nothing")
    asked = parser.parse_args(argv)
    if asked.rounds < 1:
        parser.error(f"--rounds {asked.rounds} is out of range; pass at least 1")
    rows = chosen(ROWS, asked.row, [name for name in asked.contenders.split(",") if name])
    if asked.list:
        for row in rows:
            print(f"{row.name:>4}  {row.title}\n      {', '.join(entry.label for entry in row.entries)}")
        return 0
    began, reached = time.monotonic(), {}
    compile_all()
    with recording.opened(asked.results, asked.seed) as record, Hosts(CONTENDERS) as hosts:
        for row in rows:
            answers = measure(row, hosts, asked.rounds, asked.seed, began + TOTAL_S, record)
            if row.targets:
                reached[row.name] = all_reached(judge(row, answers))
            print("\n".join(lines(row, answers)), end="\n\n", flush=True)
        for name, why in hosts.missing.items():
            print(f"left out: {name}, {why}")
    n_reached = sum(one is True for one in reached.values())
    short = ", ".join(name for name, one in reached.items() if one is not True)
    print(f"{n_reached} of {len(reached)} rows with a goal reached" + (f"; not: {short}" if short else ""))
    print(f"{time.monotonic() - began:.0f} s, order seed {asked.seed}, recorded in {record.path}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the contenders' end
    sys.exit(main())
