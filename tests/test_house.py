"What a reader of the notebooks relies on: short cells, small modules, imports in one direction."

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
# From the ground floor upwards. The packages of one floor do not import each other.
FLOORS = ["core", "settings machine", "hand", "data", "sim", "train", "privileged aligned", "predict results"]
FLOORS += ["pages", "graph"]
FLOOR = {package: height for height, packages in enumerate(FLOORS) for package in packages.split()}
MODULES = [path for path in sorted((ROOT / "handlab").rglob("*.py")) if not path.name.startswith("_")]


def own_name(path: Path) -> str:
    return path.relative_to(ROOT / "handlab").with_suffix("").as_posix()


def imported_packages(path: Path):
    "The packages of handlab that a module imports, also within its functions."
    above = path.relative_to(ROOT / "handlab").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            inside = [*above[: len(above) + 1 - node.level], *(node.module or "").split(".")]
            yield next(filter(None, inside), node.names[0].name)
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("handlab."):
            yield node.module.split(".")[1]


@pytest.mark.parametrize("path", MODULES, ids=own_name)
def test_imports_go_down(path):
    package = own_name(path).split("/")[0]
    for imported in set(imported_packages(path)) - {package}:
        assert FLOOR[imported] < FLOOR[package], f"{own_name(path)} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=own_name)
def test_a_module_is_small(path):
    public = re.search(r"^__all__ = \[(.*?)\]", path.read_text(), re.M | re.S)
    assert len(re.findall(r"'\w+'", public[1] if public else "")) <= 30


EXPORTED = {  # (notebook, cell): source
    (path.name, cell.id): cell.source.strip()
    for path in sorted((ROOT / "nbs").rglob("*.ipynb"))
    if ".ipynb_checkpoints" not in path.parts
    for cell in nbformat.read(path, 4).cells
    if cell.cell_type == "code" and re.match(r"#\| *export\b", cell.source)
}
# A class of settings has a line for each.
LONG = re.compile(r"^class \w*Settings\(|^class ExperimentSettings:", re.M)


def test_an_exported_cell_is_short():
    lines = {place: source.splitlines() for place, source in EXPORTED.items()}
    written = [sum(bool(line.strip()) and line[:2] != "#|" for line in each) for each in lines.values()]
    assert len(written) > 1000 and median(written) <= 12
    assert not [at for at, each in lines.items() if len(each) > 40 and not LONG.search(EXPORTED[at])]
    assert sum(len(each) > 40 for each in lines.values()) <= 5


@pytest.mark.parametrize("path", MODULES, ids=own_name)
def test_a_function_is_short(path):
    "Its signature aside, which has a line for each parameter that it explains."
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.body[0].lineno < 38, f"{own_name(path)}: {node.name}"


def test_the_library_is_what_the_notebooks_export(tmp_path):
    "Also after ruff: a cell that is not formatted would be exported in another form than its module has."
    hidden = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for folder in ("nbs", "handlab"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=hidden)
    shutil.copy(ROOT / "settings.ini", tmp_path)
    subprocess.run([Path(sys.executable).with_name("nbdev_export")], cwd=tmp_path, check=True)
    for path in (tmp_path / "handlab").rglob("*.py"):
        committed = ROOT / path.relative_to(tmp_path)
        assert path.read_text() == committed.read_text(), f"run 'make export': {own_name(committed)}"


def public_functions(node: ast.AST):
    "The functions and methods that a reader calls, constructors among them."
    for each in ast.iter_child_nodes(node):
        if isinstance(each, ast.ClassDef) and not each.name.startswith("_"):
            yield from public_functions(each)
        if isinstance(each, ast.FunctionDef) and (
            each.name[0] != "_" or each.name in ("__init__", "__call__")
        ):
            yield each


def gives_something(function: ast.FunctionDef) -> bool:
    "Whether it returns or yields a value itself, functions within it aside."
    waiting = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Yield, ast.YieldFrom)) or (isinstance(node, ast.Return) and node.value):
            return True
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda)):
            waiting.extend(ast.iter_child_nodes(node))
    return False


def untyped(function: ast.FunctionDef) -> list[str]:
    given = function.args
    several = [each for each in (given.vararg, given.kwarg) if each]
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *several]
    bare = [each.arg for each in every if not each.annotation and each.arg not in ("self", "cls")]
    return bare + ["return"] * (not function.returns and gives_something(function))


@pytest.mark.parametrize("path", MODULES, ids=own_name)
def test_public_signatures_name_all_types(path):
    bare = {each.name: untyped(each) for each in public_functions(ast.parse(path.read_text()))}
    assert not {name: missing for name, missing in bare.items() if missing}


def test_a_bare_signature_is_noticed():
    source = "class A:\n def f(self, x, *y: int, z=1):\n  def g(): return 1\n  x()\n def h(self): yield 1"
    assert [untyped(each) for each in public_functions(ast.parse(source))] == [["x", "z"], ["return"]]


def test_imports_have_cells_of_their_own():
    "nbdev runs such a cell whole where only its imports are wanted."
    for place, source in EXPORTED.items():
        parts = ast.parse(source).body
        imports = [isinstance(part, (ast.Import, ast.ImportFrom)) for part in parts]
        assert all(imports) or not any(imports), place
