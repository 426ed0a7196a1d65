"""The house itself: which room may import which, what starts without torch, who prints, and that files stay short."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "ensemble_distill"
ROOT = Path(__file__).parents[2] / PACKAGE
MODULES = sorted(ROOT.rglob("*.py"))
TESTS = Path(__file__).parents[1]

# what every room may import: the ground floor
GROUND = {"errors", "facts", "runtime"}

# what the design lets each room import besides
DESIGN: dict[str, set[str]] = {
    "errors": set(),
    "facts": set(),
    "runtime": set(),
    "predictive": set(),
    "tasks": {"predictive"},
    "settings": set(),
    "data": {"tasks"},
    "students": {"predictive", "tasks"},
    "starts": {"students"},
    "runs": {"students", "tasks"},
    "teachers": {"tasks", "runs"},
    "cache": {"tasks"},
    "caching": {"data", "teachers", "cache", "tasks"},
    "methods": {"predictive", "students", "tasks"},
    "logs": set(),
    "inspecting": {"runs", "cache", "serving", "settings"},
    "training": {"logs", "tasks", "data", "cache", "methods", "starts", "students", "runs"},
    "evaluation": {"data", "cache", "students", "predictive", "tasks", "runs"},
    "reporting": {"evaluation", "tasks", "data", "runs"},
    "serving": {"students", "runs", "tasks"},
    "exporting": {"students", "runs", "tasks", "serving"},
    "quickstart": set(),
    "workspace": {"tasks", "settings", "data", "teachers", "cache", "caching", "runs"},
    "chains": {"training", "caching", "runs"},
    "setup": {"data", "teachers", "tasks", "workspace", "settings"},
    "cli": {"workflows", "settings"},
}
DESIGN["workflows"] = set(DESIGN) - {"cli", "chains"}

# and what it did not foresee, each with its reason
BEYOND: dict[str, set[str]] = {
    "settings": {"tasks"},  # which keys go together depends on what an answer is
    "runs": {"settings"},  # args.toml are settings, and load_student reads where one's own runs are
    "teachers": {
        "settings",  # a kind reads the [teachers] section, instead of a second record of the same fields
        "students",  # what its pooled prediction is, of a run
        "data",  # arrays on disk are read as those of data: what a header claims is compared before memory is taken
    },
    "caching": {"settings"},  # which keys of members and views do nothing
    "training": {
        "predictive",  # what methods' losses and students' heads are written against
        "settings",  # its sections are values: [student], [train], [teachers]
        "teachers",  # members whose weights a student starts from are built
    },
    "evaluation": {
        "teachers",  # what is asked of a member
        "serving",  # an exported file in the place of a run
    },
    "exporting": {
        "predictive",  # what members pool to, where no student says it
        "settings",  # what the file is called that stands beside
    },
    "serving": {
        "data",  # rows are shown to the graph as they were to the student
        "predictive",  # what a student of torch says of rows, by name
    },
    "workspace": {"evaluation", "logs", "methods", "training"},  # what each of them needs is opened here
    "setup": {
        "cache",  # whether one that is there fits, and how wide a record is
        "caching",  # members are tried as the pass tries them
        "methods",  # whether the method goes with the rest
        "runs",  # which folders are edistill's own
        "students",  # whether the body can be built
        "training",  # how long it is
    },
    "chains": {
        "cache",  # whether a generation's cache is of the one before
        "settings",  # a generation's own follow from the chain's
        "workflows",  # a generation is cached and trained as the commands do it
        "workspace",  # whose rows are the chain's
    },
    "cli": {
        "cache",  # the names of members, which a shell completes
        "chains",  # `train --generations`
        "evaluation",  # the typed results, which it renders
        "runs",  # the names of runs, which a shell completes
        "tasks",  # what the names of an answer are called
    },
}
ALLOWED = {room: rooms | BEYOND.get(room, set()) | GROUND for room, rooms in DESIGN.items()}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Full names of the package's own modules that a file imports: at its top, in functions, or for types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith(f"{PACKAGE}."))


@pytest.fixture(scope="module")
def rooms() -> dict[str, dict[str, list[str]]]:
    """Room to the rooms it imports, and the files that do so."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in MODULES:
        for name in imported(path):
            other = name.split(".")[1]
            if other not in (room_of(path), "__version__"):
                found[room_of(path)][other].append(str(path.relative_to(ROOT)))
    return found


# --- rooms ------------------------------------------------------------------------------------------------------


def test_every_file_stands_in_a_room_of_the_table() -> None:
    assert {room_of(path) for path in MODULES} == {*DESIGN, "__init__", "__main__"}


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_what_the_table_allows(room: str, rooms: dict[str, dict[str, list[str]]]) -> None:
    forbidden = {other: files for other, files in rooms[room].items() if other not in ALLOWED[room]}
    assert not forbidden


def test_the_front_door_opens_on_the_student_and_the_command_line(rooms: dict[str, dict[str, list[str]]]) -> None:
    assert set(rooms["__init__"]) == {"chains", "errors", "methods", "runs", "settings", "workflows"}
    assert set(rooms["__main__"]) == {"cli"}


def test_what_goes_beyond_the_design_is_needed(rooms: dict[str, dict[str, list[str]]]) -> None:
    unused = {room: others - rooms[room].keys() for room, others in BEYOND.items() if others - rooms[room].keys()}
    assert not unused, "remove it from BEYOND"


def test_no_rooms_import_each_other_in_a_circle(rooms: dict[str, dict[str, list[str]]]) -> None:
    order = list(TopologicalSorter({room: set(others) for room, others in rooms.items()}).static_order())
    assert order.index("errors") < order.index("workflows") < order.index("cli")


# --- torch ------------------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import importlib, pkgutil, sys
from ensemble_distill.cli.app import SUMMARIES, app

def bring(name):
    importlib.import_module(name)
    heavy = [name for name in ("torch", "timm", "torchvision") if name in sys.modules]
    assert not heavy, f"{name} imports {heavy}"

import ensemble_distill.data
for name in "errors settings facts serving.served runtime.files runtime.keys runtime.lock runtime.progress".split():
    bring(f"ensemble_distill.{name}")
for name in "workflows.predict workflows.inspect workflows.verify cache.reader".split():
    bring(f"ensemble_distill.{name}")
for module in pkgutil.walk_packages(ensemble_distill.data.__path__, "ensemble_distill.data."):
    bring(module.name)
for module in pkgutil.walk_packages(ensemble_distill.cli.__path__, "ensemble_distill.cli."):
    bring(module.name)
for arguments in (["--help"], ["--version"], *([name, "--help"] for name in SUMMARIES)):
    assert app(arguments, standalone_mode=False) in (0, None)
    bring("ensemble_distill.errors")
print("started")
"""


@pytest.mark.thorough
def test_what_must_start_fast_starts_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "started"


# --- files ------------------------------------------------------------------------------------------------------

MOST_LINES = 400


@pytest.mark.parametrize("folder", [ROOT, TESTS], ids=lambda folder: folder.name)
def test_files_are_short(folder: Path) -> None:
    files = [*folder.rglob("*.py")]
    assert len(files) > 200, "the test looks somewhere else"
    long = {
        str(path.relative_to(folder)): lines
        for path in files
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert not long


# what makes, changes or removes files; `replace` and `open` are looked at below, since other things are called so
TOUCHES = {"unlink", "rmdir", "rmtree", "rename", "renames", "write_bytes", "mkdir", "makedirs", "touch", "symlink_to"}
TOUCHES |= {"hardlink_to", "link", "symlink", "move", "copy2", "copyfile", "copytree", "chmod", "truncate", "tofile"}
TOUCHES |= {"save_file", "savetxt", "NamedTemporaryFile", "TemporaryDirectory", "mkstemp", "mkdtemp", "removedirs"}


def touches(path: Path) -> Iterator[str]:
    """What in a file writes or removes files."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        module = getattr(getattr(node.func, "value", None), "id", "")
        said = [*node.args[:2], *(word.value for word in node.keywords if word.arg == "mode")]
        modes = [value.value for value in said if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        if (
            name in TOUCHES
            or (name == "open" and any(re.fullmatch("r?b?[wax+][bt+]*", mode) for mode in modes))
            or (name in ("remove", "replace") and module == "os")
            or (name == "write_text" and isinstance(node.func, ast.Attribute))  # ours is a function
            or (name == "save" and module in ("np", "torch", "onnx"))
        ):
            yield name


@pytest.mark.thorough
def test_only_the_room_of_files_touches_files() -> None:
    """So that every write is whole, and none goes through a link to somewhere else."""
    touching = {str(path.relative_to(ROOT)): set(touches(path)) for path in MODULES if any(touches(path))}
    files = touching.pop("runtime/files.py")
    assert {"unlink", "rmtree", "mkdir", "open", "chmod"} <= files, "the test looks for what files.py does not do"
    assert touching.pop("runtime/lock.py") == {"mkdir", "unlink", "rmdir"}
    assert touching.pop("cli/render.py", {"open"}) == {"open"}  # of os.devnull
    assert not touching


def prints(path: Path) -> Iterator[str]:
    """What in a file writes to the terminal."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "input"):
            yield node.func.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in ("sys.stdout", "sys.stderr", "typer.echo", "typer.secho", "logging.info", "logging.warning"):
                yield name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rich"):
            yield node.module or ""


def test_only_render_prints() -> None:
    printing = {str(path.relative_to(ROOT)): set(prints(path)) for path in MODULES if any(prints(path))}
    render = printing.pop("cli/render.py")
    assert "sys.stdout" in render, "the test looks for what render does not do"
    assert printing == {
        "cli/app.py": {"typer.echo"},  # the version, before there is anything to render
        "cli/interrupts.py": {"sys.stderr"},  # an interrupt, before render is imported
    }


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in MODULES
        if (text := path.read_text(encoding="utf-8")) and not ast.get_docstring(ast.parse(text))
    ]
    assert not silent


DOORS = [
    *sorted((ROOT / "workflows").glob("*.py")),
    *(
        ROOT / name
        for name in (
            "data/__init__.py",
            "teachers/__init__.py",
            "runs/run.py",
            "serving/served.py",
            "settings/loading.py",
        )
    ),
]


@pytest.mark.parametrize("path", DOORS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_python_users_call_is_documented(path: Path) -> None:
    silent = [
        node.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_" and not ast.get_docstring(node)
    ]
    assert not silent
