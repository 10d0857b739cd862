"The wheel, used away from the repository: what it holds, its commands, where it looks for runs and data."

import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.version import Version

import handlab
from handlab.aligned.experiment import AlignedSettings
from handlab.aligned.explorer import practice_run
from handlab.settings import make_settings

PACKAGE = Path(handlab.__file__).parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "A folder with what the wheel installs, built offline by the setuptools of this environment."
    try:
        found = Version(metadata.version("setuptools"))
    except metadata.PackageNotFoundError:
        pytest.skip("setuptools is not installed, and building without the network needs it")
    if found < Version("77"):
        pytest.skip(f"setuptools {found} is older than 77, and building without the network needs it")
    tree, site = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("site")
    for name in SOURCES:
        shutil.copy(PACKAGE.parent / name, tree)
    shutil.copytree(PACKAGE, tree / "handlab", ignore=shutil.ignore_patterns("__pycache__"))
    words = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", tree, tree]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    with zipfile.ZipFile(next(tree.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    return site


@pytest.fixture
def python(site, tmp_path):
    "Calls Python in an empty folder, with the wheel's content as its only handlab."
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HANDLAB_")}

    def call(*words, **variables):
        given = {**kept, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", **variables}
        words = [sys.executable, *map(str, words)]
        return subprocess.run(words, cwd=tmp_path, env=given, capture_output=True, text=True)

    return call


def test_every_file_of_the_package_is_in_the_wheel(site):
    files = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file()}
    files = {file for file in files if "__pycache__" not in file.parts}
    lacking = [file.as_posix() for file in files if not (site / "handlab" / file).exists()]
    assert not lacking
    assert {file.suffix for file in files} >= {".py", ".csv", ".html", ".css", ".js", ".typed"}
    assert {path.name for path in site.iterdir()} == {"handlab", f"handlab-{handlab.__version__}.dist-info"}


ABOUT = """
from importlib import metadata
import handlab
from handlab.core import project_root
from handlab.machine import git_commit
from handlab.results.published import published_curves
print(handlab.__version__, metadata.version("handlab"), handlab.__file__)
print(project_root(), git_commit(), len(published_curves("stb")) > 0)
"""


def test_the_version_the_root_and_the_published_facts(site, python, tmp_path):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)  # a repository of the user's own
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = other\n")
    said = python("-c", ABOUT)
    assert said.returncode == 0, said.stderr
    version, root = said.stdout.splitlines()
    assert version == f"{handlab.__version__} {handlab.__version__} {site / 'handlab' / '__init__.py'}"
    assert root == f"{tmp_path.resolve()} unknown True"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    said = python("-c", ABOUT, HANDLAB_ROOT=str(elsewhere))
    assert said.stdout.splitlines()[1] == f"{elsewhere.resolve()} unknown True"


@pytest.mark.parametrize("command", handlab.COMMANDS)
def test_every_command_has_its_help(command, python, tmp_path):
    said = python("-m", command, "--help")
    assert said.returncode == 0 and f"python -m {command}" in said.stdout, said.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, line",
    [
        (
            ["-m", "handlab.graph.run", "list"],
            "the notebooks of the graph are not there; call it in a checkout",
        ),
        (["-m", "handlab.graph.run", "figures"], "call it in a checkout of the project"),
        (["-m", "handlab.pages.manifest"], "there is no such folder"),
        (["-m", "handlab.predict", "a.png", "--detect"], "there is no such file"),
    ],
)
def test_what_needs_the_repository_says_so_in_one_line(words, line, python, tmp_path):
    said = python(*words)
    assert said.returncode == 2 and line in said.stderr
    assert len(said.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_a_notebook_without_its_checkout_says_so(python, tmp_path):
    code = "from handlab.settings import check_parameters; check_parameters({'In': []}, 'train_pi')"
    said = python("-c", code)
    assert "name one in HANDLAB_ROOT" in said.stderr.splitlines()[-1]


LOAD = "import sys, handlab; print(handlab.load(sys.argv[1]))"


def test_weights_are_found_by_a_folder_or_by_the_root(python, tmp_path):
    said = python("-c", LOAD, "S1")
    assert "name in HANDLAB_ROOT" in said.stderr.splitlines()[-1]
    run = tmp_path / "project/runs/shipped/train_aligned-S1-sim-rhd-seed0"
    practice_run(make_settings(AlignedSettings, "smoke", strategy="S1"), run)
    by_root = python("-c", LOAD, "S1", HANDLAB_ROOT=str(tmp_path / "project"))
    by_folder = python("-c", LOAD, run.relative_to(tmp_path))
    assert by_root.stdout == by_folder.stdout and by_root.stdout.startswith("HandNetwork(S1, ")
