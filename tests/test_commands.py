"What a user types: parameters of notebooks, variables of make, folders in the environment, command lines."

import importlib
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import nbformat
import numba
import numpy as np
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import handlab
from handlab.aligned.experiment import AlignedSettings
from handlab.aligned.strategies import make_recipe
from handlab.core import (
    HandlabError,
    atomic_folder,
    make_folder,
    named_folder,
    one_line_errors,
    project_path,
    project_root,
    write_json,
)
from handlab.data.bighand import BigHand, write_drawn
from handlab.data.dexter_object import DexterObject
from handlab.data.files import real_root, write_image
from handlab.data.rhd import RHD
from handlab.data.stb import STB, write_labels
from handlab.graph.run import become_snakemake
from handlab.pages import front
from handlab.pages.page import SETS
from handlab.pages.paper_aligned import aligned_page
from handlab.privileged.stages import PiSettings
from handlab.results.catalogue import graph_runs, real_roots, run_command
from handlab.results.runs import runs_to_show
from handlab.settings import check_parameters, make_settings, notebook_parameters
from handlab.sim import write
from handlab.train.experiment import settings_given

NOTEBOOKS = sorted(
    path.stem for path in (project_root() / "nbs").glob("*.ipynb") if notebook_parameters(path)[0]
)


@pytest.fixture
def own_cell():
    "The cell of parameters of train_pi."
    cells = nbformat.read(project_root() / "nbs/train_pi.ipynb", 4).cells
    return next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))


FIELDS = [field.name for field in fields(PiSettings)]


def given(*cells):
    namespace = {"In": ["", *cells]}
    for cell in cells:
        exec(cell, namespace)
    return check_parameters(namespace, "train_pi", FIELDS)


def test_only_the_cell_of_parameters_and_what_papermill_gave_are_judged(own_cell):
    usual = given(own_cell)
    assert usual["train_frames"] is None and "batch_size" not in usual
    for scratch in ("n = 3", 'my_note: str = "try 2"', "seeeds = [1, 2]", "import os\nprofiles = os.sep"):
        assert given(scratch, own_cell) == given(own_cell, scratch) == usual
    assert given(own_cell, "seed = 5\nn = 1")["seed"] == 5
    assert given(own_cell, "batch_size = 4 * 4")["batch_size"] == 16
    assert given(own_cell + "\ntrain_frames = 80 * 10\nmine = 1") == usual | {"train_frames": 800}
    paths = '# Parameters\nPAPERMILL_INPUT_PATH = "a"\nPAPERMILL_OUTPUT_PATH = "b"\nseed = 2'
    assert given(own_cell, paths) == usual | {"seed": 2}


def test_a_misspelt_parameter_is_named_with_the_one_that_was_meant(own_cell):
    for cells, meant in (
        ((own_cell, "# Parameters\nSEED = 3"), "seed"),
        ((own_cell, "# Parameters\nbatchsize = 3"), "batch_size"),
        ((own_cell + "\nwidht = 1",), "width"),
        ((own_cell + "\nbatch_sizes = 1",), "batch_size"),
    ):
        with pytest.raises(HandlabError, match=f"no such parameter; did you mean {meant}?"):
            given(*cells)
    with pytest.raises(HandlabError, match="'colour': this notebook has no such parameter; choose one of"):
        given(own_cell, "# Parameters\ncolour = 3")
    assert given(own_cell + "\nwidht = 1", own_cell) == given(own_cell)  # mended and run again
    with pytest.raises(HandlabError, match="'dataset': it has no value"):
        given('profile = "smoke"')


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_notebook_checks_its_parameters_under_its_own_name(notebook):
    cells = nbformat.read(project_root() / f"nbs/{notebook}.ipynb", 4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert text.count("check_parameters(globals()") == 1
    assert f'check_parameters(globals(), "{notebook}"' in text


@pytest.mark.parametrize(
    "cell, words",
    [
        ("data_root = 3", "parameter 'data_root': 3 is not str; write it in quotes, or `-r data_root 3`"),
        ("profile = ['quick']", r"parameter 'profile': \['quick'\] is not str; give a value of the type str"),
        ("seed = 1.5", "parameter 'seed': 1.5 is not int"),
        ("partial = 1", "parameter 'partial': 1 is not bool"),
        ("seed = True", "parameter 'seed': True is not int"),
        ("seed = None", "parameter 'seed': None is not int"),
        ("seed = -1", "parameter 'seed': -1 is too small; give 0 or more"),
    ],
)
def test_a_parameter_of_another_type_is_named_with_its_value(own_cell, cell, words):
    with pytest.raises(HandlabError, match=words) as error:
        given(own_cell, f"# Parameters\n{cell}")
    assert "\n" not in str(error.value)


def test_what_may_have_several_types_is_taken_as_it_is(own_cell):
    for cell in (
        "skip = 3",
        "skip = ['training/00003']",
        "out = ''",
        "from pathlib import Path\nout = Path('a')",
    ):
        given(own_cell, f"# Parameters\n{cell}")


@pytest.mark.parametrize("reader", [RHD, STB, DexterObject, BigHand, project_path])
@pytest.mark.parametrize("root", [3, None, "~a-user-who-is-not-there/rhd", ["data"]])
def test_what_is_no_path_is_one_line(reader, root):
    with pytest.raises(HandlabError, match="it is no path of this machine; give the path"):
        reader(root)


@pytest.mark.parametrize("rigid", ["a", None, 0, -1.0, float("nan")])
def test_a_length_that_is_none_is_one_line(rigid):
    with pytest.raises(HandlabError, match="it is no length above 0 mm; give a number such as 0.1"):
        STB("data/stb", rigid=rigid)


def test_a_number_that_counts_nothing_is_one_line():
    cells = nbformat.read(project_root() / "nbs/predict.ipynb", 4).cells
    own = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    for cell, words in (("every = 0", "0 is too small; give 1"), ("scale = -1", "-1 is too small; give 0")):
        namespace = {"In": ["", own, f"# Parameters\n{cell}"]}
        exec(f"{own}\n{cell}", namespace)
        with pytest.raises(HandlabError, match=words):
            check_parameters(namespace, "predict")


def test_a_folder_that_cannot_be_written_is_named_before_the_work(own_cell, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for out, name in (("file", "file"), ("file/run", "file"), ("link/run", "link")):
        with pytest.raises(HandlabError, match=f"out=.*/{name} is no folder; name another folder"):
            given(own_cell, f"# Parameters\nout = {str(tmp_path / out)!r}")
    assert given(own_cell, f"# Parameters\nout = {str(tmp_path / 'new/run')!r}")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may be run by root
    with pytest.raises(HandlabError, match=f"nothing can be written into {tmp_path}; name another folder"):
        given(own_cell, f"# Parameters\nout = {str(tmp_path / 'run')!r}")


def test_a_file_in_the_way_of_a_folder_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for call in (
        lambda: make_folder(tmp_path / "file"),
        lambda: write_json(tmp_path / "file/metrics.json", {}),
        lambda: write_json(tmp_path / "folder", {}),
        lambda: write_json(tmp_path / ("a" * 300), {}),
        lambda: write_image(tmp_path / "file/a.png", np.zeros((2, 2), np.uint8)),
    ):
        with pytest.raises(HandlabError, match="it could not be written .*; (move what lies|give a shorter)"):
            call()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where no folder can be made")
def test_a_folder_that_cannot_be_made_is_one_line():
    for call in (
        lambda: make_folder("/proc/here"),
        lambda: write_json("/proc/here/run/metrics.json", {}),
        lambda: write_drawn("/proc/here"),
        lambda: write_labels("/proc/here", "B1Counting", np.zeros((3, 21, 1))),
    ):
        with pytest.raises(HandlabError, match="/proc/here.*: the folder cannot be made; name another"):
            call()
    for call in (lambda: write_json("/proc/a", {}), lambda: atomic_folder("/proc/a").__enter__()):
        with pytest.raises(HandlabError, match="/proc/a: nothing can be written there; name another folder"):
            call()


def test_names_that_are_nearly_right_are_said(tmp_path):
    (tmp_path / "rhd").mkdir()
    assert real_roots(tmp_path) == {"rhd": (tmp_path / "rhd").as_posix()}
    with pytest.raises(HandlabError, match=f"rhd: holds no folder rhd or stb; did you mean {tmp_path}?"):
        real_roots(tmp_path / "rhd")
    with pytest.raises(HandlabError, match="cores: -1 is no number of cores; give 1 or more, or 0 for all"):
        become_snakemake("smoke", 1, cores=-1)
    with pytest.raises(HandlabError, match="strategy 's4': it is not known; did you mean S4?"):
        make_recipe("s4")
    with pytest.raises(HandlabError, match="profile 'quik': there is no such profile; did you mean quick?"):
        runs_to_show("quik")
    with pytest.raises(HandlabError, match="seeds -1: it is negative; give 0 for all"):
        runs_to_show(seeds=-1)
    with pytest.raises(HandlabError, match="data set 'sim-rdh': this page has no such rhd; did you mean"):
        aligned_page("runs/quick", {}, sets={**SETS, "rhd": "sim-rdh"})


@pytest.mark.parametrize(
    "other, words", [("dexter", "did you mean dexter-object?"), ("dexter-object", "needs a folder; name it")]
)
def test_the_other_set_is_looked_for_before_the_training(own_cell, other, words):
    with pytest.raises(HandlabError, match=f"dataset '{other}': .*{words}"):
        settings_given(PiSettings, "smoke", given(own_cell, f"# Parameters\nother_set = {other!r}"))


def test_a_choice_of_another_type_is_one_line(tmp_path):
    write_drawn(tmp_path)
    for call in (
        lambda: STB("a", split=["training"]),
        lambda: STB("a", camera=["SK"]),
        lambda: RHD("a", split={"training"}),
        lambda: BigHand("a", split=["training"]),
        lambda: BigHand(tmp_path, held_out=3),
        lambda: DexterObject("a", sequences=3),
        lambda: make_settings(AlignedSettings, ["quick"]),
        lambda: make_settings(AlignedSettings, "quick", strategy=["S4"]),
    ):
        with pytest.raises(HandlabError):
            call()


def test_a_named_folder_that_is_missing_is_an_error(own_cell, tmp_path, monkeypatch):
    for name in ("data_root", "other_root", "real_root"):
        with pytest.raises(HandlabError, match=f"{name}=.*/gone: there is no such folder"):
            given(own_cell, f'# Parameters\n{name} = "{tmp_path}/gone"')
    assert given(own_cell, f'# Parameters\ndata_root = "{tmp_path}"')["data_root"] == str(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(HandlabError, match="it is no folder"):
        named_folder(tmp_path / "file", "runs")
    monkeypatch.setenv("HANDLAB_ROOT", str(tmp_path / "gone"))
    with pytest.raises(HandlabError, match="HANDLAB_ROOT=.*/gone: there is no such folder"):
        project_root()


@pytest.mark.parametrize(
    "name, mark", [("rhd", "evaluation/anno_evaluation.pickle"), ("stb", "labels/B1Counting_SK.mat")]
)
def test_a_named_real_set_is_there_or_an_error(name, mark, tmp_path, monkeypatch):
    variable = f"HANDLAB_REAL_{name.upper()}"
    monkeypatch.setenv(variable, str(tmp_path / "gone"))
    with pytest.raises(HandlabError, match=f"{variable}=.*/gone: there is no such folder"):
        real_root(name)
    root = tmp_path / "set"
    (root / mark).parent.mkdir(parents=True)
    monkeypatch.setenv(variable, str(root))
    with pytest.raises(HandlabError, match=f"it holds no {mark}"):
        real_root(name)
    (root / mark).touch()
    assert real_root(name) == root
    for near in (tmp_path, (root / mark).parent):
        monkeypatch.setenv(variable, str(near))
        with pytest.raises(HandlabError, match=f"did you mean {root}?"):
            real_root(name)
    monkeypatch.setenv(variable, str(root))
    (root / "source.json").write_text(f'{{"source": "sim-{name}"}}')
    with pytest.raises(HandlabError, match="it holds a simulated twin"):
        real_root(name)
    monkeypatch.delenv(variable)
    monkeypatch.setenv("HANDLAB_REAL_RDH", str(root))
    with pytest.raises(HandlabError, match="HANDLAB_REAL_RDH: .*did you mean HANDLAB_REAL_RHD?"):
        real_root(name)


def make(*words):
    words = ["make", "--dry-run", "--assume-old=.venv/.ready", *words]
    return subprocess.run(words, cwd=project_root(), capture_output=True, text=True)


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_make_refuses_variables_that_it_does_not_know():
    for word, meant in (("SEED=3", "SEEDS"), ("profile=smoke", "PROFILE"), ("REALS=/data", "REAL")):
        said = make("figures", "SEEDS=1", word)
        assert (
            said.returncode
            and f"{word.split('=')[0]}: there is no such variable; did you mean {meant}?" in (said.stderr)
        )
    assert "no such variable; choose one of" in make("test", "COLOUR=red").stderr
    assert make("figures", "SEEDS=2", "PROFILE=smoke", "REAL=", "FLAGS=-n", "PYTHON=python3").returncode == 0


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_make_notes_misspelt_variables_of_the_environment(monkeypatch):
    for name in ("SEED", "profile"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("SEEDS", "2")
    said = make("figures")
    assert said.returncode == 0 and "--seeds 2" in said.stdout
    notes = [text for text in said.stderr.splitlines() if "of the environment changes nothing here" in text]
    assert len(notes) == 2 and all(name in "".join(notes) for name in ("SEED ", "profile "))
    assert "of the environment" not in make("test").stderr  # what has no settings has no notes


def test_every_run_has_its_own_output_path():
    runs = [(run, profile) for profile in ("smoke", "quick") for run in graph_runs(profile, 2)]
    assert len({run_command(*each).split()[2] for each in runs}) == len(runs)


def python(*words, cwd=None):
    return subprocess.run([sys.executable, "-m", *words], cwd=cwd, capture_output=True, text=True)


def test_outside_a_checkout_the_graph_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDLAB_ROOT", str(tmp_path))
    said = python("handlab.graph.run", "list")
    assert (
        said.returncode == 2 and not said.stdout and "the notebooks of the graph are not there" in said.stderr
    )


COMMANDS = {
    "handlab.graph.run": ["--sed", "1"],
    "handlab.graph.run figures": ["--seed", "1"],
    "handlab.graph.run list": ["--seed", "1"],
    "handlab.pages.measure": ["no-such-run"],
    "handlab.results.ship": ["no-such-run"],
    "handlab.pages.front": ["--seed", "1"],
    "handlab.pages.manifest": ["--comand", "x"],
    "handlab.sim.write": ["sim-rdh"],
    "handlab.sim.write sim-stb": ["folder", "--trainin", "4"],
    "handlab.predict": ["picture.png", "--detct"],
    "handlab.predict.calibrate": ["S4", "--frames", "1"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_help_and_have_errors_of_one_line(command):
    said = python(*command.split(), "--help")
    assert said.returncode == 0 and f"usage: python -m {command}" in said.stdout and not said.stderr
    said = python(*command.split(), *COMMANDS[command])
    assert said.returncode == 2 and said.stderr.count("\n") == 1 and said.stderr.startswith("handlab: ")


WRONG = {
    "handlab.graph.run": (
        "figures --profile quik, figures --seeds 0, figures --seeds x, figures --cores -1, list --seeds -1, "
        "figures --minutes -1, figures --minutes nan, figures --minutes inf, figures --real {0}/file, "
        "run train_py, data rdh --output {0}/a, list more, papers --seeds 2, list --cores 2"
    ),
    "handlab.results.ship": "no-such-run, {0}/file, --limit nan, --limit -1, --limit x",
    "handlab.pages.measure": "no-such-run, {0}/file, --only more, --device gpu, --real {0}/file",
    "handlab.pages.front": "--seeds -1, --seeds x, more",
    "handlab.pages.manifest": (
        "{0}/none, {0}/file, {0} --json {0}/file/a, {0} --json /proc/a, {0} --take {0}/b"
    ),
    "handlab.sim.write": (
        "sim-rhd {0}/a --training -1, sim-rhd {0}/a --workers -1, sim-rhd {0}/file, sim-bighand /proc/a, "
        "sim-rhd {0}/a --training 99999999999, sim-dexter-object {0}/a --evaluation 99999999999"
    ),
    "handlab.predict.command": (
        "{0}/a.png --box 1 2 3, {0}/a.png --box 0 0 9 x, {0}/a.png --box 9 9 5 5, "
        "{0}/a.png --box 0 0 inf inf, "
        "{0}/a.png --box 0 0 nan 9, {0}/a.png --mask {0}/none, {0}/a.png --mask {0}/file, {0}/none --detect, "
        "{0}/a.png --box 0 0 9e9 9e9"
    ),
    "handlab.predict.calibrate": "S9, S4 --frames 1, S4 --frames x, S4 --device gpu",
}
WRONG["handlab.predict.command"] += "".join(
    f", {{0}}/a.png --box 0 0 30 30 {words}"
    for words in (
        "--side up; --K 0 0 0 0; --K 1 1 1; --K nan 1 1 1; --scale -1; --scale nan; --scale inf; --every 0;"
        " --network S9; --device gpu; --out {0}/file; --out {0}/file/a; --out /proc/a"
    ).split(";")
)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where no folder can be made")
@pytest.mark.parametrize("command", WRONG)
def test_every_wrong_option_is_one_line_before_the_work(command, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("no picture")
    write_image(tmp_path / "a.png", np.zeros((40, 40, 3), np.uint8))
    monkeypatch.setattr(os, "execv", lambda *words: pytest.fail(f"{words} is run"))
    monkeypatch.setattr(front, "write_front", lambda *words: pytest.fail("README.md is written"))
    for words in WRONG[command].format(tmp_path).split(","):
        with pytest.raises(SystemExit, match="2"), one_line_errors():
            importlib.import_module(command).main(words.split())
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("handlab: "), (words, lines)


def test_every_command_has_its_wrong_options():
    assert {name.removesuffix(".command") for name in WRONG} == {*handlab.COMMANDS}


def test_a_notebook_shows_an_error_of_one_line_without_its_traceback():
    error = 'raise HandlabError("color/00007.png", "the image is cut short", "unpack the archive again")'
    cells = [nbformat.v4.new_code_cell(text) for text in ("from handlab.core import HandlabError", error)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    with pytest.raises(CellExecutionError):
        NotebookClient(notebook, kernel_name="python3").execute()
    shown = notebook.cells[1].outputs[0]
    line = "color/00007.png: the image is cut short; unpack the archive again"
    assert shown.evalue == line and shown.traceback == [f"HandlabError: {line}"]


def test_compiling_is_said_once(capsys, monkeypatch):
    monkeypatch.setattr(write._COMPILING, "said", False)
    with write.compiling_said():
        for number in (1, 2.0):  # two compilations
            numba.njit(lambda x: x + 1)(number)
    assert capsys.readouterr().out == "compiling the simulator, once: this takes a minute or two\n"
    with write.compiling_said():
        numba.njit(lambda x: x + 2)(1)
    numba.njit(lambda x: x + 3)(1)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("module", ["handlab", "handlab.sim", "handlab.sim.dexter_object", "handlab.core"])
def test_a_module_that_is_no_command_says_which_are(module):
    said = python(module)
    assert said.returncode == 2 and not said.stdout and f"{module} is not a command" in said.stderr
    said = python(module, "--help")
    assert said.returncode == 0 and all(f"python -m {name}" in said.stdout for name in handlab.COMMANDS)
    assert {name.split()[0] for name in COMMANDS} == {*handlab.COMMANDS}
