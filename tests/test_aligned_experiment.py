"""The aligned experiment: settings, what a step sees, training, prediction and the run folder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from handlab.aligned.experiment import (
    AlignedLoss,
    AlignedSettings,
    Validation,
    ViewsAt,
    check_aligned,
    equal_time_steps,
    make_network,
    modality_tensors,
    part_of,
    predict,
    predict_mean,
    reconstruct,
    run_name,
    strategy_jobs,
    train_settings,
    train_strategy,
    trained_network,
    viewpoint,
    write_run,
)
from handlab.aligned.losses import LossSettings
from handlab.aligned.strategies import NetworkSettings
from handlab.core import HandlabError, read_json
from handlab.data.batches import Augment, Batches
from handlab.data.prepare import CropSettings, prepare
from handlab.hand.camera import project, rotate
from handlab.settings import make_settings
from handlab.sim.rhd import SimRHD
from handlab.train.experiment import ExperimentData, depends_on, ordered_batches
from handlab.train.files import read_losses, weights_fingerprint
from handlab.train.loop import fit

SMOKE = make_settings(
    AlignedSettings, "smoke", steps=4, batch_size=4, log_every=2, validate_every=2, checkpoint_every=2
)


def silent(*_):
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "24 frames to train on, 8 each for validation and test."
    folder, crops = tmp_path_factory.mktemp("prepared"), CropSettings(size=32, context=1.25, crop="mask")
    for split, count in (("training", 32), ("evaluation", 8)):
        prepare(SimRHD(split, count), folder / split, crops, workers=1, show_progress=False)
    return ExperimentData(str(folder / "training"), str(folder / "evaluation"), 8)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(strategy="S5"),
        dict(labelled_share=0.0),
        dict(labelled_share=1.5),
        dict(matched_points=65),
        dict(points=60),
        dict(map_size=20),
        dict(crop_by="eye"),
        dict(pose_norm="max"),
        dict(batch_size=0),
        dict(width=-1.0),
        dict(beta_first=0.0),
        dict(strategy="S3", correspondence=False),
    ],
)
def test_settings_that_cannot_be(wrong):
    name = next(iter(wrong))
    with pytest.raises(
        HandlabError,
        match="strategy"
        if wrong.get("strategy") == "S5"
        else list(wrong)[-1]
        if name == "strategy"
        else name,
    ):
        check_aligned(replace(SMOKE, **wrong))


def test_full_is_the_paper():
    full = check_aligned(make_settings(AlignedSettings, "full"))
    assert (
        part_of(NetworkSettings, full) == NetworkSettings()
        and part_of(LossSettings, full) == LossSettings()
        and part_of(Augment, full) == Augment.paper2()
    )
    loop = train_settings(full)
    assert (
        loop.learning_rate,
        loop.batch_size,
        loop.schedule,
        full.beta_first,
        full.beta_last,
        full.crop,
        full.crop_by,
    ) == (1e-4, 32, "step", 1e-5, 1e-3, 256, "mask")
    assert full.steps == pytest.approx(50 * full.train_frames / full.batch_size, rel=0.01)


def test_every_setting_reaches_its_part():
    for cls in (NetworkSettings, LossSettings, Augment):
        assert set(cls.__dataclass_fields__) <= set(AlignedSettings.__dataclass_fields__)


def test_viewpoint_brings_the_crops_centre_to_the_axis(data):
    for batch in (
        Batches(data.train, 16, augment=Augment.paper2()).at(0),
        Batches(data.train, 16, augment=None).at(0),
    ):
        turn = viewpoint(batch.K, 32)
        ray = torch.linalg.solve(batch.K, torch.tensor([15.5, 15.5, 1.0]).expand(16, 3))
        turned = rotate(ray[:, None], turn)[:, 0]
        assert turned[:, :2].abs().max() < 1e-4 and (turned[:, 2] > 0).all()
        torch.testing.assert_close(turn @ turn.mT, torch.eye(3).expand(16, 3, 3), atol=1e-5, rtol=0)
    assert torch.equal(viewpoint(batch.K, 32, False)[0], torch.eye(3))


def test_all_modalities_show_the_same_hand(data):
    "Pose, cloud, heat maps and image of an augmented batch agree once the viewpoint is undone."
    batch = Batches(data.train, 8, augment=Augment.paper2(), cloud_points=64).at(0)
    views = modality_tensors(batch, "PCH", SMOKE)
    turn = viewpoint(batch.K, 32)

    def in_camera(points):
        return points @ turn * batch.scale[:, None, None] + batch.root[:, None]

    torch.testing.assert_close(project(in_camera(views["P"]), batch.K), batch.uv, atol=0.05, rtol=0)
    pixels = project(in_camera(views["C"]), batch.K).round().long()
    inside = ((pixels >= 0) & (pixels < 32)).all(2)
    on_hand = torch.stack(
        [batch.mask[i, 0, uv[:, 1].clamp(0, 31), uv[:, 0].clamp(0, 31)] for i, uv in enumerate(pixels)]
    )
    assert inside.float().mean() > 0.95 and on_hand[inside].mean() > 0.95
    cells = views["H"].flatten(2).argmax(2)
    found = torch.stack([cells % 16, cells // 16], 2) * 2 + 0.5
    seen = ((batch.uv > 0) & (batch.uv < 31)).all(2)
    assert (found - batch.uv)[seen].abs().max() <= 1.01  # half a cell


def test_a_step_is_a_function_of_its_number(data):
    first, second = ViewsAt(SMOKE, data.train), ViewsAt(SMOKE, data.train)
    second(7)
    for step in (0, 5):
        one, two = first(step), second(step)
        assert all(torch.equal(one.tensors[letter], two.tensors[letter]) for letter in "RCHP")
        assert (
            torch.equal(one.noise, two.noise) and torch.equal(one.chosen, two.chosen) and one.beta == two.beta
        )
    assert not torch.equal(first(0).noise, first(1).noise) and not torch.equal(
        first(0).noise, ViewsAt(replace(SMOKE, seed=1), data.train)(0).noise
    )
    assert first(0).beta == pytest.approx(1e-5) and first(3).beta == pytest.approx(1e-3)


def test_three_times_the_batch_is_three_times_the_frames_and_nothing_else(data):
    "The control of S4's three posteriors: S1's own network and loss, more frames a step."
    one, three = replace(SMOKE, strategy="S1"), replace(SMOKE, strategy="S1", batch_factor=3)
    few, many = ViewsAt(one, data.train)(1), ViewsAt(three, data.train)(1)
    assert (len(few), len(many)) == (4, 12) and few.beta == many.beta
    assert {name: view.shape[1:] for name, view in few.tensors.items()} == {
        name: view.shape[1:] for name, view in many.tensors.items()
    }
    assert weights_fingerprint(make_network(one)) == weights_fingerprint(make_network(three))
    assert AlignedLoss(one).settings == AlignedLoss(three).settings
    assert run_name(three) == "train_aligned-S1-batch3-sim-rhd-seed0"
    with pytest.raises(HandlabError, match="AlignedSettings.batch_factor: a batch of 84 frames"):
        check_aligned(replace(SMOKE, batch_factor=21))


def test_weak_supervision_takes_the_first_frames(data):
    views_at = ViewsAt(replace(SMOKE, labelled_share=0.25), data.train)
    assert [len(batches.prepared) for batches in views_at.batches] == [6, 18]
    assert list(views_at.batches[0].prepared.name) == list(data.train.name[:6])
    assert views_at(0).labelled.tolist() == [True] * 4 + [False] * 4 and len(views_at(0)) == 8
    alone = ViewsAt(replace(SMOKE, labelled_share=0.25, use_unlabelled=False), data.train)
    assert len(alone.batches) == 1 and alone(0).labelled is None and len(alone(0)) == 4
    with pytest.raises(HandlabError, match="labelled_share"):
        ViewsAt(replace(SMOKE, labelled_share=0.05), data.train)


def test_without_correspondence_no_frame_is_seen_twice(data):
    views_at, seen = ViewsAt(replace(SMOKE, correspondence=False), data.train), {0: set(), 1: set()}
    for step in range(12):
        for index, sensor in zip(views_at.batches[0].at(step).index.tolist(), views_at(step).sensor.tolist()):
            seen[sensor].add(index)
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == 24 and len(seen[0]) == len(seen[1]) == 12


@pytest.mark.parametrize(
    "changes",
    [
        dict(strategy="S1"),
        dict(strategy="R2HP"),
        dict(strategy="S3"),
        dict(strategy="RD2DHP"),
        dict(strategy="alternating"),
        dict(labelled_share=0.5),
        dict(correspondence=False),
        dict(viewpoint_correction=False),
        dict(matched_points=0, precision="fp32"),
    ],
)
def test_every_regime_trains(data, tmp_path, changes):
    settings = replace(SMOKE, **changes)
    assert train_strategy(settings, data, tmp_path, report=silent)["steps"] == 4
    table = read_losses(tmp_path / "losses.csv")
    assert (
        np.isfinite(table["loss"]).all()
        and np.isfinite(read_losses(tmp_path / "losses.csv", "validation")["epe"]).all()
    )
    predicted = predict(trained_network(settings, tmp_path), data.test, settings)
    assert predicted.shape == (8, 21, 3) and np.isfinite(predicted).all()


def test_interrupted_and_resumed_ends_with_the_same_weights(data, tmp_path):
    whole = train_strategy(SMOKE, data, tmp_path / "whole", report=silent)

    class Stopped(Exception):
        pass

    views_at = ViewsAt(SMOKE, data.train)

    def broken_off(step):
        if step == 3:
            raise Stopped
        return views_at(step)

    with pytest.raises(Stopped):
        fit(
            make_network(SMOKE),
            AlignedLoss(SMOKE),
            broken_off,
            train_settings(SMOKE),
            tmp_path / "stopped",
            validate=Validation(SMOKE, data.validation),
            about=depends_on(SMOKE, data, experiment="aligned"),
            report=silent,
        )
    assert not (tmp_path / "stopped" / "finished.json").exists()
    assert train_strategy(SMOKE, data, tmp_path / "stopped", report=silent)["weights"] == whole["weights"]


def test_a_folder_serves_only_its_settings(data, tmp_path):
    train_strategy(SMOKE, data, tmp_path, report=silent)
    with pytest.raises(HandlabError, match="heat_weight"):
        train_strategy(replace(SMOKE, heat_weight=0.02), data, tmp_path, report=silent)


def test_training_lowers_the_loss(data):
    settings = replace(SMOKE, rotation=0.0, shift=0.0, scale_high=1.0, hue=0.0, start_spread=0.1)
    network, loss, views = make_network(settings), AlignedLoss(settings), ViewsAt(settings, data.train)(0)
    optimiser, values = torch.optim.Adam(network.parameters(), 3e-3), []
    for _ in range(30):
        optimiser.zero_grad()
        losses = loss(network, views)
        losses["loss"].backward()
        optimiser.step()
        values.append({name: value.item() for name, value in losses.items()})
    for name in ("pose", "pose_C", "pose_joint", "chamfer", "emd", "heat"):
        assert values[-1][name] < 0.95 * values[0][name], name


class Oracle(torch.nn.Module):
    "Decodes the true poses in the order in which they are asked for."

    def __init__(self, poses):
        super().__init__()
        self.poses, self.decoders = list(poses), {"P": lambda code: code}

    def encode(self, view, letter):
        return torch.stack([self.poses.pop(0) for _ in view])


@pytest.mark.parametrize("correct", [True, False])
def test_predictions_come_back_in_millimetres_of_the_camera(data, correct):
    settings = replace(SMOKE, viewpoint_correction=correct)
    truth = torch.cat(
        [modality_tensors(batch, "P", settings)["P"] for batch in ordered_batches(data.test, 3, "cpu", ())]
    )
    np.testing.assert_allclose(
        predict(Oracle(truth), data.test, settings, batch_size=5), np.asarray(data.test.joints), atol=0.01
    )
    other = predict(Oracle(truth), data.test, replace(settings, viewpoint_correction=not correct))
    assert np.abs(other - np.asarray(data.test.joints)).max() > 1


def test_validation_is_the_error_of_predictions(data):
    network = make_network(SMOKE).eval()
    with torch.no_grad():
        validation = Validation(SMOKE, data.test)(network)
    errors = np.linalg.norm(predict(network, data.test, SMOKE) - np.asarray(data.test.joints), axis=-1).mean()
    assert validation["epe"] == pytest.approx(errors, rel=1e-4)


def test_the_mean_pose_is_no_better_than_the_truth(data):
    predicted = predict_mean(SMOKE, data)
    assert predicted.shape == (8, 21, 3)
    np.testing.assert_allclose(
        predicted[:, 9], np.asarray(data.test.joints)[:, 9], atol=0.01
    )  # the root is given


def test_reconstruct(data):
    true, decoded, codes = reconstruct(make_network(SMOKE), data.test.subset([0, 3]), SMOKE)
    assert codes.shape == (2, 16) and {letter: values.shape for letter, values in decoded.items()} == {
        letter: true[letter].shape for letter in "CHP"
    }


def test_equal_time():
    assert equal_time_steps(SMOKE, {"S1": 10.0, "S4": 25.0, "S9": 50.0}) == {"S1": 10, "S4": 4, "S9": 2}


def test_run_folder(data, tmp_path):
    (job,) = strategy_jobs(SMOKE, data, tmp_path, {"S4, seed 1": dict(seed=1)})
    settings, folder = job.arguments["settings"], Path(job.arguments["folder"])
    job.function(**job.arguments, report=silent)
    network = trained_network(settings, folder)
    assert weights_fingerprint(network) == read_json(folder / "finished.json")["weights"]
    predicted = predict(network, data.test, settings)
    metrics = write_run(folder, settings, data, {"RGB": predicted}, {"RGB": {"epe_mean": 1.0}}, note="kept")
    assert (
        metrics["settings"]["seed"] == 1
        and metrics["source"] == "sim-rhd"
        and metrics["note"] == "kept"
        and metrics["recipe"] == "RC2CHP:product"
    )
    with np.load(folder / "predictions.npz") as arrays:
        np.testing.assert_array_equal(arrays["RGB"], predicted)
