"""The house keeps its floors: who may import whom, what each module promises, and how large it may grow.

Read from the source, so that a violation is found before anything runs.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import parcompute

PACKAGE = Path(parcompute.__file__).parent

# Arrows only go down. The two wings never import each other; both import the hall, and the hall only itself.
# "edge" is where the wings meet. A new module gets its place here.
RUN, HALL, READ, EDGE = "run wing", "hall", "read wing", "edge"
HOUSE = {
    "__init__": (EDGE, 12),
    "__main__": (EDGE, 11),
    "cli": (EDGE, 10),
    "experiment": (EDGE, 8),
    "campaign": (EDGE, 7),
    "scripts": (EDGE, 9),
    "options": (EDGE, 6),
    "console": (EDGE, 6),
    # makes runs
    "measure": (RUN, 6),
    "advice": (RUN, 7),
    "ways": (RUN, 6),
    "announce": (RUN, 6),
    "for_joblib": (RUN, 6),
    "executor": (RUN, 5),
    "arguments": (RUN, 4),
    "batches": (RUN, 4),
    "futures": (RUN, 4),
    "progress": (RUN, 1),
    "backends": (RUN, 4),
    "worker": (RUN, 3),
    "checkpoint": (RUN, 3),
    "keeping": (RUN, 3),
    "schedule": (RUN, 2),
    "job": (RUN, 2),
    "travel": (RUN, 2),
    "digests": (RUN, 2),
    "start": (RUN, 2),
    "streams": (RUN, 1),
    "outputs": (RUN, 1),
    "shared": (RUN, 1),
    "segments": (RUN, 1),
    "signals": (RUN, 0),
    "lifeline": (RUN, 1),
    "probe": (RUN, 1),
    "blas": (RUN, 1),
    "heap": (RUN, 1),
    "sources": (RUN, 1),
    # plain values
    "sweep": (HALL, 2),
    "provenance": (HALL, 2),
    "blocks": (HALL, 1),
    "timeline": (HALL, 1),
    "machine": (HALL, 1),
    "intervals": (HALL, 0),
    "limits": (HALL, 0),
    "quiet": (HALL, 0),
    "revision": (HALL, 1),
    "topology": (HALL, 0),
    "cgroups": (HALL, 0),
    "procfs": (HALL, 0),
    "atomic": (HALL, 0),
    # reads runs
    "report": (READ, 8),
    "rules": (READ, 6),
    "figures": (READ, 5),
    "plates": (READ, 7),
    "panels": (READ, 6),
    "charts": (READ, 5),
    "gantt": (READ, 6),
    "tables": (READ, 6),
    "captions": (READ, 5),
    "ledgers": (READ, 5),
    "studies": (READ, 5),
    "comparison": (READ, 6),
    "merging": (READ, 5),
    "verdict": (READ, 5),
    "record": (READ, 4),
    "scaling": (READ, 4),
    "schema": (READ, 3),
    "losses": (READ, 2),
    "simulate": (READ, 4),
    "fits": (READ, 2),
    "choice": (READ, 3),
    "points": (READ, 6),
    "models": (READ, 1),
    "laws": (READ, 1),
    "bootstrap": (READ, 1),
}

# Who may import what costs much or may be missing; everyone else gets it through them.
ONLY_IN = {
    "h5py": {"record", "sources", "checkpoint"},
    "scipy": {"bootstrap", "laws", "fits"},
    "matplotlib": {"charts", "figures", "gantt", "ledgers", "panels", "plates"},
    "joblib": {"announce", "backends.joblib", "for_joblib"},
    "dask": {"backends.dask"},
    "distributed": {"backends.dask"},
    "dask_jobqueue": {"backends.dask"},
    "mpi4py": {"backends.mpi"},
}

NO_HOME = {"utils", "util", "core", "common", "helpers", "misc", "tools", "lib"}

SOURCES = sorted(PACKAGE.rglob("*.py"))


def name_of(source):
    """backends/joblib.py -> backends.joblib, __init__.py -> __init__."""
    return ".".join(source.relative_to(PACKAGE).with_suffix("").parts)


def room_of(name):
    """What HOUSE has a place for: a module of the package, or a folder as a whole."""
    return name.partition(".")[0]


def imports_of(source):
    """Return the (module, line) of every import, relative ones spelled out, and those within functions too."""
    package = ["parcompute", *source.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "parcompute":
                yield from ((f"parcompute.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield module, node.lineno


def may_import(importer, imported):
    """Return None, or why the arrow must not be."""
    (wing, floor), (other_wing, other_floor) = HOUSE[importer], HOUSE[imported]
    if {wing, other_wing} == {RUN, READ}:
        return f"the {wing} imports the {other_wing}"
    if wing == HALL and other_wing != HALL:
        return f"the hall imports the {other_wing}"
    if other_wing == EDGE and wing != EDGE:
        return f"the {wing} imports the edge"
    # On one floor modules of a wing may know each other (schedule and job); a circle is found by Python.
    if other_floor > floor:
        return f"floor {floor} imports floor {other_floor}"
    return None


@pytest.fixture(params=SOURCES, ids=name_of)
def source(request):
    """Each module of the package."""
    return request.param


def test_each_module_has_its_place_in_the_house(source):
    assert room_of(name_of(source)) in HOUSE, "give it a wing and a floor in HOUSE"


def test_arrows_only_go_down_and_the_wings_do_not_meet(source):
    importer = room_of(name_of(source))
    wrong = []
    for module, line in imports_of(source):
        package, _, rest = module.partition(".")
        imported = room_of(rest)
        if package == "parcompute" and imported != importer and {importer, imported} <= set(HOUSE):
            reason = may_import(importer, imported)
            wrong += [f"{source.name}:{line} imports {module}: {reason}"] if reason else []
    assert wrong == []


def test_costly_packages_are_imported_in_one_place_only(source):
    name = name_of(source)
    found = {module.partition(".")[0] for module, _ in imports_of(source)}
    assert {package for package in found & set(ONLY_IN) if name not in ONLY_IN[package]} == set()


def test_first_line_of_the_docstring_is_the_modules_sentence(source):
    docstring = ast.get_docstring(ast.parse(source.read_text()))
    assert docstring, "say in one sentence what the module is for"
    assert docstring.splitlines()[0].endswith((".", ":"))


def test_no_module_is_a_drawer_for_what_has_no_home(source):
    assert not NO_HOME & set(name_of(source).split("."))


def test_each_file_has_at_most_400_lines(source):
    n_lines = len(source.read_text().splitlines())
    assert n_lines <= 400, "its sentence is probably two"


def test_no_modules_import_each_other_in_a_circle():
    rooms = {}
    for source in SOURCES:
        imported = {room_of(module.partition(".")[2]) for module, _ in imports_of(source) if "parcompute." in module}
        rooms.setdefault(room_of(name_of(source)), set()).update(imported & set(HOUSE) - {room_of(name_of(source))})
    while rooms:
        free = {room for room, needs in rooms.items() if not needs & set(rooms)}
        assert free, f"a circle among {sorted(rooms)}"
        rooms = {room: needs for room, needs in rooms.items() if room not in free}


def test_import_parcompute_costs_numpy_and_little_more():
    program = "import sys, parcompute; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    costly = {*ONLY_IN, "psutil", "rich", "click"}
    assert costly & set(loaded) == set()
