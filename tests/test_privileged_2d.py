"Paper 1 in 2D: maps and pixels against other libraries; what is given, frozen, equal, refused, written."

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from small_runs import drawn_data, stop_at_step

from handlab.core import HandlabError, read_json
from handlab.hand.metrics import measures_2d, thresholds_2d
from handlab.privileged import experiment
from handlab.privileged.experiment import carries_mask, training_batches
from handlab.privileged.experiment_2d import (
    MASKS,
    STAGES_2D,
    MapLoss,
    Pi2dSettings,
    ValidationMaps,
    check_pi_2d,
    evaluate_2d,
    make_machine,
    mean_position,
    place_position,
    predict_2d,
    predict_all_2d,
    start_machine,
    start_sizes_2d,
    train_stage_2d,
    train_stages_2d,
    trained_machine,
    write_run_2d,
)
from handlab.privileged.pose_machine import PoseMachine, loss_maps, maps_to_uv, target_maps
from handlab.settings import make_settings
from handlab.train.files import read_losses, weights_fingerprint

SMOKE = make_settings(Pi2dSettings, "smoke", train_frames=24, validation_frames=8, test_frames=10)
SECOND = [stage for stage, kind in STAGES_2D.items() if kind.second]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return drawn_data(tmp_path_factory.mktemp("drawn"), SMOKE)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    "A run with both stages done."
    folder = tmp_path_factory.mktemp("run")
    for second in (False, True):
        train_stages_2d(second, SMOKE, data, folder, show=False)
    return folder


# ---------------------------------------------------------------- the pose machine
@pytest.mark.parametrize("crop, poolings, stages", [(64, 3, 3), (64, 2, 2), (32, 1, 1)])
def test_sizes(crop, poolings, stages):
    maps, features = PoseMachine(1, crop, 0.1, poolings, stages)(torch.zeros(2, 1, crop, crop))
    side = crop // 2**poolings
    assert maps.shape == (stages, 2, 21, side, side) and features.shape == (2, 13, side, side)


def test_each_stage_looks_at_the_maps_before_and_at_the_features():
    network = PoseMachine(3, 32, 0.1, 2, 3).eval()
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    maps, features = network(image)
    assert torch.allclose(network.stages[2](torch.cat([maps[1], features], 1)), maps[2], atol=1e-5)
    assert torch.allclose(network.stages[0](features), maps[0], atol=1e-5)
    maps[2].sum().backward()
    assert (
        network.stages[0][-1].weight.grad.abs().sum() > 0
    )  # the last stage's error reaches the first one's maps
    assert maps.detach().abs().mean() < 0.4  # it starts with nearly empty maps


def test_seed_and_input_decide_the_weights():
    first, same, other, depth = (
        PoseMachine(3, 32, 0.1, seed=1),
        PoseMachine(3, 32, 0.1, seed=1),
        PoseMachine(3, 32, 0.1, seed=2),
        PoseMachine(1, 32, 0.1, seed=1),
    )
    assert weights_fingerprint(first) == weights_fingerprint(same) != weights_fingerprint(other)
    assert not torch.equal(first.stages[0][0][0].weight, depth.stages[0][0][0].weight)


def test_target_is_the_published_gaussian():
    uv = torch.tensor([[[100.0, 80.0]] * 21])
    maps, counted = target_maps(uv, torch.ones(1, 21, dtype=torch.bool), 32, 256)
    for row, column in ((9, 12), (10, 12), (3, 20)):
        u, v = 8 * column + 3.5, 8 * row + 3.5  # the cell's centre in px
        assert maps[0, 5, row, column].item() == pytest.approx(
            np.exp(-((u - 100) ** 2 + (v - 80) ** 2) / 25**2), rel=1e-4
        )
    assert counted.all()


def test_hidden_and_cut_joints_are_not_learnt():
    uv, visible = torch.full((1, 21, 2), 16.0), torch.ones(1, 21, dtype=torch.bool)
    uv[0, 3], uv[0, 5], visible[0, 7] = -9, float("nan"), False
    maps = torch.ones(2, 1, 21, 8, 8, requires_grad=True)
    loss_maps(maps, *target_maps(uv, visible, 8, 32)).backward()
    touched = maps.grad.abs().sum((0, 1, 3, 4)) > 0
    assert [joint for joint in range(21) if not touched[joint]] == [3, 5, 7]
    maps.grad = None
    loss_maps(maps, *target_maps(uv, visible, 8, 32, "empty")).backward()
    assert (maps.grad.abs().sum((0, 1, 3, 4)) > 0).all()


@pytest.mark.parametrize(
    "kind, interpolation", [("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC)]
)
def test_pixels_as_opencv_finds_them(kind, interpolation):
    maps = torch.rand(2, 21, 16, 16, generator=torch.Generator().manual_seed(3))
    found = maps_to_uv(maps, 64, upsampling=kind).numpy()
    for image in range(2):
        for joint in range(21):
            large = cv2.resize(maps[image, joint].numpy(), (64, 64), interpolation=interpolation)
            v, u = np.unravel_index(large.argmax(), large.shape)
            u_found, v_found = np.rint(found[image, joint]).astype(int)
            assert large[v_found, u_found] >= large[v, u] - 1e-4  # the same place, or one as high
    assert np.array_equal(
        maps_to_uv(maps, 64, 128).numpy() % 0.5, np.full((2, 21, 2), 0.25)
    )  # centres of half pixels


# ---------------------------------------------------------------- settings
@pytest.mark.parametrize(
    "change, words",
    [
        ({"dataset": "freihand"}, "Pi2dSettings.dataset"),
        ({"map_reduction": "max"}, "Pi2dSettings.map_reduction"),
        ({"crop": 66}, "crop: 66 cannot be halved"),
        ({"stages": 0}, "stages: 0"),
        ({"poolings": 4}, "poolings: 4"),
        ({"train_frames": 0}, "Pi2dSettings.train_frames"),
        ({"batch_size": 4000}, "Pi2dSettings.batch_size"),
        ({"hidden": "no"}, "Pi2dSettings.hidden"),
        ({"upsampling": "nearest"}, "Pi2dSettings.upsampling"),
        ({"mask_weight": -1.0}, "Pi2dSettings.mask_weight"),
    ],
)
def test_bad_value_is_named(change, words):
    with pytest.raises(HandlabError, match=words):
        check_pi_2d(replace(make_settings(Pi2dSettings, "quick"), **change))


def test_full_is_the_papers_network():
    full = make_settings(Pi2dSettings, "full")
    assert (full.crop, full.width, full.poolings, full.stages, full.lambda_c) == (256, 1.0, 3, 3, 100.0)
    assert full.train_frames + full.validation_frames == 41258 and full.test_frames == 2728


def test_shares_of_the_table():
    assert {stage: kind.mask_share for stage, kind in STAGES_2D.items() if kind.mask_share} == {
        "mask_0.2": 0.2,
        "mask_0.8": 0.8,
        "mask_1": 1.0,
    }
    assert set(STAGES_2D) == {"rgb", "depth", "rgb_pi", *MASKS, "rgb_steps"}


# ---------------------------------------------------------------- what each training is told
def test_terms_of_each_stage(data):
    network, depth_net = make_machine(SMOKE, "rgb"), make_machine(SMOKE, "depth")
    told = {
        stage: set(
            MapLoss(SMOKE, stage, depth_net if STAGES_2D[stage].privileged else None).terms(
                network, training_batches(SMOKE, data, stage, "cpu")(0)
            )
        )
        for stage in STAGES_2D
        if stage != "depth"
    }
    assert told == {
        "rgb": {"pose"},
        "rgb_steps": {"pose"},
        "rgb_pi": {"pose", "intermediate"},
        **{stage: {"pose", "mask"} for stage in MASKS},
    }


def test_mask_loss_by_hand(data):
    "Activations squared, times the squared share of each cell off the hand, over the images that carry it."
    batch, network = training_batches(SMOKE, data, "mask_0.8", "cpu")(0), make_machine(SMOKE, "rgb").eval()
    features = network(batch.image)[1].detach().numpy()
    side = features.shape[-1]
    off = 1 - batch.mask.numpy()[:, 0].reshape(len(features), side, 4, side, 4).mean((2, 4))
    each = (features**2 * off[:, None] ** 2).sum((1, 2, 3))
    carries = np.array([(int(index) * 2654435761 % 2**32) < 0.8 * 2**32 for index in batch.index])
    assert MapLoss(SMOKE, "mask_0.8")(network, batch)["mask"].item() == pytest.approx(
        (each * carries).mean(), rel=1e-3
    )
    assert MapLoss(SMOKE, "mask_1")(network, batch)["mask"].item() == pytest.approx(each.mean(), rel=1e-3)


def test_small_share_is_within_the_large_one(data):
    carried = {stage: carries_mask(torch.arange(20000), MapLoss(SMOKE, stage).carrying) for stage in MASKS}
    assert (carried["mask_0.2"] <= carried["mask_0.8"]).all() and carried["mask_1"].all()
    assert [carried[stage].float().mean().item() for stage in ("mask_0.2", "mask_0.8")] == pytest.approx(
        [0.2, 0.8], abs=0.01
    )


def test_no_gradient_reaches_the_depth_net(data):
    network, depth_net = make_machine(SMOKE, "rgb"), make_machine(SMOKE, "depth")
    loss = MapLoss(SMOKE, "rgb_pi", depth_net)
    loss(network, training_batches(SMOKE, data, "rgb_pi", "cpu")(0))["loss"].backward()
    assert all(parameter.grad is None for parameter in depth_net.parameters()) and not depth_net.training
    assert all(parameter.grad is not None for parameter in network.parameters())


# ---------------------------------------------------------------- stages
def test_stage_two_starts_from_the_baseline_and_leaves_it(data, finished):
    baseline = weights_fingerprint(trained_machine(SMOKE, "rgb", finished))
    assert all(weights_fingerprint(start_machine(SMOKE, stage, finished)) == baseline for stage in SECOND)
    ends = {stage: read_json(finished / stage / "finished.json") for stage in STAGES_2D}
    assert len({end["weights"] for end in ends.values()}) == 7 and ends["rgb"]["weights"] == baseline
    assert {ends[stage]["steps"] for stage in SECOND} == {SMOKE.steps_second} and ends["rgb"][
        "steps"
    ] == ends["depth"]["steps"] == SMOKE.steps_first


def test_same_batches_in_stage_two(data):
    first, *rest = (training_batches(SMOKE, data, stage, "cpu")(5) for stage in SECOND)
    assert all(torch.equal(first.image, batch.image) and torch.equal(first.uv, batch.uv) for batch in rest)


def test_second_call_loads(data, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    for second in (False, True):
        train_stages_2d(second, SMOKE, data, finished, show=False)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")} == before


def test_other_settings_are_refused_where_they_matter(data, finished):
    with pytest.raises(HandlabError, match="mask_weight = 1.0, now it is 2.0"):
        train_stage_2d("mask_1", replace(SMOKE, mask_weight=2.0), data, finished)
    train_stage_2d("rgb", replace(SMOKE, mask_weight=2.0), data, finished)  # stage 1 knows of no mask
    with pytest.raises(HandlabError, match="hidden"):
        train_stage_2d("rgb", replace(SMOKE, hidden="empty"), data, finished)


def test_stage_two_without_stage_one_says_so(data, tmp_path):
    with pytest.raises(HandlabError, match="run the training that writes it"):
        train_stage_2d("mask_0.2", SMOKE, data, tmp_path)


def test_stopped_stage_goes_on_the_same(data, finished, tmp_path, monkeypatch):
    for stage in ("depth", "rgb"):
        shutil.copytree(finished / stage, tmp_path / stage)

    def train():
        train_stage_2d("mask_0.2", SMOKE, data, tmp_path, report=lambda *state: None)

    stop_at_step(monkeypatch, experiment, train)
    train()
    for name in ("model.safetensors", "losses.csv"):
        assert (tmp_path / "mask_0.2" / name).read_bytes() == (finished / "mask_0.2" / name).read_bytes()


def test_the_machine_learns(data, tmp_path):
    "Drawn hands are one rigid hand: it must be found far better than by the mean training position."
    settings = replace(SMOKE, width=0.125, steps_first=120, rate_first=3e-3, log_every=40, validate_every=0)
    train_stage_2d("depth", settings, data, tmp_path, report=lambda *state: None)
    found, blind = (
        predict_2d(trained_machine(settings, "depth", tmp_path), data.train, settings, "depth"),
        place_position(mean_position(data), data.train),
    )
    true, seen = np.asarray(data.train.uv), np.asarray(data.train.visible)
    errors = [np.linalg.norm(guess - true, axis=-1)[seen].mean() for guess in (found, blind)]
    assert errors[0] < 0.6 * errors[1]


# ---------------------------------------------------------------- prediction and scores
def test_predictions_are_pixels_of_the_folded_original_image(data):
    "Whatever is answered in the crop is where `box` says; the mean position by hand."

    class Corner(torch.nn.Module):
        def forward(self, image):
            maps = torch.zeros(1, len(image), 21, 8, 8)
            maps[..., 2, 5] = 1
            return maps, image

    found, box = predict_2d(Corner(), data.test, SMOKE, batch_size=3), np.asarray(data.test.box, float)
    cell = np.array([5.5, 2.5]) / 8  # of the crop's edge
    np.testing.assert_allclose(
        found,
        (box[:, None, :2] + (cell - 0.5) * box[:, None, 2:]) * np.ones((1, 21, 1)),
        atol=0.51 * box[:, 2].max() / 32,
    )
    assert np.asarray(
        data.test.mirrored
    ).any()  # left hands are among them: uv and box are both of the mirrored image
    scale = 32 / np.asarray(data.train.box, float)[:, None, 2:]
    crop = (np.asarray(data.train.uv, float) - np.asarray(data.train.box, float)[:, None, :2]) * scale + 15.5
    np.testing.assert_allclose(mean_position(data), crop.mean(0), atol=1e-3)


def test_validation_error_is_that_of_the_predictions(data, finished):
    network = trained_machine(SMOKE, "rgb", finished)
    with torch.no_grad():
        shown = ValidationMaps(replace(SMOKE, batch_size=8), data.validation, "rgb")(network)
    errors = np.linalg.norm(predict_2d(network, data.validation, SMOKE) - data.validation.uv, axis=-1)
    assert shown["epe"] == pytest.approx(errors[np.asarray(data.validation.visible)].mean(), rel=1e-3)


def test_scores_count_visible_joints_only(data):
    "As hand3d's EvalUtil: errors gathered joint by joint, hidden ones left out."
    true, seen = np.asarray(data.test.uv, float), np.random.default_rng(0).random((10, 21)) < 0.6
    guess = true + np.random.default_rng(1).normal(0, 6, true.shape)
    guess[~seen] += 1000
    scores, errors = measures_2d(guess, true, seen), np.linalg.norm(guess - true, axis=-1)
    each = [errors[seen[:, joint], joint] for joint in range(21)]
    assert scores["zb"]["epe_mean"] == pytest.approx(np.mean([joint.mean() for joint in each])) and scores[
        "zb"
    ]["epe_median"] == pytest.approx(np.mean([np.median(joint) for joint in each]))
    curve = [np.mean([(joint <= threshold).mean() for joint in each]) for threshold in np.linspace(0, 30, 20)]
    np.testing.assert_allclose(scores["zb"]["pck"], curve)
    assert scores["zb"]["auc"] == pytest.approx(np.trapezoid(curve, np.linspace(0, 30, 20)) / 30)
    assert scores["pooled"]["epe_mean"] == pytest.approx(errors[seen].mean()) == scores["mmpose"]["epe_mean"]


def test_sizes_of_the_terms(data, finished):
    sizes = start_sizes_2d(SMOKE, data, finished)
    assert set(sizes) == {"pose", "intermediate", "mask"} and all(
        value > 0 for term in sizes.values() for value in term.values()
    )
    assert start_sizes_2d(replace(SMOKE, mask_weight=3.0), data, finished)["mask"][
        "gradient"
    ] == pytest.approx(3 * sizes["mask"]["gradient"], rel=1e-3)


def test_run_folder(data, finished):
    predictions = predict_all_2d(SMOKE, data, finished)
    values = evaluate_2d(data.test, predictions)
    write_run_2d(
        finished,
        SMOKE,
        data,
        predictions,
        values,
        {"data": 1.5},
        {"other": (data.test, {"rgb": predictions["rgb"]})},
        note="x",
    )
    metrics, saved = (
        json.loads((finished / "metrics.json").read_text()),
        np.load(finished / "predictions.npz"),
    )
    assert {
        "commit",
        "versions",
        "hardware",
        "data",
        "stages",
        "source",
        "seconds",
        "labels",
        "thresholds",
        "settings",
    } <= set(metrics) and metrics["note"] == "x"
    assert set(metrics["values"]) == {*STAGES_2D, "mean_pose"} == set(metrics["labels"]) and len(
        metrics["thresholds"]
    ) == len(thresholds_2d())
    assert set(saved.files) == {"true", "visible", "name", *STAGES_2D, "mean_pose"} and saved[
        "rgb"
    ].shape == saved["true"].shape == (10, 21, 2)
    for name in metrics["values"]:
        errors = np.linalg.norm(saved[name] - saved["true"], axis=-1)[saved["visible"]]
        assert metrics["values"][name]["pooled"]["epe_mean"] == pytest.approx(errors.mean(), rel=1e-4)
        assert set(metrics["values"][name]) == {"zb", "mmpose", "pooled"} and set(
            metrics["values"][name]["zb"]
        ) == {"epe_mean", "epe_median", "auc", "pck"}
    assert metrics["other"]["other"]["rgb"]["zb"]["epe_mean"] == values["rgb"]["zb"]["epe_mean"]
    np.testing.assert_array_equal(np.load(finished / "predictions-other.npz")["rgb"], predictions["rgb"])
    assert read_losses(finished / "mask_1" / "losses.csv", "validation")["mask"].shape == (3,)
