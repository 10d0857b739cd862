"The privileged-depth notebook from the command line: a whole run, a killed one, and users' mistakes."

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import papermill_calls
import pytest
from safetensors.numpy import load_file

from handlab.hand.metrics import epe
from handlab.privileged.stages import STAGES

pytestmark = [pytest.mark.end_to_end, pytest.mark.xdist_group("train_pi")]
NOTEBOOK = "train_pi"
run, metrics_of = partial(papermill_calls.run, NOTEBOOK), papermill_calls.metrics_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    "The run folder of a whole smoke run."
    out = tmp_path_factory.mktemp("train_pi") / "whole"
    done = run(out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_run_folder_is_whole(finished):
    metrics = metrics_of(finished)
    assert {
        "settings",
        "seed",
        "commit",
        "versions",
        "hardware",
        "data",
        "seconds",
        "values",
        "source",
        "protocol",
    } <= metrics.keys()
    assert metrics["source"] == "sim-rhd" and metrics["settings"]["crop"] == 32
    assert set(metrics["values"]) == {*STAGES, "mean_pose"}
    weights = load_file(finished / "model.safetensors")
    assert weights and all(np.isfinite(array).all() for array in weights.values())
    assert (finished.parent / "whole.ipynb").exists()


def test_metrics_are_of_the_predictions(finished):
    "The reported errors are what plain NumPy makes of the saved predictions."
    metrics, saved = (
        metrics_of(finished),
        np.load(finished / "predictions.npz"),
    )
    for stage in (*STAGES, "mean_pose"):
        errors = np.linalg.norm(saved[stage] - saved["true"], axis=-1)
        assert metrics["values"][stage]["epe_mean"] == pytest.approx(errors.mean(), rel=1e-4)
        assert epe(saved[stage], saved["true"]).mean == pytest.approx(errors.mean(), rel=1e-4)
        np.testing.assert_allclose(
            saved[stage][:, 9], saved["true"][:, 9], atol=60
        )  # the root is near the true one


def test_losses_hold_every_network(finished):
    lines = (finished / "losses.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in lines[1:]} == set(STAGES)
    controls = [
        json.loads((finished / stage / "finished.json").read_text())["steps"]
        for stage in ("rgb_pi", "rgb_steps", "rgb_time")
    ]
    assert controls[0] == controls[1] <= controls[2]


def test_other_datasets(tmp_path):
    "STB's twin to train on, BigHand's for Depth Net before, Dexter+Object's finger tips to test on."
    done = run(
        tmp_path / "stb",
        dataset="sim-stb",
        depth_first="sim-bighand",
        crop_by="tips",
        other_set="sim-dexter-object",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = metrics_of(tmp_path / "stb")
    assert metrics["source"] == "sim-stb" and metrics["settings"]["depth_first"] == "sim-bighand"
    assert (
        json.loads((tmp_path / "stb" / "before" / "finished.json").read_text())["steps"]
        == metrics["settings"]["steps_before"]
    )
    assert set(metrics["other"]) == {stage for stage, kind in STAGES.items() if kind.modality == "image"} | {
        "mean_pose"
    }  # no root to tell depth from
    for scores in metrics["other"].values():
        assert (
            scores["root_scale"]["epe_mean"]
            <= scores["root_set_scale"]["epe_mean"]
            < scores["absolute"]["epe_mean"]
        )
        assert scores["root"]["tips"] == scores["root_scale"]["tips"] > 16


def test_second_call_trains_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*/model.safetensors")}
    values = metrics_of(finished)["values"]
    assert run(finished).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in finished.glob("*/model.safetensors")} == before
    assert metrics_of(finished)["values"] == values


def test_killed_run_ends_as_the_whole_one(finished):
    "kill -9 in the midst of stage 1, and again later; the third call ends with the same weights."
    out = finished.parent / "killed"
    for stage in ("rgb", "rgb_pi"):
        papermill_calls.kill(NOTEBOOK, out, stage)
        shutil.copy(
            finished / "step_time.json", out
        )  # it decides on steps, and a time measured anew would differ
    assert run(out).returncode == 0
    for stage in STAGES:
        whole, killed = (load_file(folder / stage / "model.safetensors") for folder in (finished, out))
        assert all((whole[name] == killed[name]).all() for name in whole)


@pytest.mark.parametrize(
    "parameters, complaint",
    [
        ({"stesp_first": 3}, "parameter 'stesp_first': this notebook has no such parameter"),
        ({"steps_first": "many"}, "steps_first: 'many' is not int"),
        ({"profile": "huge"}, "profile 'huge': there is no such profile"),
        ({"device": "cuda:99"}, "device 'cuda:99': this machine has"),
        ({"dataset": "rhd", "data_root": "/nowhere/rhd"}, "/nowhere/rhd"),
        ({"dataset": "rhd"}, "data_root: the real dataset needs a folder"),
    ],
)
def test_one_line_for_what_is_wrong(finished, parameters, complaint):
    papermill_calls.refuse(NOTEBOOK, finished.parent / "wrong", parameters, complaint)


def test_other_settings_in_the_same_folder(finished):
    failed = run(finished, rate_first=0.5)
    assert failed.returncode != 0
    assert "learning_rate" in failed.stderr and "now it is 0.5" in failed.stderr
