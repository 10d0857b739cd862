"What the shell, the folder and the machine are like around handlab: each is met or named in one line."

import os
import subprocess
import sys

import nbformat
import pytest

from handlab.core import project_root

ROOT = project_root()


def call(words, **variables):  # a variable None: not set
    given = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    environment = {name: str(value) for name, value in given.items() if value is not None}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)


COMPILED = """
import sys
from handlab.machine import compiled_once, in_processes


@compiled_once(nogil=True)
def twice(number):
    return 2 * number


def twice_and_cache(number):
    return twice(number), sum(twice.stats.cache_hits.values())


if __name__ == "__main__":
    first = twice(4)
    print(first, *max(in_processes(twice_and_cache, range(4), workers=2)))
"""


def test_compiled_functions_where_nothing_can_be_written(tmp_path):
    "Compiled once per call, for all its processes, with one line; nothing is left behind."
    (tmp_path / "module.py").write_text(COMPILED)
    for name in ("__pycache__", "home"):
        (tmp_path / name).touch()  # a file where a folder is due: nobody can write into it, root neither
    (tmp_path / "temporary").mkdir()
    variables = {"HOME": tmp_path / "home", "TMPDIR": tmp_path / "temporary", "PYTHONDONTWRITEBYTECODE": 1}
    unset = dict.fromkeys(("XDG_CACHE_HOME", "NUMBA_CACHE_DIR"))
    said = call([sys.executable, tmp_path / "module.py"], **variables, **unset)
    assert said.returncode == 0, said.stderr
    assert said.stdout.split() == ["8", "6", "1"]  # a worker took the parent's code from the folder
    assert said.stderr.count("set NUMBA_CACHE_DIR to a folder that can be") == 1
    assert not any((tmp_path / "temporary").iterdir())
    said = call([sys.executable, tmp_path / "module.py"], **variables, NUMBA_CACHE_DIR=tmp_path / "kept")
    assert said.returncode == 0 and not said.stderr and any((tmp_path / "kept").iterdir())


DRAWING = "plt.plot([1, 2])"


@pytest.mark.parametrize(
    "backend", [None, "Agg", "agg", "TkAgg", "module://matplotlib_inline.backend_inline"]
)
def test_figures_are_in_the_executed_notebook_whatever_the_shell_has(backend, tmp_path):
    import_both = ("import matplotlib.pyplot as plt", "import handlab.core")
    for number, imports in enumerate((import_both, import_both[::-1])):
        cells = [nbformat.v4.new_code_cell(text) for text in ("\n".join(imports), DRAWING)]
        notebook = nbformat.v4.new_notebook(cells=cells)
        nbformat.write(notebook, tmp_path / "in.ipynb")
        out = tmp_path / f"out{number}.ipynb"
        words = ["-m", "papermill", "--no-progress-bar", "--kernel", "python3", tmp_path / "in.ipynb", out]
        said = call([sys.executable, *words], MPLBACKEND=backend)
        assert said.returncode == 0, said.stderr
        assert out.read_text().count('"image/png"') == 1


def test_every_notebook_that_draws_imports_the_core():
    "`handlab.core` is what brings figures into the notebook; every other module imports it."
    code = (
        "import importlib, pkgutil, sys, handlab\n"
        "for module in pkgutil.walk_packages(handlab.__path__, 'handlab.'):\n"
        "    if module.ispkg or module.name == 'handlab._modidx': continue\n"
        "    for name in list(sys.modules):\n"
        "        if name.startswith('handlab.'): del sys.modules[name]\n"
        "    importlib.import_module(module.name)\n"
        "    if 'handlab.core' not in sys.modules: print(module.name)\n"
    )
    assert call([sys.executable, "-c", code]).stdout.split() == ["handlab.train.layers"]  # draws nothing
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        assert "import matplotlib" not in text or "from handlab" in text, path
