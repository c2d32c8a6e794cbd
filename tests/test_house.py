"""The house keeps its plan: which packages there are, who may import whom, and how large a room may grow.

Read from the source, imports within functions included, so that a violation is found before anything runs.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import parcompute

PACKAGE = Path(parcompute.__file__).parent

# The plan, from the ground up. A package imports only what stands in rows above its own; packages of one row do not
# know each other. A new package gets its place here.
#
#        runs work            both                     reads what was recorded
PLAN = [
    [                         "_version"                                      ],
    [                         "machine"                                       ],
    [                         "values"                                        ],
    ["memory",                                         "record"               ],
    ["jobs",                                           "analysis"             ],
    ["workers",                                        "figures"              ],
    ["backends"                                                               ],
    ["executor"                                                               ],
    [                         "experiments"                                   ],
    [                         "cluster"                                       ],
    [                         "cli"                                           ],
    [                         "__init__", "__main__", "mpi"                   ],
]  # fmt: skip

# The two wings never meet below the packages that see both.
RUNS = {"memory", "jobs", "workers", "backends", "executor"}
READS = {"record", "analysis", "figures"}

# Who may import what costs much or may be missing; everyone else gets it through them.
ONLY_IN = {
    "h5py": {"machine.hdf5", "record", "memory.sources", "jobs.checkpoint_file"},
    "scipy": {"analysis"},
    "matplotlib": {"figures"},
    "joblib": {"backends.joblib", "executor.joblib_name", "executor.joblib_backend"},
    "dask": {"backends.dask"},
    "distributed": {"backends.dask"},
    "dask_jobqueue": {"backends.dask"},
    "mpi4py": {"backends.mpi"},
    # Who passes an array or a table of these has imported them.
    "zarr": set(),
    "xarray": set(),
    "pandas": set(),
    "polars": {"memory.tables"},
    "pyarrow": {"memory.tables"},
}

# What `import parcompute` must not load: each costs milliseconds, and is loaded with the first that needs it.
NOT_AT_IMPORT = {
    *ONLY_IN, "numpy", "psutil", "rich", "click", "cloudpickle", "threadpoolctl", "inspect", "dataclasses", "logging",
    "tempfile", "socket", "subprocess", "multiprocessing", "concurrent", "pathlib", "json", "ctypes",
}  # fmt: skip

# What the first Executor must not load beyond that.
NOT_BY_EXECUTOR = {*ONLY_IN, "psutil", "rich", "click"}

NO_HOME = {"utils", "util", "core", "common", "helpers", "misc", "tools", "lib"}

SOURCES = sorted(PACKAGE.rglob("*.py"))
FLOOR = {room: floor for floor, rooms in enumerate(PLAN) for room in rooms}


def name_of(source):
    """backends/joblib.py -> backends.joblib, jobs/__init__.py -> jobs, __init__.py -> __init__."""
    parts = source.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def room_of(name):
    """What PLAN has a place for: a package, or a module beside them."""
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


def why_not(importer, imported):
    """Return why an arrow must not be; None if it may."""
    if {importer, imported} & RUNS and {importer, imported} & READS:
        return "the two wings meet"
    if FLOOR[importer] == FLOOR[imported]:
        return "neighbours of one row know each other"
    if FLOOR[importer] < FLOOR[imported]:
        return "an arrow up"
    return None


def arrows(source):
    """Yield the rooms of the house that a module imports, with the line."""
    for module, line in imports_of(source):
        package, _, rest = module.partition(".")
        if package == "parcompute":
            room = room_of(rest)
            yield (room if room in FLOOR else "__init__"), line  # a name of the face is the face


def wrong_arrows(source):
    importer = room_of(name_of(source))
    found = ((imported, line, why_not(importer, imported)) for imported, line in arrows(source) if imported != importer)
    return [f"{source.name}:{line} imports {imported}: {reason}" for imported, line, reason in found if reason]


def test_the_plan_and_the_folder_have_the_same_rooms():
    assert {room_of(name_of(source)) for source in SOURCES} == set(FLOOR)
    assert len([entry for entry in PACKAGE.iterdir() if entry.name != "__pycache__"]) <= 18


def test_arrows_only_go_down_and_the_wings_do_not_meet():
    assert [told for source in SOURCES for told in wrong_arrows(source)] == []


@pytest.mark.parametrize(
    ("room", "line", "reason"),
    [
        ("values", "from parcompute.jobs import job", "an arrow up"),
        ("values", "import parcompute.jobs.job", "an arrow up"),
        ("jobs", "def f():\n    from parcompute import Executor", "an arrow up"),
        ("jobs", "from ..backends import base", "an arrow up"),
        ("analysis", "from parcompute.memory.shared import share", "the two wings meet"),
        ("executor", "from parcompute import figures", "the two wings meet"),
        ("record", "from parcompute.memory import sources", "the two wings meet"),
    ],
)
def test_a_new_arrow_up_is_found(tmp_path, monkeypatch, room, line, reason):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / room).mkdir()
    (module := tmp_path / room / "new.py").write_text(line)
    assert [told.rpartition(": ")[2] for told in wrong_arrows(module)] == [reason]


def modules_of(node):
    """Return what an import statement may load, as names within the package."""
    if isinstance(node, ast.Import):
        return {alias.name.removeprefix("parcompute.") for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module:
        module = node.module.removeprefix("parcompute.")
        return {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return set()


def test_no_modules_import_each_other_in_a_circle():
    names = {name_of(source) for source in SOURCES}
    needs = {
        name_of(source): names.intersection(*[set.union(*map(modules_of, ast.walk(ast.parse(source.read_text()))))])
        - {name_of(source)}
        for source in SOURCES
    }
    while needs:
        free = {name for name, others in needs.items() if not others & set(needs)}
        assert free, f"a circle among {sorted(needs)}"
        needs = {name: others for name, others in needs.items() if name not in free}


def test_costly_packages_are_imported_in_one_place_only():
    wrong = []
    for source in SOURCES:
        name = name_of(source)
        found = {module.partition(".")[0] for module, _ in imports_of(source)}
        wrong += [(name, costly) for costly in found & set(ONLY_IN) if not {name, room_of(name)} & ONLY_IN[costly]]
    assert wrong == []


def test_first_line_of_the_docstring_is_the_modules_sentence():
    for source in SOURCES:
        docstring = ast.get_docstring(ast.parse(source.read_text()))
        assert docstring, f"{name_of(source)}: say in one sentence what the module is for"
        assert docstring.splitlines()[0].endswith((".", ":")), name_of(source)


def test_a_package_is_a_sentence_and_about_a_dozen_files():
    for folder in (source.parent for source in SOURCES if source.name == "__init__.py" and source.parent != PACKAGE):
        assert len(ast.parse((folder / "__init__.py").read_text()).body) == 1, folder.name
        assert len(list(folder.glob("*.py"))) <= 14, folder.name


def test_no_module_is_a_drawer_for_what_has_no_home():
    assert [name_of(source) for source in SOURCES if NO_HOME & set(name_of(source).split("."))] == []


def test_each_file_has_at_most_400_lines():
    n_lines = {name_of(source): len(source.read_text().splitlines()) for source in SOURCES}
    assert {name: n for name, n in n_lines.items() if n > 400} == {}, "its sentence is probably two"


def test_the_face_shows_what_it_offers_and_nothing_else():
    program = "import json, parcompute as pc; pc.Executor(backend='serial').close; print(json.dumps(dir(pc)))"
    shown = loaded_by(program.replace(".close", ".shutdown()"))
    assert {name for name in shown if not name.startswith("__")} == set(parcompute.__all__)
    assert set(parcompute._HOMES) == set(parcompute.__all__) - {"register_joblib"}
    assert all(getattr(parcompute, name).__name__ == name for name in parcompute.__all__)


def loaded_by(program):
    return json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)


@pytest.mark.parametrize("before", ["sys", "numpy"])
def test_import_parcompute_loads_next_to_nothing(before):
    program = f"import sys, {before}; known = set(sys.modules); import parcompute; new = set(sys.modules) - known"
    loaded = loaded_by(f"{program}; import json; print(json.dumps([*new]))")
    assert {name.partition(".")[0] for name in loaded} & NOT_AT_IMPORT == set()
    assert before == "sys" or len(loaded) <= 6, loaded


def test_the_first_executor_loads_nothing_that_it_does_not_need():
    program = "import sys, json, parcompute; parcompute.Executor(backend='serial').shutdown()"
    loaded = loaded_by(f"{program}; print(json.dumps([*sys.modules]))")
    assert {name.partition(".")[0] for name in loaded} & NOT_BY_EXECUTOR == set()
