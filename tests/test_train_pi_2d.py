"The 2D notebook from the command line: a whole run, another test set, a killed one, users' mistakes."

from functools import partial
from pathlib import Path

import numpy as np
import papermill_calls
import pytest
from safetensors.numpy import load_file

from handlab.privileged.experiment_2d import STAGES_2D

pytestmark = [pytest.mark.end_to_end, pytest.mark.xdist_group("train_pi_2d")]
NOTEBOOK = "train_pi_2d"
run, metrics_of = partial(papermill_calls.run, NOTEBOOK), papermill_calls.metrics_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    "The run folder of a whole smoke run, tested on finger tips too."
    out = tmp_path_factory.mktemp("train_pi_2d") / "whole"
    done = run(out, other_set="sim-dexter-object")
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
        "labels",
        "thresholds",
        "energy_on_hand",
        "other",
    } <= metrics.keys()
    assert metrics["source"] == "sim-rhd" and metrics["settings"]["crop"] == 32
    assert set(metrics["values"]) == {*STAGES_2D, "mean_pose"} and set(metrics["energy_on_hand"]) == {
        *STAGES_2D,
        "hand",
    }
    for stage in STAGES_2D:
        weights = load_file(finished / stage / "model.safetensors")
        assert (
            weights
            and all(np.isfinite(array).all() for array in weights.values())
            and (finished / stage / "finished.json").exists()
        )
    assert (finished / "losses.csv").exists() and (finished.parent / "whole.ipynb").exists()


def test_metrics_are_of_the_predictions(finished):
    "The reported errors are what plain NumPy makes of the saved predictions."
    metrics, saved = (
        metrics_of(finished),
        np.load(finished / "predictions.npz"),
    )
    assert saved["true"].shape == (16, 21, 2)
    for stage in (*STAGES_2D, "mean_pose"):
        errors = np.linalg.norm(saved[stage] - saved["true"], axis=-1)[saved["visible"]]
        assert metrics["values"][stage]["pooled"]["epe_mean"] == pytest.approx(errors.mean(), rel=1e-4)
        assert metrics["values"][stage]["mmpose"]["epe_median"] == pytest.approx(np.median(errors), rel=1e-4)


def test_other_set_is_measured_on_tips(finished):
    metrics, saved = (
        metrics_of(finished),
        np.load(finished / "predictions-sim-dexter-object.npz"),
    )
    assert set(metrics["other"]["sim-dexter-object"]) == {*STAGES_2D, "mean_pose"} - {
        "depth"
    }  # no root to tell depth from
    annotated = np.isfinite(saved["true"]).all(-1)
    assert set(np.flatnonzero(annotated.any(0))) == {4, 8, 12, 16, 20}
    errors = np.linalg.norm(saved["rgb"] - saved["true"], axis=-1)[annotated & saved["visible"]]
    assert metrics["other"]["sim-dexter-object"]["rgb"]["pooled"]["epe_mean"] == pytest.approx(
        errors.mean(), rel=1e-4
    )


def test_stereo_twin(tmp_path):
    "Its masks come from depth."
    done = run(tmp_path / "stb", dataset="sim-stb", crop_by="tips")
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = metrics_of(tmp_path / "stb")
    assert metrics["source"] == "sim-stb" and set(metrics["values"]) == {*STAGES_2D, "mean_pose"}


def test_killed_run_ends_as_the_whole_one(finished):
    "kill -9 in the midst of stage 2; the next call ends with the same weights."
    out = finished.parent / "killed"
    papermill_calls.kill(NOTEBOOK, out, "mask_0.2")
    assert run(out).returncode == 0
    for stage in STAGES_2D:
        whole, killed = (load_file(folder / stage / "model.safetensors") for folder in (finished, out))
        assert all((whole[name] == killed[name]).all() for name in whole)


@pytest.mark.parametrize(
    "parameters, complaint",
    [
        ({"stesp_first": 3}, "parameter 'stesp_first': this notebook has no such parameter"),
        ({"poolings": 5}, "poolings: 5 is not possible"),
        ({"dataset": "stb"}, "data_root: the real dataset needs a folder"),
    ],
)
def test_one_line_for_what_is_wrong(finished, parameters, complaint):
    papermill_calls.refuse(NOTEBOOK, finished.parent / "wrong", parameters, complaint)
