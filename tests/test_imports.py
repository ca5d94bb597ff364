import ast
import dataclasses
import subprocess
import sys
from inspect import isfunction
from pathlib import Path

import erase
from erase.runs.opening import Opened

ROOT = Path(erase.__file__).parent
ORDER = [
    {"core", "prompts", "support", "bundled"},
    {"models"},
    {"tasks"},
    {"training", "erasure", "evaluate"},
    {"methods", "attacks"},
    {"runs"},
    {"app"},
    {"cli"},
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        rooms |= {name.split(".")[1] for name in names if name.startswith("erase.")}
    return rooms


def test_imports_point_from_the_outer_rooms_to_the_core():
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room in {"__init__", "__main__"}:
            continue
        for other in imported_rooms(path) - {room}:
            assert RANK[other] < RANK[room], f"{path} imports erase.{other}"


def test_core_is_torch_only_and_sees_no_file():
    files = {"io", "json", "os", "pathlib", "shutil", "tempfile"}
    allowed = {"torch", "erase", *sys.stdlib_module_names} - files
    for path in (ROOT / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert {name.split(".")[0] for name in names} <= allowed, path
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path


def test_evaluate_knows_no_method():
    for path in (ROOT / "evaluate").glob("*.py"):
        assert "methods" not in imported_rooms(path)


def test_what_a_run_works_with_is_values_and_known_to_no_lower_room():
    for field in dataclasses.fields(Opened):
        assert "Callable" not in str(field.type), field.name
    assert Opened.__dataclass_params__.frozen
    assert not [name for name, part in vars(Opened).items() if isfunction(part) and name[0] != "_"]
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if RANK.get(room, len(ORDER)) < RANK["runs"]:
            assert "runs" not in imported_rooms(path), path


def test_opening_the_package_needs_no_judge_and_no_plot():
    script = (
        "import sys, erase; erase.methods(), erase.load_model; "
        "print({'open_clip', 'matplotlib', 'sklearn', 'nudenet'} & sys.modules.keys())"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert said.stdout == "set()\n"
