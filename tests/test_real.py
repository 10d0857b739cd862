"Real frames: what is measured, what the table says, and what is kept with a shipped run."

import shutil

import numpy as np
import pytest

from handlab.aligned.experiment import AlignedSettings
from handlab.aligned.explorer import practice_run
from handlab.core import HandlabError, read_json, write_arrays, write_json
from handlab.hand.metrics import joint_errors
from handlab.pages import measure
from handlab.pages.aligned_scores import opened
from handlab.results import real, ship
from handlab.results.runs import RunFolder
from handlab.settings import make_settings
from handlab.train.experiment import close_run

NAMES = np.array([f"evaluation/{number:05d}" for number in range(4)])


def made_up(folder, seed, twin, errors, names=NAMES, turn=10.0):
    "A run whose joints are all off by the same lengths (mm), on twin and real frames."
    path = folder / f"train_aligned-S1-sim-rhd-seed{seed}"
    true = np.zeros((len(twin), 21, 3), np.float32)
    shift = np.array(twin, np.float32)[:, None, None] * np.array([0, 0.6, 0.8], np.float32)
    write_arrays(path / "predictions.npz", {"true": true, "RGB": true + shift, "name": NAMES})
    if errors is not None:
        measured = {"error": errors, "procrustes": np.array(errors) / 2, "turn": np.full(len(errors), turn)}
        arrays = {f"RGB/{name}": np.array(each, np.float32) for name, each in measured.items()}
        write_arrays(path / "measured/real.npz", arrays | {"name": names})
    settings = {"strategy": "S1", "dataset": "sim-rhd"}
    about = {"experiment": "train_aligned", "source": "sim-rhd", "seed": seed, "settings": settings}
    close_run(path, about)
    return RunFolder(path)


def test_the_table_of_real_frames_by_hand(tmp_path):
    first = [made_up(tmp_path / "a", seed, [10, 20, 30, 40], [20, 30, 40, 50 + 4 * seed]) for seed in (0, 1)]
    second = [made_up(tmp_path / "b", 1, [12, 22, 32, 42], [18, 28, 38, 52], turn=61.0)]
    table = real.table_real({"one": (first, "RGB"), "other": (second, "RGB")})
    numbers = table[["sim-rhd (mm)", "real (mm)", "real, Procrustes (mm)"]].astype(float)
    assert numbers.loc["one"].tolist() == pytest.approx([25, 35.5, 17.75])
    assert numbers.loc["other"].tolist() == pytest.approx([27, 34, 17])
    assert table["seeds"].tolist() == ["2", "1"]
    assert table.loc["other", "real, minus the first (mm)"] == pytest.approx(-2)  # of seed 1, which both have
    assert table.loc["other", "its 95 %"] == "-2.00 to -2.00"
    assert table["real, turned by over 60 degrees (%)"].tolist() == [0, 100]
    assert "4 real RHD frames" in table.index.name and "MediaPipe" not in " ".join(table.index)


def test_a_network_that_was_not_measured_is_left_out_and_none_is_an_error(tmp_path):
    runs = [made_up(tmp_path, 0, [1] * 4, [2] * 4), made_up(tmp_path, 1, [1] * 4, None)]
    table = real.table_real({"one": (runs, "RGB"), "never": (runs, "depth")})
    assert table.loc["one", "seeds"] == "1" and "never" not in table.index
    with pytest.raises(HandlabError, match=r"^never: none of its runs.*handlab\.pages\.measure"):
        real.table_real({"never": (runs, "depth")})


def test_seeds_measured_on_different_frames_are_an_error(tmp_path):
    runs = [made_up(tmp_path, 0, [1] * 4, [2] * 4), made_up(tmp_path, 1, [1] * 4, [2] * 3, NAMES[:3])]
    with pytest.raises(HandlabError, match="different real frames; run python -m handlab.pages.measure"):
        real.table_real({"one": (runs, "RGB")})


def test_the_other_estimator_stands_in_the_table_of_its_frames(tmp_path):
    names = np.array([f"evaluation/{number:05d}" for number in range(102)])
    run = made_up(tmp_path, 0, [1] * 4, np.arange(102.0), names)
    table = real.table_real({"one": ([run], "RGB")})
    assert list(table.index) == ["one", "MediaPipe's hand network, trained by others"]
    assert 20 < table["real (mm)"].iloc[1] < 40


def test_joints_are_told_apart_where_they_are_known_and_else_a_dash_stands(tmp_path):
    runs = [made_up(tmp_path, seed, [1] * 4, [20, 30, 40, 50]) for seed in (0, 1)]
    joints = np.tile(np.arange(21), (4, 1)).astype(np.float16)
    arrays = runs[0].measured_before("real")
    write_arrays(
        runs[0].path / "measured/real.npz",
        arrays | {"RGB/joints": joints, "visible": np.tile(np.arange(21) < 11, (4, 1))},
    )
    other = [made_up(tmp_path / "other", 0, [1] * 4, [20] * 4)]
    table = real.table_real_joints({"one": (runs, "RGB"), "old": (other, "RGB"), "never": (other, "rgb")})
    assert list(table.index) == ["one", "old"]
    row = table.loc["one"]
    assert (row["seeds"], row["seeds with joints"]) == ("2", "1")
    assert (row["visible joints"], row["hidden joints"], row["wrist"]) == (5, 15.5, 0)
    assert [row[kind] for kind in ("MCP", "PIP", "DIP", "tip")] == [9, 10, 11, 12]
    assert row["Procrustes EPE (mm)"] == 17.5 and row["rotation (degrees)"] == 10
    assert set(table.loc["old"].iloc[4:]) == {real.UNKNOWN} and table.loc["old", "Procrustes EPE (mm)"] == 10
    with pytest.raises(HandlabError, match=r"^never: none of its runs"):
        real.table_real_joints({"never": (other, "rgb")})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "train_aligned-S4-sim-rhd-seed0"
    practice_run(make_settings(AlignedSettings, "smoke", strategy="S4"), path)
    return RunFolder(path)


def test_errors_on_real_frames_are_those_of_the_network(trained, monkeypatch):
    prepared = opened(trained)[1].test
    monkeypatch.setattr(real, "real_frames", lambda crops, root: (prepared, "as many real frames"))
    found = real.real_errors(trained)
    expected = np.nanmean(joint_errors(trained.predictions["RGB"], trained.predictions["true"]), 1)
    np.testing.assert_allclose(found["RGB/error"], expected, rtol=1e-4)
    np.testing.assert_allclose(np.float32(found["RGB/joints"]).mean(1), expected, rtol=1e-3)
    assert found["visible"].shape == found["RGB/joints"].shape == (len(expected), 21)
    before = {"name": found["name"], "gone/error": np.ones(len(expected))}
    monkeypatch.setattr(type(trained), "measured_before", lambda run, name: before)
    assert real.real_errors(trained)["gone/error"].sum() == len(expected)  # its weights are not there
    before["name"] = before["name"][1:]
    assert "gone/error" not in real.real_errors(trained)
    assert (found["RGB/procrustes"] <= found["RGB/error"] + 1e-3).all() and found["name"].size == len(
        expected
    )


def test_without_real_frames_they_are_no_measure_and_asked_for_an_error(trained, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "real_root", lambda name: None)
    assert list(measure.measures_of(trained)) == ["walks", "clouds", "tips"]
    monkeypatch.setattr(real, "real_frames", lambda crops, root: (None, "There are none. Put them there."))
    with pytest.raises(HandlabError, match="There are none; Put them there"):
        real.real_errors(trained)
    assert measure.measure(trained, ["real"], root=str(tmp_path))["real"].startswith(
        "NOT measured: real frames"
    )


@pytest.mark.parametrize("same", [True, False])
def test_what_was_added_to_a_shipped_run_stays_with_the_same_training(trained, tmp_path, same):
    run = RunFolder(shutil.copytree(trained.path, tmp_path / "long" / trained.name))
    ship.ship(run, tmp_path / "shipped")
    place = tmp_path / "shipped" / run.name
    added = ship.add_measured(RunFolder(place), "real", {"name": NAMES})
    assert added.measured_before("real")["name"].tolist() == NAMES.tolist()
    write_json(place / "calibration.json", {"factor": 2})
    assert not ship.ship(run, tmp_path / "shipped")  # nothing is new in the run itself
    if not same:
        changed = read_json(run.path / "metrics.json") | {"commit": "another"}
        write_json(
            run.path / "metrics.json", {k: v for k, v in changed.items() if k != "digest"}, sealed=True
        )
    write_arrays(run.path / "measured/walks.npz", {"way": np.ones(2)})
    assert ship.ship(RunFolder(run.path), tmp_path / "shipped")
    again = RunFolder(place)
    assert again.measured_before("walks")["way"].tolist() == [1, 1] and not again.lacking
    assert (again.measured_before("real") is not None) == same == (place / "calibration.json").exists()
