"The staged experiment, end to end on drawn frames: what is frozen, equal, refused and written."

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import drawn_data, stop_at_step

from handlab.core import HandlabError, read_json
from handlab.privileged import experiment
from handlab.privileged.experiment import (
    PiLoss,
    carries_mask,
    choose_scale,
    make_network,
    predict,
    predict_all,
    start_network,
    start_sizes,
    step_time_ratio,
    train_first,
    train_second,
    train_stage,
    trained_network,
    training_batches,
    write_run,
)
from handlab.privileged.stages import STAGES, PiSettings, check_pi, train_settings
from handlab.settings import make_settings
from handlab.train.experiment import ExperimentData, mean_pose
from handlab.train.files import read_losses, state_on_cpu, weights_fingerprint
from handlab.train.scores import evaluate_on
from handlab.train.sets import reader_of

SMOKE = make_settings(PiSettings, "smoke", train_frames=24, validation_frames=8, test_frames=10)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return drawn_data(tmp_path_factory.mktemp("drawn"), SMOKE)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    "A run with both stages done."
    folder = tmp_path_factory.mktemp("run")
    train_first(SMOKE, data, folder, show=False)
    train_second(SMOKE, data, folder, show=False)
    return folder


# ---------------------------------------------------------------- settings
def test_unknown_setting_is_named():
    with pytest.raises(HandlabError, match="setting 'lambda': PiSettings has no such setting"):
        make_settings(PiSettings, "quick", **{"lambda": 3})


@pytest.mark.parametrize(
    "change, words",
    [
        ({"dataset": "freihand"}, "dataset"),
        ({"inter_reduction": "max"}, "inter_reduction"),
        ({"crop": 100}, "crop"),
        ({"train_frames": 0}, "train_frames"),
        ({"batch_size": 4000}, "batch_size"),
        ({"mask_share": 1.5}, "mask_share"),
        ({"width": 0.0}, "width"),
        ({"protocol": "mine"}, "protocol"),
        ({"seed": "a"}, "seed"),
    ],
)
def test_bad_value_is_named(change, words):
    with pytest.raises(HandlabError, match=f"PiSettings.{words}"):
        check_pi(replace(make_settings(PiSettings, "quick"), **change))


def test_full_is_the_papers_size():
    full = make_settings(PiSettings, "full")
    assert (
        full.train_frames + full.validation_frames == 41258
        and full.train_frames % 80 == 0
        and full.test_frames == 2728
    )  # RHD's counts
    assert (full.crop, full.width, full.lambda_c, full.steps_first, full.steps_second) == (
        256,
        1.0,
        100.0,
        20000,
        10000,
    )
    assert train_settings(full, "rgb_pi").steps == 10000 and train_settings(full, "depth").precision == "auto"


def test_real_data_needs_its_folder(tmp_path):
    with pytest.raises(HandlabError, match="data_root"):
        reader_of(replace(SMOKE, dataset="rhd"), "training")
    with pytest.raises(HandlabError, match="nowhere"):
        reader_of(replace(SMOKE, dataset="rhd", data_root=str(tmp_path / "nowhere")), "training")


def test_device_that_is_not_there(data, tmp_path):
    with pytest.raises(HandlabError, match="device 'cuda:9'"):
        train_first(SMOKE, data, tmp_path / "run", device="cuda:9")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- data
def test_validation_is_the_training_splits_tail(data):
    assert [len(part) for part in (data.train, data.validation, data.test)] == [24, 8, 10]
    whole = [*data.train.name, *data.validation.name]
    assert whole == sorted(whole) and not set(data.train.name) & set(data.validation.name)
    assert all(str(name).startswith("evaluation") for name in data.test.name)


def test_equal_batches_for_privileged_net_and_controls(data):
    "The same images and poses in the same order, going on where stage 1 ended."
    batches = {stage: training_batches(SMOKE, data, stage, "cpu") for stage in STAGES}
    for step in (0, 1, 7):
        for stage in ("rgb_steps", "rgb_time"):
            assert torch.equal(batches["rgb_pi"](step).image, batches[stage](step).image)
            assert torch.equal(batches["rgb_pi"](step).pose, batches[stage](step).pose)
        assert torch.equal(batches["rgb_pi"](step).image, batches["rgb"](SMOKE.steps_first + step).image)
    assert torch.equal(batches["depth"](3).pose, batches["rgb"](3).pose)  # paired in stage 1 too
    assert not torch.equal(batches["rgb"](0).index, batches["rgb"](1).index)


# ---------------------------------------------------------------- the privileged loss
def test_gradient_reaches_the_rgb_net_only(data):
    depth_net, rgb_net = make_network(SMOKE, "depth"), make_network(SMOKE, "rgb")
    before = state_on_cpu(depth_net)
    losses = PiLoss(SMOKE, depth_net)(rgb_net.train(), training_batches(SMOKE, data, "rgb_pi", "cpu")(0))
    losses["loss"].backward()
    assert all(parameter.grad is None for parameter in depth_net.parameters())
    assert all(parameter.grad is not None for parameter in rgb_net.parameters())
    assert not depth_net.training
    assert all(
        torch.equal(before[name], value) for name, value in state_on_cpu(depth_net).items()
    )  # batch statistics too


def test_joint_loss_is_its_terms(data):
    settings = replace(SMOKE, inter_weight=0.5, lambda_c=10.0, mask_weight=2.0)
    losses = PiLoss(settings, make_network(SMOKE, "depth"))(
        make_network(SMOKE, "rgb").train(), training_batches(settings, data, "rgb_pi", "cpu")(0)
    )
    assert losses["loss"].item() == pytest.approx(
        (losses["intermediate"] + 10 * losses["pose"] + losses["mask"]).item(), rel=1e-5
    )
    control = PiLoss(settings)(
        make_network(SMOKE, "rgb").train(), training_batches(settings, data, "rgb_steps", "cpu")(0)
    )
    assert set(control) == {"loss", "pose"} and control["loss"].item() == pytest.approx(
        10 * losses["pose"].item(), rel=1e-5
    )


def test_mask_share():
    index = torch.arange(20000)
    for share in (0.0, 0.2, 0.8, 1.0):
        carried = carries_mask(index, replace(SMOKE, mask_share=share))
        assert carried.float().mean().item() == pytest.approx(share, abs=0.01)
    assert not torch.equal(
        carries_mask(index, replace(SMOKE, mask_share=0.5)),
        carries_mask(index, replace(SMOKE, mask_share=0.5, seed=1)),
    )


def test_without_the_privileged_term_pi_is_the_control(data, finished, tmp_path):
    "With weight 0 on Loss_Inter, RGB PI Net ends with the control's weights, bit for bit."
    for stage in ("depth", "rgb"):
        shutil.copytree(finished / stage, tmp_path / stage)
    train_stage("rgb_pi", replace(SMOKE, inter_weight=0.0), data, tmp_path, report=lambda *state: None)
    assert weights_fingerprint(trained_network(SMOKE, "rgb_pi", tmp_path)) == weights_fingerprint(
        trained_network(SMOKE, "rgb_steps", finished)
    )


# ---------------------------------------------------------------- the stages
def test_stage_two_starts_from_the_rgb_net_and_leaves_stage_one_alone(data, finished, tmp_path):
    for stage in ("depth", "rgb"):
        shutil.copytree(finished / stage, tmp_path / stage)
    before = {stage: (tmp_path / stage / "model.safetensors").read_bytes() for stage in ("depth", "rgb")}
    assert weights_fingerprint(start_network(SMOKE, "rgb_pi", tmp_path)) == weights_fingerprint(
        trained_network(SMOKE, "rgb", tmp_path)
    )
    train_stage("rgb_pi", SMOKE, data, tmp_path, report=lambda *state: None)
    assert {
        stage: (tmp_path / stage / "model.safetensors").read_bytes() for stage in ("depth", "rgb")
    } == before
    prints = {stage: weights_fingerprint(trained_network(SMOKE, stage, finished)) for stage in STAGES}
    assert len(set(prints.values())) == (
        5 if read_json(finished / "rgb_time" / "finished.json")["steps"] != SMOKE.steps_second else 4
    )


def test_copied_head_is_the_depth_nets(finished):
    depth, rgb = (trained_network(SMOKE, stage, finished).state_dict() for stage in ("depth", "rgb"))
    copied, control = (
        start_network(replace(SMOKE, copy_head=True), stage, finished).state_dict()
        for stage in ("rgb_pi", "rgb_steps")
    )
    for name in copied:
        assert torch.equal(copied[name], (depth if name.startswith("head") else rgb)[name])
        assert torch.equal(control[name], rgb[name])


def test_stage_two_without_stage_one_says_so(data, tmp_path):
    with pytest.raises(HandlabError, match="run the training that writes it"):
        train_stage("rgb_pi", SMOKE, data, tmp_path)


def test_steps_of_the_controls(finished):
    steps = {stage: read_json(finished / stage / "finished.json")["steps"] for stage in STAGES}
    ratio = read_json(finished / "step_time.json")["ratio"]
    assert steps["rgb_pi"] == steps["rgb_steps"] == SMOKE.steps_second and steps["rgb_time"] == round(
        SMOKE.steps_second * ratio
    )
    assert steps["depth"] == steps["rgb"] == SMOKE.steps_first


def test_recorded_ratio_is_used_again(data, finished, monkeypatch):
    monkeypatch.setattr(experiment, "time_steps", lambda *a, **k: pytest.fail("measured again"))
    assert step_time_ratio(SMOKE, data, finished) == read_json(finished / "step_time.json")["ratio"]


def test_second_call_loads(data, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    train_first(SMOKE, data, finished, show=False)
    train_second(SMOKE, data, finished, show=False)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_other_settings_are_refused_where_they_matter(data, finished):
    with pytest.raises(HandlabError, match="lambda_c = 100.0, now it is 10.0"):
        train_stage("rgb_pi", replace(SMOKE, lambda_c=10.0), data, finished)
    train_stage("rgb", replace(SMOKE, lambda_c=10.0), data, finished)  # stage 1 does not depend on lambda
    with pytest.raises(HandlabError, match="rotation"):
        train_stage("rgb", replace(SMOKE, rotation=5.0), data, finished)
    with pytest.raises(HandlabError, match="about.data"):
        train_stage("rgb", SMOKE, ExperimentData(data.training_folder, data.test_folder, 9), finished)


def test_stopped_stage_goes_on_the_same(data, finished, tmp_path, monkeypatch):
    for stage in ("depth", "rgb"):
        shutil.copytree(finished / stage, tmp_path / stage)

    def train():
        train_stage("rgb_pi", SMOKE, data, tmp_path, report=lambda *state: None)

    stop_at_step(monkeypatch, experiment, train)
    train()
    for name in ("model.safetensors", "losses.csv"):
        assert (tmp_path / "rgb_pi" / name).read_bytes() == (finished / "rgb_pi" / name).read_bytes()


def test_in_processes_of_their_own_the_same_weights(data, finished, tmp_path, capsys):
    results = train_first(replace(SMOKE, own_processes=True), data, tmp_path)
    assert "Depth Net: 12 steps" in capsys.readouterr().out
    for stage in ("depth", "rgb"):
        assert (
            results[STAGES[stage].label]["weights"]
            == read_json(finished / stage / "finished.json")["weights"]
        )


def test_the_first_stage_prepares_before_its_processes_start(data, tmp_path, monkeypatch):
    "A training's process may start no others, as preparing does."
    monkeypatch.setenv("HANDLAB_ROOT", str(tmp_path))
    train_first(
        replace(SMOKE, own_processes=True, depth_first="sim-bighand"), data, tmp_path / "run", show=False
    )
    assert read_json(tmp_path / "run" / "before" / "finished.json")["steps"] == SMOKE.steps_before and list(
        (tmp_path / "data" / "prepared").glob("sim-bighand-*")
    )


def test_the_networks_learn(data, tmp_path):
    "Drawn hands are one rigid hand: a hundred steps must beat the mean pose on the training frames."
    settings = replace(SMOKE, steps_first=150, rate_first=3e-3, log_every=50, validate_every=0)
    train_stage("depth", settings, data, tmp_path, report=lambda *state: None)
    table = read_losses(tmp_path / "depth" / "losses.csv")
    true = data.train.joints - data.train.joints[:, 9:10]
    error = np.linalg.norm(
        predict(trained_network(settings, "depth", tmp_path), data.train, "depth") - data.train.joints,
        axis=-1,
    ).mean()
    assert (
        table["loss"][-1] < 0.3 * table["loss"][0]
        and error < 0.7 * np.linalg.norm(true - true.mean(0), axis=-1).mean()
    )


# ---------------------------------------------------------------- evaluation and the run folder
def test_prediction_is_in_millimetres_at_the_true_root(data):
    class Knowing(torch.nn.Module):
        "Answers a fixed pose in hand scales."

        def forward(self, image):
            return torch.ones(len(image), 21, 3) * 2, image

    predicted = predict(Knowing(), data.test, "image", batch_size=3)
    joints = np.asarray(data.test.joints)
    scale = np.linalg.norm(joints[:, 9] - joints[:, 10], axis=-1)
    assert predicted.shape == (10, 21, 3)
    np.testing.assert_allclose(
        predicted, np.broadcast_to(joints[:, 9:10] + 2 * scale[:, None, None], joints.shape), rtol=1e-4
    )


def test_start_sizes(data, finished):
    sizes = start_sizes(SMOKE, data, finished)
    assert set(sizes) == {"pose", "intermediate"} and all(
        value > 0 for term in sizes.values() for value in term.values()
    )
    doubled = start_sizes(replace(SMOKE, inter_weight=2 * SMOKE.inter_weight), data, finished)
    assert doubled["intermediate"]["gradient"] == pytest.approx(
        2 * sizes["intermediate"]["gradient"], rel=1e-3
    )


def test_run_folder(data, finished):
    predictions = predict_all(SMOKE, data, finished)
    values = evaluate_on(data.test, predictions)
    write_run(finished, SMOKE, data, predictions, values, {"data": 1.5}, note="x")
    metrics = json.loads((finished / "metrics.json").read_text())
    assert (
        set(values) == {*STAGES, "mean_pose"}
        and metrics["settings"]["lambda_c"] == 100
        and metrics["seed"] == 0
        and metrics["note"] == "x"
    )
    assert {
        "commit",
        "versions",
        "hardware",
        "data",
        "stages",
        "step_time",
        "source",
        "seconds",
        "protocol",
    } <= set(metrics)
    saved = np.load(finished / "predictions.npz")
    joints = np.asarray(data.test.joints)
    for stage in STAGES:
        assert metrics["values"][stage]["epe_mean"] == pytest.approx(
            np.linalg.norm(saved[stage] - joints, axis=-1).mean(), rel=1e-4
        )
        assert len(metrics["values"][stage]["pck"]) == len(metrics["thresholds"]) == 20
    rows = list(csv.DictReader((finished / "losses.csv").open()))
    assert {row["network"] for row in rows} == set(STAGES)
    assert (finished / "model.safetensors").read_bytes() == (
        finished / "rgb_pi" / "model.safetensors"
    ).read_bytes()


def test_choice_of_scale_looks_at_validation_only(data, finished, tmp_path, monkeypatch):
    for stage in ("depth", "rgb"):
        shutil.copytree(finished / stage, tmp_path / stage)
    monkeypatch.setattr(
        ExperimentData, "test", property(lambda self: pytest.fail("the evaluation split was opened"))
    )
    table = choose_scale(SMOKE, data, tmp_path, names=("features sum, pose mean", "both means"), show=False)
    assert (
        set(table["epe_mean"]) == {"features sum, pose mean", "both means", "control"}
        and table["split"] == "validation"
    )
    assert table["chosen"] in table["epe_mean"] and read_json(tmp_path / "scale.json") == table


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_stages_on_a_gpu(data, tmp_path):
    train_first(SMOKE, data, tmp_path, device="cuda", show=False)
    train_second(SMOKE, data, tmp_path, device="cuda", show=False)
    assert predict(trained_network(SMOKE, "rgb_pi", tmp_path, "cuda"), data.test, device="cuda").shape == (
        10,
        21,
        3,
    )


# ---------------------------------------------------------------- what must not go unnoticed
def test_prediction_is_in_evaluation_mode(data):
    "Without dropout and with the learnt batch statistics, whichever mode the network is in."
    settings = replace(SMOKE, dropout=0.5)
    network = make_network(settings, "rgb").train()
    before = state_on_cpu(network)
    many, few = (predict(network, data.test, batch_size=size) for size in (10, 1))
    np.testing.assert_allclose(many, few, rtol=1e-4, atol=1e-2)
    assert all(torch.equal(before[name], value) for name, value in state_on_cpu(network).items())


def test_the_mean_pose_is_that_of_the_training_frames(data):
    class Bent:
        "The data with other poses in the evaluation split."

        train, validation = data.train, data.validation

        @property
        def test(self):
            return pytest.fail("the evaluation split was opened")

    joints, root = np.asarray(data.train.joints), np.asarray(data.train.joints)[:, 9:10]
    scale = np.linalg.norm(joints[:, 9] - joints[:, 10], axis=-1)[:, None, None]
    np.testing.assert_allclose(mean_pose(Bent()), ((joints - root) / scale).mean(0), atol=1e-4)


def test_what_a_stage_depends_on_follows_settings_and_data(data):
    one = experiment.depends_on(SMOKE, "rgb_pi", data)
    for change in ({"lambda_c": 7.0}, {"rotation": 1.0}, {"seed": 5}, {"width": 0.5}):
        assert experiment.depends_on(replace(SMOKE, **change), "rgb_pi", data) != one
    other = ExperimentData(data.training_folder, data.test_folder, 9)
    assert other.training_fingerprint != data.training_fingerprint
    assert experiment.depends_on(SMOKE, "rgb_pi", other) != one


def test_the_steps_of_equal_time_are_measured_once_and_repeatable(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HANDLAB_ROOT", str(tmp_path))
    times = iter([0.3, 0.2])
    monkeypatch.setattr(
        experiment, "run_jobs", lambda jobs, *_, **__: {job.name: next(times) for job in jobs}
    )
    assert step_time_ratio(SMOKE, data, tmp_path / "one") == pytest.approx(1.5)
    assert step_time_ratio(SMOKE, data, tmp_path / "two") == pytest.approx(1.5)  # no third measurement
    assert step_time_ratio(replace(SMOKE, seed=4), data, tmp_path / "three") == pytest.approx(1.5)
    assert experiment.second_steps(SMOKE, data, tmp_path / "one")["rgb_time"] == 12
    named = replace(SMOKE, steps_same_time=11)
    assert experiment.second_steps(named, data, tmp_path / "one")["rgb_time"] == 11
    (tmp_path / "one/step_time.json").unlink()
    assert step_time_ratio(SMOKE, data, tmp_path / "one") == pytest.approx(1.5)
    for text in ("[]", "{}", '{"seconds": {}, "ratio": "two"}', '{"seconds": {}, "ratio": 0.2}', ""):
        (tmp_path / "one/step_time.json").write_text(text)
        with pytest.raises(HandlabError, match="step_time.json: .*; delete it and run the notebook again"):
            step_time_ratio(SMOKE, data, tmp_path / "one")
