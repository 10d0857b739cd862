"Shipped runs: small, exact within a stated bound, whole, and read like fresh ones."

import json
import shutil

import numpy as np
import pytest
import torch

from handlab.core import HandlabError
from handlab.hand.metrics import joint_errors
from handlab.results import ship
from handlab.results.runs import (
    EXACT,
    RunFolder,
    is_shipped,
    missing_line,
    page_home,
    profile_of,
    require,
    restored,
    shipped_line,
    subtracted,
)
from handlab.train.experiment import close_run, this_sitting
from handlab.train.files import load_network, save_network

FRAMES = 40
LOSSES = "network,split,step,epe\n" + "".join(
    f"rgb,{split},{step},{50 - step / 100}\n"
    for step in range(1000)
    for split in ("training", "validation")
    if split == "training" or step % 50 == 0
)


def network():
    layers = torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8)
    layers[1].running_var.fill_(1e-9)  # no float16
    return torch.nn.Sequential(*layers)


def predictions(seed=0, d=3, spread=15.0, missing=False):
    generator = np.random.default_rng(seed)
    true = np.random.default_rng(9).normal(0, 60, (FRAMES, 21, d)) + np.array([50, -30, 600])[:d]
    if missing:
        true[:, 4:] = np.nan
        true[3] = np.nan
    arrays = {"true": true, "visible": np.ones((FRAMES, 21), bool), "name": np.arange(FRAMES).astype(str)}
    networks = {
        name: np.nan_to_num(true, nan=100.0) + generator.normal(0, spread, true.shape)
        for name in ("rgb", "rgb_pi")
    }
    whole = arrays | networks | {"mean_pose": np.nan_to_num(true)}
    return {name: each.astype(np.float32) if each.dtype == float else each for name, each in whole.items()}


def make_run(folder, name="train_pi-sim-rhd", seed=0, **more):
    "A finished run with small files."
    path = folder / f"{name}-seed{seed}"
    path.mkdir(parents=True)
    np.savez(path / "predictions.npz", **predictions(seed))
    np.savez(path / "predictions-sim-dexter-object.npz", **predictions(seed, 2, missing=True))
    for stage in ("depth", "rgb", "rgb_pi", "rgb_steps"):
        save_network(path / stage / "model.safetensors", network())
        (path / stage / "losses.csv").write_text("step,split,epe\n1,training,2\n1,validation,3\n")
        (path / stage / "checkpoint.pt").write_bytes(b"large")
    (path / "losses.csv").write_text(LOSSES)
    papermill = {"parameters": {"profile": "long", "seed": seed, "data_root": "/home/someone/rhd"}}
    (path / "train_pi.ipynb").write_text(json.dumps({"metadata": {"papermill": papermill}}))
    metrics = {
        "experiment": name.split("-")[0],
        "source": "sim-rhd",
        "seed": seed,
        "commit": "abc",
        "settings": {"data_root": "/home/someone/rhd", "steps": 10, "own_processes": False},
        "hardware": {"cores": 2, "processor": "some processor"},
        "seconds": {"training": 3600.0},
        "sitting": {"seconds": 4000.0, "processor_seconds": 6000.0},
        "stages": {"rgb": {"seconds": 7200.0}},  # half of it in an earlier sitting
        "values": {},
    }
    close_run(path, metrics | more)
    return RunFolder(path)


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def test_a_shipped_run_is_read_like_a_fresh_one(tmp_path):
    run, shipped = make_run(tmp_path / "long"), tmp_path / "shipped"
    assert ship.ship(run, shipped)
    back = RunFolder(shipped / run.name)
    assert not back.lacking and back.profile == profile_of(shipped) == "long" and is_shipped(shipped)
    for other in ("", "sim-dexter-object"):
        before, after = run.predictions_on(other), back.predictions_on(other)
        assert list(before) == list(after)
        for name, each in before.items():
            assert each.dtype == after[name].dtype and each.shape == after[name].shape
            if name in EXACT:
                np.testing.assert_array_equal(each, after[name])
                continue
            apart = np.abs(each - subtracted(before["true"]))
            assert (np.abs(each - after[name]) <= np.maximum(1 / 32, apart / 2048) + 1e-4).all()
            errors = [joint_errors(arrays[name], arrays["true"]) for arrays in (before, after)]
            assert abs(np.nanmean(errors[0]) - np.nanmean(errors[1])) < ship.MOST_APART / 5
    np.testing.assert_array_equal(run.losses("", "validation")["epe"], back.losses("", "validation")["epe"])
    assert len(back.losses("", "training")["epe"]) == ship.MOST_ROWS
    assert back.losses("rgb", "validation")["epe"] == 3


def test_what_is_shipped_is_small_and_names_no_folder_of_the_machine(tmp_path):
    run, shipped = make_run(tmp_path / "long"), tmp_path / "shipped"
    ship.ship(run, shipped)
    files = files_of(shipped)
    assert not any(name.endswith((".ipynb", ".pt", ".partial")) for name in files)
    assert {name for name in files if name.endswith("safetensors")} == {
        f"{run.name}/{stage}/model.safetensors" for stage in ("depth", "rgb", "rgb_pi")
    }
    assert not any(b"someone" in content for content in files.values())
    with np.load(shipped / run.name / "predictions.npz") as arrays:
        assert arrays["rgb"].dtype == np.float16 and "true" not in arrays
    about = RunFolder(shipped / run.name).shipped
    assert about["command"] == "papermill nbs/train_pi.ipynb runs/train_pi.ipynb -p profile long -p seed 0"
    assert (about["hours"], about["processor_hours"]) == (2.0, 3.0)  # busy: 1.5 cores
    assert (
        about["kilowatt_hours"] == pytest.approx(3 * 10 / 1000) and "estimated" in about["kilowatt_hours_are"]
    )
    line = shipped_line([RunFolder(shipped / run.name)] * 2)
    assert line.startswith("1 shipped run: profile long, commit abc, on 2 cores of some processor; 2.0 hours")


def test_runs_on_the_same_frames_share_the_truth(tmp_path):
    shipped = tmp_path / "shipped"
    for seed in (0, 1):
        ship.ship(make_run(tmp_path / "long", seed=seed), shipped)
    assert len([*shipped.glob("frames/*.npz")]) == 2  # the own test set, and the other
    assert not [*shipped.glob("*seed1/*/model.safetensors")]
    shutil.rmtree(shipped / "train_pi-sim-rhd-seed0")
    ship.remove_unused(shipped)
    assert len([*shipped.glob("frames/*.npz")]) == 2
    shutil.rmtree(shipped / "train_pi-sim-rhd-seed1")
    ship.remove_unused(shipped)
    assert not [*shipped.glob("frames/*.npz")]


def test_half_the_weights_bytes_and_none_lost(tmp_path):
    run, shipped = make_run(tmp_path / "long"), tmp_path / "shipped"
    ship.ship(run, shipped)
    before, after = (
        load_network(folder / run.name / "rgb/model.safetensors", network()).state_dict()
        for folder in (tmp_path / "long", shipped)
    )
    for name, each in before.items():
        exact = each.ndim < 2
        assert torch.allclose(each, after[name], rtol=0 if exact else 1e-3, atol=0 if exact else 1e-7), name


def test_shipping_again_writes_nothing_unless_the_run_has_changed(tmp_path):
    run, shipped = make_run(tmp_path / "long"), tmp_path / "shipped"
    assert ship.ship(run, shipped)
    before = files_of(shipped)
    assert not ship.ship(run, shipped) and files_of(shipped) == before
    measured = run.measured("walks", lambda: {"a/b": np.arange(3.0)})
    assert ship.ship(run, shipped)
    back = RunFolder(shipped / run.name).measured("walks", lambda: pytest.fail("it is shipped"))
    np.testing.assert_array_equal(back["a/b"], measured["a/b"])
    with pytest.raises(FileNotFoundError, match="not shipped; train the run"):
        RunFolder(shipped / run.name).measured("clouds", lambda: pytest.fail("it is shipped"))


def test_unfinished_and_damaged_runs_are_refused_and_leave_nothing(tmp_path):
    shipped = tmp_path / "shipped"
    run = make_run(tmp_path / "long")
    (run.path / "rgb/losses.csv").write_text("step,split,epe\n1,training,9\n")
    with pytest.raises(HandlabError, match="rgb/losses.csv: its bytes are not those that were written"):
        ship.ship(run, shipped)
    other = make_run(tmp_path / "long", seed=1)
    (other.path / "predictions.npz").unlink()
    with pytest.raises(HandlabError, match="it lacks predictions.npz"):
        ship.ship(RunFolder(other.path), shipped)
    (tmp_path / "long/train_pi-sim-rhd-seed2").mkdir()
    with pytest.raises(HandlabError, match="not finished"):
        ship.ship(RunFolder(tmp_path / "long/train_pi-sim-rhd-seed2"), shipped)
    assert not [path for path in shipped.rglob("*") if path.is_file()]


def test_a_damaged_shipped_run_is_noticed(tmp_path):
    run, shipped = make_run(tmp_path / "long"), tmp_path / "shipped"
    ship.ship(run, shipped)
    frames = RunFolder(shipped / run.name).metrics["files"]
    name = next(name for name in frames if name.startswith("../frames/sim-rhd"))
    path = (shipped / run.name / name).resolve()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(HandlabError, match="its bytes are not those that were written"):
        RunFolder(shipped / run.name).predictions  # noqa: B018
    path.unlink()
    assert RunFolder(shipped / run.name).lacking == [name]


def test_the_limit_refuses_a_run_and_keeps_what_is_there(tmp_path):
    shipped = tmp_path / "shipped"
    ship.ship(make_run(tmp_path / "long"), shipped)
    before = files_of(shipped)
    with pytest.raises(HandlabError, match="MiB would be shipped, and 0.01 are the limit"):
        ship.ship(make_run(tmp_path / "long", seed=1), shipped, limit=0.01)
    assert files_of(shipped) == before


def test_a_run_of_a_smaller_profile_does_not_replace_a_larger_one(tmp_path):
    shipped = tmp_path / "shipped"
    ship.ship(make_run(tmp_path / "full"), shipped)
    with pytest.raises(HandlabError, match="it is of profile quick, and full is shipped"):
        ship.ship(make_run(tmp_path / "quick"), shipped)


def test_a_shipped_run_is_not_shipped_over_itself(tmp_path):
    run, shipped = make_run(tmp_path / "long"), tmp_path / "shipped"
    ship.ship(run, shipped)
    (shipped / run.name / "rgb/calibration.json").write_text("{}")
    before = files_of(shipped)
    with pytest.raises(HandlabError, match="it is the shipped copy itself; name the run"):
        ship.ship(RunFolder(shipped / run.name), shipped)
    assert files_of(shipped) == before


def test_the_command_ships_what_is_whole_and_says_what_is_not(tmp_path, capsys):
    make_run(tmp_path / "long")
    bad = make_run(tmp_path / "long", seed=1)
    (bad.path / "losses.csv").write_text(LOSSES + "x")
    with pytest.raises(HandlabError, match="1 of 2 runs not shipped"):
        ship.main([str(tmp_path / "long"), "--to", str(tmp_path / "shipped")])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "shipped; " in said[0] and "of 60 MiB" in said[0] and "NOT shipped" in said[1]
    assert RunFolder(tmp_path / "shipped/train_pi-sim-rhd-seed0").shipped
    with pytest.raises(HandlabError, match="there is no such run"):
        ship.main(["train_pi-sim-rdh-seed0"])


def test_missing_shipped_runs_are_named_in_one_line(tmp_path):
    shipped = tmp_path / "shipped"
    ship.ship(make_run(tmp_path / "long"), shipped)
    assert missing_line(["train_pi-sim-rhd"], shipped) == ""
    assert missing_line(["train_pi-sim-rhd"], shipped, 2)[:1] == "1"
    named = missing_line(["train_pi-sim-rhd", "train_pi-sim-stb"], shipped, 2)
    line = "3 runs are not shipped yet: train_pi-sim-rhd (seed 1), train_pi-sim-stb (seed 0, 1)"
    assert named == line
    many = missing_line([f"train_pi-{number}" for number in range(9)], shipped)
    assert many.startswith("9 runs are not shipped yet: ") and many.endswith("train_pi-2 (seed 0) and 6 more")
    with pytest.raises(HandlabError, match="train and ship them"):
        require(["train_pi-sim-stb"], shipped)
    assert page_home(shipped) == tmp_path / "papers" and page_home("runs/quick").name == "quick"


def test_differences_that_float16_cannot_hold_are_refused(tmp_path):
    run = make_run(tmp_path / "long")
    arrays = predictions()
    arrays["rgb"] = arrays["rgb"] + np.float32(5000)  # steps of 4 mm
    np.savez(run.path / "predictions.npz", **arrays)
    close_run(run.path, RunFolder(run.path).metrics)
    with pytest.raises(HandlabError, match="as float16 its mean error would change by"):
        ship.ship(RunFolder(run.path), tmp_path / "shipped")


def test_a_joint_without_truth_is_kept_relative_to_the_others():
    true = np.array([[[1.0, 2], [np.nan, np.nan], [3, 6]], [[np.nan, np.nan]] * 3])
    np.testing.assert_array_equal(subtracted(true), [[[1, 2], [2, 4], [3, 6]], [[0, 0]] * 3])
    back = restored({"rgb": ship.compact(np.full((2, 3, 2), 7.0), true)}, {"true": true})
    np.testing.assert_allclose(back["rgb"], 7)


def test_a_sitting_counts_processor_time():
    before = this_sitting()
    sum(number * number for number in range(3_000_000))
    after = this_sitting()
    assert (
        after["processor_seconds"] > before["processor_seconds"] > 0 and after["seconds"] >= before["seconds"]
    )


def test_every_shipped_run_of_this_project_is_whole():
    "Digests, seals and the limit, of what is in the repository."
    from handlab.core import project_path
    from handlab.results.runs import SHIPPED

    folder = project_path(SHIPPED)
    for path in sorted(folder.glob("*/metrics.json")):
        run = RunFolder(path.parent)
        assert run.shipped and not run.lacking
        for name in run.metrics["files"]:
            run.file(name)
    assert not folder.exists() or ship.size_of(folder) <= ship.LIMIT * 2**20
