"One set of versions for every way of installing: pins, environment.yml, Makefile, pyproject.toml."

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import handlab
from handlab.core import project_root

ROOT = project_root()
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = PROJECT["optional-dependencies"]


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


PINS = {
    normal(line.partition("==")[0]): line.partition("==")[2] for line in CONSTRAINTS.split() if "==" in line
}


def needs(requirements, extra=""):
    "The packages of some requirements that hold on this machine."
    wanted = [Requirement(each) for each in requirements]
    return {normal(each.name) for each in wanted if not each.marker or each.marker.evaluate({"extra": extra})}


def test_every_package_that_an_environment_gets_is_pinned():
    waiting = needs([*PROJECT["dependencies"], *OPTIONAL["dev"], *OPTIONAL["tensorboard"], *OPTIONAL["umap"]])
    found = set()
    while waiting:
        name = waiting.pop()
        found.add(name)
        try:
            waiting |= needs(metadata.requires(name) or []) - found
        except metadata.PackageNotFoundError:
            continue  # an optional part that is not installed here
    unpinned = {name for name in found - PINS.keys() if not name.startswith(("nvidia-", "cuda-"))}
    assert unpinned <= {"triton"}  # of the CUDA build, which pins it and NVIDIA's libraries itself


def test_the_pins_allow_every_python_that_the_project_allows():
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    pinned = [each for each in metadata.distributions() if PINS.get(normal(each.name)) == each.version]
    newer = [
        each.name for each in pinned if oldest not in SpecifierSet(each.metadata["Requires-Python"] or "")
    ]
    assert pinned and not newer


def test_conda_installs_the_pins_and_the_project():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    python = re.search(r"python=(\d+\.\d+)", text)[1]
    assert f"(Python {python})" in CONSTRAINTS.splitlines()[0]
    assert PROJECT["requires-python"] == f">={python}" and f"below {python}" not in text
    assert re.findall(r"^      - (.*)", text, re.M) == ["-c constraints.txt", "-e .[dev]"]
    assert re.findall(r"^  - (\w+)(?:=.*)?$", text, re.M) == ["python", "pip", "make"]  # all else is pinned


def active(folder, python):
    "An environment whose Python runs these lines of a shell."
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").write_text(f"#!/bin/sh\n{python}\n")
    (folder / "bin/python").chmod(0o755)
    return folder


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.parametrize("variable", ["CONDA_PREFIX", "VIRTUAL_ENV"])
def test_make_uses_an_active_environment_that_has_the_pins(variable, tmp_path):
    def commands(folder):
        kept = {
            name: value for name, value in os.environ.items() if name not in ("CONDA_PREFIX", "VIRTUAL_ENV")
        }
        words = ["make", "--dry-run", "figures", "test"]
        given = {**kept, variable: str(folder)}
        return subprocess.run(words, cwd=ROOT, env=given, capture_output=True, text=True).stdout

    good, bad = active(tmp_path / "good", "exit 0"), active(tmp_path / "bad", "exit 1")
    assert f"{good}/bin/python -m handlab.graph.run" in commands(good)
    assert f"{good}/bin/nbdev_test" in commands(good) and ".venv" not in commands(good)
    for folder in (bad, tmp_path / "none", ROOT / ".venv"):
        assert ".venv/bin/python -m handlab.graph.run" in commands(folder)


def pins_in(site):
    "What .ci/pins.py says of an environment with only the packages of a folder."
    words = [sys.executable, "-I", "-S", "-c", f"import sys, runpy; sys.path.insert(0, {str(site)!r}); "]
    words[-1] += f"runpy.run_path({str(ROOT / '.ci/pins.py')!r}, run_name='__main__')"
    return subprocess.run(words, capture_output=True, text=True)


def test_an_environment_with_another_version_is_refused_by_name(tmp_path):
    def install(name, version):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        return folder

    said = pins_in(tmp_path)
    assert said.returncode == 1 and not said.stderr  # nothing of handlab: an environment for other things
    origin = install("handlab", handlab.__version__) / "direct_url.json"
    origin.write_text(json.dumps({"url": ROOT.as_uri(), "dir_info": {"editable": True}}))
    assert "torch is not installed" in pins_in(tmp_path).stderr
    wanted = needs([*PROJECT["dependencies"], *OPTIONAL["dev"]])
    folders = {name: install(name, PINS[name] + "+cpu" * (name == "torch")) for name in wanted}
    said = pins_in(tmp_path)
    assert said.returncode == 0, said.stderr
    shutil.rmtree(folders["numpy"])
    install("numpy", "1.0")
    assert f"numpy 1.0 is installed, not {PINS['numpy']}" in pins_in(tmp_path).stderr
    origin.write_text(json.dumps({"url": "file:///elsewhere"}))
    assert "its handlab is that of file:///elsewhere" in pins_in(tmp_path).stderr


def test_the_version_is_the_same_everywhere():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    assert settings["DEFAULT"]["version"] == handlab.__version__ and PROJECT["dynamic"] == ["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {handlab.__version__}\n" in citation
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[1]
    assert newest == handlab.__version__


def test_links_and_names_in_the_guides_exist():
    for guide in ("CONTRIBUTING.md", "INSTALL.md", "CHANGELOG.md"):
        text = (ROOT / guide).read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("http")]
        assert all((ROOT / link.split("#")[0]).exists() for link in links), guide
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z]+)", (ROOT / "CONTRIBUTING.md").read_text())) <= targets
