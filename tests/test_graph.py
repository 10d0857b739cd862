"The list of runs, the graph that makes them, and what it does when something changes or fails."

import ast
import contextlib
import csv
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import nbformat
import pytest
import torch

from handlab import core, machine
from handlab import core as core_module
from handlab.aligned.experiment import AlignedSettings, check_aligned
from handlab.aligned.experiment import run_name as aligned_name
from handlab.aligned.strategies import alternating_pair, make_recipe
from handlab.core import HandlabError, project_root, write_json
from handlab.graph import execute as execute_module
from handlab.graph import pace
from handlab.graph.code import meaning, training_fingerprint
from handlab.graph.execute import TRIES, execute, one_gpu
from handlab.graph.plan import data_names, needed_names, whole_graph
from handlab.graph.progress import Tally, log_error
from handlab.machine import gpu_count, gpu_names
from handlab.privileged.stages import PiSettings, check_pi
from handlab.results.catalogue import (
    BUDGETS,
    LONGER,
    LONGER_STRATEGIES,
    PROFILES,
    REAL_SETS,
    STEPS,
    command_for,
    graph_runs,
)
from handlab.settings import make_settings


def aligned_settings(run, profile):
    fields = {name: value for name, value in run.parameters.items() if name != "other_set"}
    return check_aligned(make_settings(AlignedSettings, profile, seed=run.seed, **fields))


@pytest.mark.parametrize("profile", PROFILES)
def test_names_are_the_notebooks_own(profile):
    runs = graph_runs(profile, seeds=2)
    for run in runs:
        own = (
            aligned_name(aligned_settings(run, profile))
            if run.notebook == "train_aligned"
            else f"{run.notebook}-{run.dataset}-seed{run.seed}"
        )
        named = run.name
        for word in (*BUDGETS, *LONGER, "controls"):
            named = named.replace(f"-{word}", "")
        assert named == own
    assert len({run.name for run in runs}) == len(runs)


def test_every_weak_supervision_has_a_whole_batch():
    for profile in PROFILES:
        for run in graph_runs(profile):
            if "labelled_share" not in run.parameters:
                continue
            settings = aligned_settings(run, profile)
            assert round(settings.labelled_share * settings.train_frames) >= settings.batch_size


def test_controls_are_trained_at_other_profiles_than_quick():
    "And each differs from what it is compared with in what its name says."
    names = {profile: {run.name for run in graph_runs(profile)} for profile in PROFILES}
    aligned = [f"train_aligned-{name}" for name in ("S1-batch3", "R2DP", "RC2HP", "S4-basis-bones")]
    for name in ("train_pi-controls", *aligned):
        for profile in PROFILES:
            assert (f"{name}-sim-rhd-seed0" in names[profile]) == (profile != "quick")
        command = command_for(f"{name}-sim-rhd", "quick")  # also where the graph does not make it
        assert f"-p out runs/quick/{name}-sim-rhd-seed0" in command and "-p profile quick" in command
    runs = {run.name: run for run in graph_runs("full")}
    named = {"S1-batch3": {"batch_factor"}, "S4-basis-bones": {"cloud_encoder", "cloud_decoder"}}
    for name, like in (("S1-batch3", "S1"), ("R2DP", "R2CP"), ("RC2HP", "S4"), ("S4-basis-bones", "S4")):
        own, other = (
            aligned_settings(runs[f"train_aligned-{each}-sim-rhd-seed0"], "full") for each in (name, like)
        )
        changed = {
            field.name for field in fields(own) if getattr(own, field.name) != getattr(other, field.name)
        }
        assert changed == named.get(name, {"strategy"})
    assert str(make_recipe("RC2HP")) == str(make_recipe("S4")).replace("2C", "2")
    assert make_recipe("R2DP").decoders == make_recipe("R2CP").decoders.replace("C", "D")


def test_depth_net_begins_on_bighand_at_full(real_sets, tmp_path):
    runs = {run.name: run.parameters for run in graph_runs("full")}
    assert runs["train_pi-sim-rhd-seed0"]["depth_first"] == "sim-bighand"
    assert make_settings(PiSettings, "full").depth_first == "sim-bighand"
    assert not any("depth_first" in run.parameters for run in graph_runs("quick"))
    on_real = {run.name: run.parameters for run in graph_runs("full", real=str(real_sets))}
    assert on_real["train_pi-rhd-seed0"]["depth_first"] == ""  # no folder bighand: no twin in its place
    for name in (*REAL_SETS, "bighand"):
        (tmp_path / name).mkdir()
    on_real = {run.name: run.parameters for run in graph_runs("full", real=str(tmp_path))}
    found = on_real["train_pi-rhd-seed0"]
    assert found["depth_first"] == "bighand" and found["depth_first_root"] == str(tmp_path / "bighand")
    with pytest.raises(HandlabError, match="PiSettings.depth_first: Depth Net would train on simulated"):
        check_pi(make_settings(PiSettings, "full", dataset="rhd", data_root="x"))


def test_an_ablation_has_the_settings_of_what_it_is_compared_with():
    runs = {
        run.name: aligned_settings(run, "long") for run in graph_runs("long") if "strategy" in run.parameters
    }
    kinds = {
        "S4": ("RC2HP", "S4-basis-bones", "S4-apart", "S4-labelled0.25", "S4-pairs0.25"),
        "R2CHP": ("R2CP", "R2HP"),
        "R2CP": ("R2DP",),
    }
    weights = (
        "learning_rate",
        "rotation",
        "pose_norm",
        "map_norm",
        "heat_weight",
        "cloud_weight",
        "align_weight",
    )
    for kind, names in kinds.items():
        own = runs[f"train_aligned-{kind}-sim-rhd-seed0"]
        for name in names:
            other = runs[f"train_aligned-{name}-sim-rhd-seed0"]
            assert [getattr(own, each) for each in weights] == [getattr(other, each) for each in weights]


@pytest.mark.parametrize("profile", PROFILES)
def test_ablations_are_trained_as_long_as_what_they_are_compared_with(profile):
    runs = {
        run.name: aligned_settings(run, profile)
        for run in graph_runs(profile)
        if "strategy" in run.parameters
    }
    alternating = {name: each for name, each in runs.items() if each.strategy == "alternating"}
    longer = {name: each for name, each in runs.items() if any(f"-{budget}-" in name for budget in LONGER)}
    steps = {each.steps for name, each in runs.items() if name not in {*alternating, *longer}}
    assert steps == {STEPS[profile]}
    assert {each.strategy for each in longer.values()} == set(LONGER_STRATEGIES if profile == "long" else ())
    assert {each.steps for each in longer.values()} <= {2 * STEPS[profile]}
    by_budget = {
        budget: runs[f"train_aligned-alternating-{budget}-sim-rhd-seed0"].steps for budget in BUDGETS
    }
    assert by_budget == {budget: round(times * STEPS[profile]) for budget, times in BUDGETS.items()}
    recipe = make_recipe("alternating")
    pairs = [alternating_pair(recipe, step) for step in range(by_budget["same_updates"])]
    assert pairs.count(("R", "P")) == STEPS[profile] and len(alternating) == len(BUDGETS)


def test_bad_questions_are_answered():
    with pytest.raises(HandlabError, match="choose one of smoke, quick, long, full"):
        graph_runs("fast")
    with pytest.raises(HandlabError, match="give 1 or more"):
        graph_runs("quick", 0)


def test_costs_are_steps_timed_on_this_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(core_module, "project_path", lambda path: tmp_path / path)  # where the note goes
    asked = []

    def slow(kinds, places):
        asked.append(places)
        return [0.5] * len(kinds)

    monkeypatch.setattr(pace, "time_steps", slow)
    monkeypatch.setattr(pace, "interpreter_seconds", lambda: 0.0)
    names = ["train_aligned-S4-sim-rhd-seed0", "train_pi-sim-rhd-seed0", "paper_pi"]
    costs = pace.measured_costs("quick", 1, "", 8, names)
    assert set(costs) == set(names) and costs["paper_pi"] == 0
    settings = make_settings(AlignedSettings, "quick")
    steps = settings.steps + settings.timing_steps
    assert steps < costs[names[0]] * 60 / 0.5 < 1.1 * steps
    settings = make_settings(PiSettings, "quick")  # two networks of stage 1, three of stage 2
    steps = 2 * settings.steps_first + 3 * settings.steps_second
    assert steps < costs[names[1]] * 60 / 0.5 < 1.1 * steps
    assert pace.measured_costs("quick", 1, "", 8, names) == costs and asked == [pace.MOST]  # timed once


def test_kinds_of_steps():
    runs = {run.name: run for run in graph_runs("quick")}
    kinds = {name: tuple(pace.kinds_of(run, "quick")) for name, run in runs.items()}
    s4 = kinds["train_aligned-S4-sim-rhd-seed0"]
    assert (
        kinds["train_aligned-S4-sim-stb-seed0"]
        == s4
        == kinds["train_aligned-S4-labelled0.25-alone-sim-rhd-seed0"]
    )
    assert kinds["train_aligned-S4-labelled0.25-sim-rhd-seed0"] != s4  # two batches per step
    assert kinds["train_aligned-S1-sim-rhd-seed0"] != s4
    controls = next(run for run in graph_runs("full") if "controls" in run.name)
    plain = next(run for run in graph_runs("full") if run.name == "train_pi-sim-rhd-seed0")
    assert sum(pace.steps_of(controls, "full").values()) > 3 * sum(pace.steps_of(plain, "full").values())


def test_an_estimate_that_fails_stops_nothing(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no step today")

    monkeypatch.setattr(pace, "_step_table", broken)
    lines = []
    names = ["train_pi-sim-rhd-seed0"]
    assert pace.measured_costs("quick", 1, "", 2, names, lines.append) == {}
    assert "no step today" in lines[0] and set(pace.measured_costs("smoke", 1, "", 2, names)) == set(names)


def test_a_step_is_timed_on_frames_of_noise(tmp_path):
    cpu = torch.device("cpu")
    for kind in (
        pace.Kind("train_aligned", "smoke", (("strategy", "alternating"),)),
        pace.Kind("train_aligned", "smoke", (("labelled_share", 0.5), ("strategy", "S4"))),
        pace.Kind("train_pi", "smoke", stage="rgb_pi"),
        pace.Kind("train_pi_2d", "smoke", stage="rgb_steps"),
    ):
        assert 0 < pace.step_seconds(kind, tmp_path, cpu) < 600
    kinds = [pace.Kind("train_aligned", "smoke", (("strategy", "S1"),))]
    (seconds,) = pace.time_steps(kinds, 1)  # in a process of its own
    assert 0 < seconds < 600
    with pytest.raises(RuntimeError, match="strategy 'S9'"):
        pace.time_steps([pace.Kind("train_aligned", "smoke", (("strategy", "S9"),))], 1)


# The graph itself, in a copy of the project whose notebooks are tiny.
# `tree` has the real package and the real Snakefile.

FAKE_TRAINING = (
    '''profile: str = "quick"
dataset: str = "sim-rhd"
other_set: str = ""
seed: int = 0
out: str = ""''',
    """import json, os
from pathlib import Path
if False: from handlab.hand import metrics
if dataset == "sim-stb" and not Path("mended").exists(): raise ValueError("no hand in sight")
(Path(out) / "metrics.json").write_text(json.dumps({"source": dataset}))""",
)
FAKE_PAGE = (
    """profile: str = "quick"
seeds: int = 1""",
    """if False: from handlab.results.published import published_numbers""",
)


def write_notebook(path, cells):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"display_name": "python3", "language": "python", "name": "python3"}
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, path)


@pytest.fixture
def tree(tmp_path):
    "A folder with a name that people give and shells stumble on."
    root = tmp_path / "my (own) projects" / "Anna's #1 {v2} Hände"
    for name in ("handlab", "profiles"):
        shutil.copytree(project_root() / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "settings.ini", "pyproject.toml"):
        shutil.copy(project_root() / name, root)
    (root / "nbs").mkdir()
    return root


@pytest.fixture
def tiny(tree):
    write_notebook(tree / "nbs/train_pi.ipynb", FAKE_TRAINING)
    write_notebook(tree / "nbs/paper_pi.ipynb", FAKE_PAGE)
    for dataset in ("sim-rhd", "sim-stb"):
        write_json(tree / f"runs/smoke/data/data-{dataset}.json", {})  # prepared before
    return tree


def environment(tree):
    return {
        **os.environ,
        "HANDLAB_ROOT": str(tree),
        "PYTHONPATH": str(tree),
        "CUDA_VISIBLE_DEVICES": "",
        "XDG_CACHE_HOME": str(tree / "settings.ini"),  # a file: no cache can be made there
        "SNAKEMAKE_PROFILE": "/profile/of another workflow",
    }


def figures(tree, *more):
    words = [
        sys.executable,
        "-m",
        "handlab.graph.run",
        "figures",
        "--profile",
        "smoke",
        "--cores",
        "2",
        *more,
    ]
    return subprocess.run(words, cwd=tree, env=environment(tree), capture_output=True, text=True)


def to_be_made(tree, *more):
    said = figures(tree, "--dry-run", *more)
    assert said.returncode == 0, said.stdout + said.stderr
    return set(re.findall(r"^(?:local)?rule (.+):$", said.stdout + said.stderr, re.M)) - {"all"}


def append(path, text):
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def test_a_dry_run_names_the_whole_graph(tree):
    shutil.copytree(project_root() / "nbs", tree / "nbs", dirs_exist_ok=True)
    trainings, pages = whole_graph("smoke", 2)
    assert trainings and {run.name for run in (*trainings, *pages)} | set(data_names("smoke", 2)) | {
        "manifest"
    } == to_be_made(tree, "--seeds", "2")


def test_snakemakes_own_errors_are_shown_though_it_is_quiet(tree):
    said = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--config", "profile=fast"],
        cwd=tree,
        env={**environment(tree), "SNAKEMAKE_PROFILE": "", "XDG_CACHE_HOME": str(tree / "cache")},  # by hand
        capture_output=True,
        text=True,
    )
    assert (
        said.returncode != 0
        and "profile: unknown profile 'fast'; choose one of smoke, quick, long, full"
        in said.stdout + said.stderr
    )


def test_named_runs_alone_are_made_and_unknown_names_are_answered(tree):
    shutil.copytree(project_root() / "nbs", tree / "nbs", dirs_exist_ok=True)
    run, needs = "train_pi-sim-stb-seed0", "data-sim-stb"
    for words in (
        [run, "--dry-run"],
        ["--dry-run", "--until", run],
        [f"runs/smoke/{run}/metrics.json", "--dry-run"],
    ):
        said = figures(tree, *words)
        assert said.returncode == 0 and set(
            re.findall(r"^(?:local)?rule (.+):$", said.stdout + said.stderr, re.M)
        ) - {"all"} == {run, needs}, words
    for name in (f"runs/quick/{run}/metrics.json", "train_pi-sim-stb-seed1"):
        said = figures(tree, name)
        assert (
            said.returncode == 2
            and f"{name}: nothing of that name is made at profile smoke with 1 seed" in said.stderr
            and "did you mean" in said.stderr
            and "Traceback" not in said.stderr
        ), said.stderr


@pytest.fixture
def real_sets(tmp_path):
    folder = tmp_path / 'the real sets: Anna\'s "#2" $HOME {v2} \\n'
    for name in REAL_SETS:
        (folder / name).mkdir(parents=True)
    return folder


def test_the_real_sets_take_the_twins_places(tree, real_sets):
    shutil.copytree(project_root() / "nbs", tree / "nbs", dirs_exist_ok=True)
    twins = to_be_made(tree)
    own = {"paper_pi", "paper_aligned", "claims"}  # pages have folders of their own
    assert to_be_made(tree, "--real", str(real_sets)) == {
        name.replace("sim-", "") for name in twins - own
    } | {f"{name}-real" for name in own}
    for name in ("stb", "dexter-object"):
        (real_sets / name).rmdir()
    made = to_be_made(tree, "--real", str(real_sets))
    assert {"data-rhd", "train_pi-rhd-seed0", "paper_pi-real"} <= made and not any(
        "stb" in name for name in made
    )
    line = (
        "holds no stb and no dexter-object: what needs them is left out; put or link there: stb (the Stereo"
    )
    assert line in figures(tree, "--dry-run", "--real", str(real_sets)).stdout
    (real_sets / "rhd").rmdir()
    said = figures(tree, "--real", str(real_sets))
    assert said.returncode == 2 and "holds no folder rhd or stb; put or link there: rhd" in said.stderr


def test_runs_on_the_real_sets_are_told_where_they_lie_and_stay_when_these_move(tiny, real_sets):
    (tiny / "mended").touch()
    noting = FAKE_TRAINING[1].replace(
        "if False", "Path(out, 'roots.txt').write_text(f'{data_root}|{other_root}')\nif False"
    )
    write_notebook(
        tiny / "nbs/train_pi.ipynb",
        (FAKE_TRAINING[0] + '\ndata_root: str = ""\nother_root: str = ""', noting),
    )
    for dataset in ("rhd", "stb"):
        write_json(tiny / f"runs/smoke/data/data-{dataset}.json", {})
    said = figures(tiny, "--real", str(real_sets))
    assert said.returncode == 0, said.stdout + said.stderr
    assert (
        tiny / "runs/smoke/train_pi-rhd-seed0/roots.txt"
    ).read_text() == f"{real_sets}/rhd|{real_sets}/dexter-object"
    assert (tiny / "runs/smoke/paper_pi-real/finished.json").exists() and not (
        tiny / "runs/smoke/paper_pi"
    ).exists()
    moved = real_sets.rename(real_sets.with_name("elsewhere"))
    assert to_be_made(tiny, "--real", str(moved)) == set()
    assert {"train_pi-sim-rhd-seed0", "paper_pi"} <= to_be_made(tiny)


def test_a_failed_run_leaves_its_notebook_and_the_others_go_on(tiny):
    said = figures(tiny)
    words = said.stdout + said.stderr
    failed = "runs/smoke/train_pi-sim-stb-seed0/train_pi.ipynb"
    assert (
        said.returncode != 0
        and f"failed: train_pi-sim-stb-seed0: ValueError: no hand in sight; see {failed}" in words
    ), words
    assert (
        "no hand in sight" in (tiny / failed).read_text()
        and (tiny / "runs/smoke/train_pi-sim-rhd-seed0/metrics.json").exists()
    )
    assert (
        "not made, because they depend on others: paper_pi, manifest" in words
        and not (tiny / "runs/smoke/paper_pi/finished.json").exists()
    )
    (tiny / "mended").touch()
    assert to_be_made(tiny) == {"train_pi-sim-stb-seed0", "paper_pi", "manifest"}
    assert figures(tiny).returncode == 0 and (tiny / "runs/smoke/figures/README.md").exists()
    assert to_be_made(tiny) == set()


@pytest.fixture
def finished(tiny):
    (tiny / "mended").touch()
    said = figures(tiny)
    assert said.returncode == 0, said.stdout + said.stderr
    return tiny


def test_only_what_depends_on_a_change_is_made_again(finished):
    trainings = {"train_pi-sim-rhd-seed0", "train_pi-sim-stb-seed0"}
    again = figures(finished)
    assert again.returncode == 0 and "Nothing to be made" in again.stdout + again.stderr
    for file in (finished / "handlab").rglob("*.py"):
        os.utime(file)  # as a fresh checkout does
    append(finished / "handlab/hand/metrics.py", "\n# a comment\n")
    append(finished / "handlab/aligned/losses.py", "\nNEW = 1\n")  # nothing here needs it
    assert to_be_made(finished) == set()
    append(finished / "handlab/results/published.py", "\nNEW = 1\n")
    assert to_be_made(finished) == {"paper_pi", "manifest"}
    append(finished / "handlab/results/published_numbers.csv", "\n")
    assert to_be_made(finished) == {"paper_pi", "manifest"}
    append(finished / "handlab/hand/metrics.py", "\nNEW = 1\n")
    assert {*trainings, "paper_pi", "manifest"} <= to_be_made(finished)


def test_a_changed_parameter_makes_its_runs_again(finished):
    source = finished / "handlab/results/catalogue.py"
    source.write_text(
        source.read_text().replace('dict(dataset="sim-rhd", other_set=OTHER)', 'dict(dataset="sim-rhd")')
    )
    assert to_be_made(finished) - {"manifest", "paper_pi"} == {"train_pi-sim-rhd-seed0"}


def test_a_killed_graph_goes_on_and_two_do_not_meet(tiny):
    (tiny / "mended").touch()
    slow = FAKE_TRAINING[1].replace(
        "if False", "import time; time.sleep(6)\nopen(Path(out) / 'times', 'a').write('x')\nif False"
    )
    write_notebook(tiny / "nbs/train_pi.ipynb", (FAKE_TRAINING[0], slow))
    first = subprocess.Popen(
        [sys.executable, "-m", "handlab.graph.run", "figures", "--profile", "smoke", "--cores", "2"],
        cwd=tiny,
        env=environment(tiny),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    waited = 0
    while not (tiny / "runs/smoke/train_pi-sim-rhd-seed0/train_pi.ipynb").exists() and waited < 600:
        time.sleep(0.1)
        waited += 1
    second = figures(tiny)
    assert second.returncode == 2 and "another call of the graph is at work on this profile" in second.stderr
    first.kill()
    first.wait()
    said = figures(tiny)
    assert said.returncode == 0, said.stdout + said.stderr
    assert to_be_made(tiny) == set()


def test_what_was_killed_is_named_and_so_is_the_usual_cause(tiny):
    "A kernel, and the whole process of a run."
    killing = (
        "import os, signal, time\n"
        "os.kill({'sim-rhd': os.getpid(), 'sim-stb': os.getppid()}[dataset], signal.SIGKILL)\n"
        "time.sleep(60)"
    )
    write_notebook(tiny / "nbs/train_pi.ipynb", (FAKE_TRAINING[0], killing))
    said = figures(tiny).stdout
    name = "train_pi-sim-rhd-seed0"
    assert f"failed: {name}: handlab: {name}: its kernel was killed; memory is the usual cause" in said, said
    line = "it ended without an error, as a program does that is killed; memory is the usual cause; see"
    assert f"failed: train_pi-sim-stb-seed0: {line}" in said, said


@pytest.mark.parametrize(
    "log, error",
    [
        ("50%\nhandlab: rhd: no frame; check it\n\n", "handlab: rhd: no frame; check it"),
        ("Traceback\n  File\nzipfile.BadZipFileError: cut short", "zipfile.BadZipFileError: cut short"),
        ("KeyboardInterrupt\n", "KeyboardInterrupt"),
        ("preparing sim-rhd:  37%|### | 37/100", ""),
        ("", ""),
    ],
)
def test_the_error_of_a_log(tmp_path, log, error):
    (tmp_path / "a.log").write_text(log)
    assert log_error(tmp_path / "a.log") == error


GPUS = [  # CUDA_VISIBLE_DEVICES, the GPUs that torch counts with it, their names
    (None, 2, ["0", "1"]),
    ("1,0", 2, ["1", "0"]),
    ("3, 5", 2, ["3", "5"]),
    ("0,-1", 1, ["0"]),
    ("-1", 0, []),
    ("", 0, []),
    ("NoDevFiles", 0, []),
    ("GPU-8932f937-d72c,GPU-4a50", 2, ["GPU-8932f937-d72c", "GPU-4a50"]),
]


@pytest.mark.parametrize("chosen, count, names", GPUS)
def test_gpus_are_those_of_torch(chosen, count, names, monkeypatch):
    if chosen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    monkeypatch.setattr(machine, "_GPU_FILES", ("/",))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert gpu_count() == count and gpu_names() == names


@pytest.mark.parametrize("chosen", ["NoDevFiles", "0", "0,-1", "0,1"])
def test_no_gpu_is_counted_where_there_is_none(chosen, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    if not torch.cuda.is_available():
        assert gpu_count() == 0 and gpu_names() == []
        monkeypatch.setattr(machine, "_GPU_FILES", ("/",))
        assert gpu_count() == 0  # torch is asked, and says so too


@pytest.mark.parametrize("job", [{}, {"SLURM_JOB_ID": "17"}])
def test_runs_side_by_side_get_a_gpu_each(job, monkeypatch, tmp_path):
    "Also within an allocation of SLURM; two of its jobs, whose GPUs it may number alike, do not wait."
    monkeypatch.setattr(execute_module.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(machine, "gpu_count", lambda: 2)
    for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "PBS_JOBID", "LSB_JOBID"):
        monkeypatch.delenv(name, raising=False)

    def begin():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,-1")
        gpus.enter_context(one_gpu())
        return os.environ["CUDA_VISIBLE_DEVICES"]

    for name, value in job.items():
        monkeypatch.setenv(name, value)
    with contextlib.ExitStack() as gpus:
        assert [begin(), begin()] == ["4", "6"]
        monkeypatch.setenv("SLURM_JOB_ID", "18")
        assert begin() == "4"


@pytest.mark.parametrize(
    "error, calls",
    [
        ("Kernel died before replying to kernel_info", TRIES),
        ("Kernel didn't respond in 60 seconds", TRIES),
        ("some other error", 1),
    ],
)
def test_a_kernel_that_does_not_begin_is_begun_again_but_nothing_runs_twice(
    tmp_path, monkeypatch, error, calls
):
    called = []

    def fail(*arguments, **options):
        called.append(arguments)
        raise RuntimeError(error)

    monkeypatch.setattr("papermill.execute_notebook", fail)
    with pytest.raises(RuntimeError, match=error):
        execute("train_pi", tmp_path / "train_pi.ipynb", {})
    assert len(called) == calls
    monkeypatch.setattr(
        "papermill.execute_notebook",
        lambda *arguments, **options: called.append(arguments) if len(called) > calls else fail(),
    )
    if calls > 1:
        execute("train_pi", tmp_path / "train_pi.ipynb", {})


def test_training_starts_anew_only_where_its_own_code_has_changed(tree, monkeypatch):
    shutil.copytree(project_root() / "nbs", tree / "nbs", dirs_exist_ok=True)

    def say():
        return subprocess.run(
            [
                sys.executable,
                "-c",
                "from handlab.graph.code import *; "
                "print(training_fingerprint('train_aligned', {'strategy': 'S4'}), "
                "code_fingerprint('nbs/train_aligned.ipynb'))",
            ],
            cwd=tree,
            env=environment(tree),
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()

    before = say()
    append(tree / "handlab/pages/output.py", "\nNEW = 1\n")
    plot = say()
    append(tree / "handlab/aligned/losses.py", "\nNEW = 1\n")
    loss = say()
    assert before[0] == plot[0] != loss[0] and len({before[1], plot[1], loss[1]}) == 3


@pytest.mark.parametrize(
    "bare, typed, same",
    [
        (
            "def f(x, *y, z=None): return x",
            "def f(x: int, *y: str, z: float | None = None) -> int: return x",
            True,
        ),
        ("class A:\n async def f(x): g(x)", "class A:\n async def f(x: 'A') -> list['A']: g(x)", True),
        ("import a", "import a\nfrom typing import Any\nfrom pathlib import Path", True),
        ("def f(x: int = 1): g(x)", "def f(x: int = 2): g(x)", False),
        ("class A:\n x: int = 1", "class A:\n x: float = 1", False),
        ("import a", "import a\nfrom collections import abc", False),
    ],
)
def test_types_of_parameters_and_results_are_no_change(bare, typed, same):
    assert (meaning(ast.parse(bare)) == meaning(ast.parse(typed))) is same


def test_the_fingerprint_of_a_training_follows_its_parameters():
    one = training_fingerprint("train_aligned", {"strategy": "S4"})
    assert one == training_fingerprint("train_aligned", {"strategy": "S4", "out": "x", "data_root": "y"})
    others = [{"strategy": "S1"}, {"strategy": "S4", "steps": 5}, {}, {"strategy": "S4", "dataset": "rhd"}]
    names = {training_fingerprint("train_aligned", given) for given in others}
    assert len(names) == len(others) and one not in names


def test_a_run_whose_files_were_deleted_is_made_again(tiny):
    (tiny / "mended").touch()
    last = '(Path(out) / "metrics.json")'
    noting = (
        FAKE_TRAINING[1]
        .replace(last, "(Path(out) / 'predictions.npz').write_text('x')\n" + last)
        .replace('{"source": dataset}', '{"source": dataset, "files": {"predictions.npz": {}}}')
    )
    write_notebook(tiny / "nbs/train_pi.ipynb", (FAKE_TRAINING[0], noting))
    assert figures(tiny).returncode == 0 and to_be_made(tiny) == set()
    run = tiny / "runs/smoke/train_pi-sim-rhd-seed0"
    (run / "predictions.npz").unlink()
    assert to_be_made(tiny, "train_pi-sim-stb-seed0") == set()
    said = figures(tiny)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "made again, because files of theirs were deleted: train_pi-sim-rhd-seed0" in said.stdout
    assert (run / "predictions.npz").exists() and to_be_made(tiny) == set()
    (run / "metrics.json").write_text("{")  # a damaged one, too
    assert {"train_pi-sim-rhd-seed0", "paper_pi", "manifest"} == to_be_made(tiny)


def test_a_run_whose_time_is_over_says_so_in_its_exit_code(monkeypatch, tmp_path, capsys):
    def stopped(source, target, parameters, **options):
        what = "runs/x: the time limit is reached at step 40 of 100; make the same call again to continue"
        raise papermill.PapermillExecutionError(3, 3, "fit(...)", "OutOfTime", what, [])

    papermill = pytest.importorskip("papermill")
    monkeypatch.setattr(papermill, "execute_notebook", stopped)
    with pytest.raises(SystemExit) as end, core.one_line_errors():
        execute("train_pi", tmp_path / "a/train_pi.ipynb", {})
    assert end.value.code == 75 and "at step 40 of 100; make the same call" in capsys.readouterr().err
    monkeypatch.setenv("HANDLAB_STOP_AT", "0")
    with pytest.raises(machine.OutOfTime, match="before it began"):
        execute_module.run_one("train_pi-sim-rhd-seed0", "smoke", 1)
    assert machine.OutOfTime("a", "b", "c").code == 75 and HandlabError("a", "b", "c").code == 2


def test_a_line_of_progress_is_in_a_file_at_once():
    code = """
import logging, os
from handlab.graph.progress import Progress, Tally
progress = Progress(Tally({"run": 1.0}), {"run": []}, "quick")
progress.end("run")
os._exit(0)  # as a program that is killed: nothing is written any more
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "run: done in" in said.stdout


def test_decoding_clouds_costs_time_besides_steps():
    runs = {run.name: run for run in graph_runs("quick")}
    s1, s4 = (runs[f"train_aligned-{name}-sim-rhd-seed0"] for name in ("S1", "S4"))
    assert not pace._has_clouds(s1) and pace._has_clouds(s4)
    assert not any(pace._has_clouds(run) for run in runs.values() if run.notebook != "train_aligned")
    minutes = pace.other_minutes("quick", 1)
    assert minutes[s4.name] > 2 * minutes[s1.name] > 0


# {profile: (minutes of a recorded graph on two cores, seconds of the unit there)}. The jobs of smoke ran
# beside other work; idle, the whole took 4.6 minutes where the unit takes 0.188 s. S4-basis-bones came
# later: its seconds are those of S4-apart times 1.04, the ratio of two runs of each, taken in turn.
WHOLE = {"smoke": (339.6 / 60, 0.0), "quick": (57.0, 0.224)}


def recorded(profile):
    "{name: (seconds of the job, seconds of its training steps)} of a graph on two cores."
    with open(Path(__file__).with_name("recorded_times.csv")) as file:
        rows = [row for row in csv.DictReader(file) if row["profile"] == profile]
    return {row["name"]: (float(row["seconds"]), float(row["step_seconds"])) for row in rows}


def minutes_at_the_start(costs, profile, places=2):
    "What the first line of the graph would name, for {name: core minutes} in the order of the graph."
    trainings, pages = whole_graph(profile, 1)
    order = [*data_names(profile, 1), *(run.name for run in (*trainings, *pages)), "manifest"]
    tally = Tally({name: costs[name] for name in order}, places, needed_names(profile, 1))
    tally.expect(costs)
    return tally.minutes_left()


@pytest.mark.parametrize("profile", WHOLE)
def test_a_replay_of_recorded_jobs_ends_when_the_graph_did(profile):
    jobs = recorded(profile)
    assert set(jobs) == set(pace.other_units(profile, 1))
    made = minutes_at_the_start({name: seconds / 60 for name, (seconds, _) in jobs.items()}, profile)
    assert made == pytest.approx(WHOLE[profile][0], rel=0.05)
    minutes = {name: seconds / 60 for name, (seconds, _) in jobs.items()}
    sixteen = minutes_at_the_start(minutes, profile, 16)  # no quicker than what has to be made one by one
    assert made > sixteen > max(minutes.values()) + minutes["claims"] > sum(minutes.values()) / 16


def test_the_time_that_is_named_at_the_start_is_right_within_30_percent(monkeypatch):
    monkeypatch.setattr(pace, "_compiled", lambda: True)
    units = pace.other_units("smoke", 1)
    named = minutes_at_the_start({name: count * 0.188 / 60 for name, count in units.items()}, "smoke")
    assert 0.7 < named / 4.6 < 1.3
    monkeypatch.setattr(pace, "_compiled", lambda: False)
    units, (whole, unit), jobs = pace.other_units("quick", 1), WHOLE["quick"], recorded("quick")
    costs = {name: (count * unit + jobs[name][1]) / 60 for name, count in units.items()}
    assert 0.7 < minutes_at_the_start(costs, "quick") / whole < 1.3
    for name, (seconds, steps) in jobs.items():  # each job that is long enough to be recorded well
        assert seconds - steps < 15 or 0.5 < (costs[name] * 60 - steps) / (seconds - steps) < 2, name


def test_the_pace_is_of_the_jobs_that_have_ended():
    tally = Tally({"a": 10.0, "b": 10.0, "c": 10.0}, 2)
    tally.expect("abc")
    assert tally.minutes_left() == 20 and tally.pace() == 1
    for name in "ab":  # ten minutes ago both began
        tally.started[name] = tally.begun - 600
    assert tally.minutes_left() == pytest.approx(10, abs=0.1)  # they are about to end; c is left
    for name in "ab":  # but they take twice as long
        tally.started[name] = tally.begun - 1200
        tally.end(name)
    assert tally.minutes_left() == pytest.approx(10 * (40 + 5) / (20 + 5), abs=0.1)
    tally.failed.append("b")  # how long it took says nothing
    assert tally.minutes_left() == pytest.approx(10 * (20 + 5) / (10 + 5), abs=0.1)
