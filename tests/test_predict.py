"""Predictions on pictures of one's own: places, sides, files as people have them, the command line."""

import csv
import json
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace

import cv2
import matplotlib.pyplot as plt
import numpy as np
import papermill_calls
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

import handlab
from handlab.aligned.encoders import ResNet18
from handlab.aligned.experiment import AlignedSettings
from handlab.aligned.explorer import practice_run
from handlab.core import HandlabError, project_root
from handlab.data.prepare import CropSettings, crop_sample
from handlab.hand.camera import crop_intrinsics, project
from handlab.hand.skeleton import example_hand, normalise
from handlab.hand.solid import hand_vertices
from handlab.predict import command
from handlab.predict.calibrate import calibrate
from handlab.predict.command import (
    COLUMNS,
    ask,
    fig_answers,
    files_named,
    frame_count,
    frames_of,
    main,
    parser,
    questions,
    read_image,
    short_names,
)
from handlab.predict.command import run as run_command
from handlab.predict.detect import Detected, HandDetector, Palm, decode_palms, hand_square
from handlab.predict.networks import FOLDERS, HandNetwork, available, find_network, load, read_calibration
from handlab.predict.picture import (
    Question,
    assumed_camera,
    borders,
    crop_box,
    edges_of_mask,
    place_root,
    predict,
    seen_crop,
)
from handlab.privileged.networks import BaseCNN
from handlab.settings import make_settings
from handlab.sim.rhd import SimRHD
from handlab.train.layers import fold_batch_norms


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks") / "S1"
    practice_run(make_settings(AlignedSettings, "smoke", strategy="S1"), folder)
    return folder


@pytest.fixture(scope="module")
def network(run):
    return load(str(run))


@pytest.fixture(scope="module")
def sample():
    return SimRHD("evaluation", 1)[0]


def question(sample, **changes):
    return Question(
        sample.image, edges_of_mask(sample.mask), side=sample.side, K=sample.K, name="x.png", **changes
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(6, 40), st.floats(-0.4, 0.4), st.floats(-0.4, 0.4))
def test_the_root_is_found_from_the_borders_and_from_joints(seed, far, x, y):
    K, pose = assumed_camera((480, 640)), normalise(example_hand())[0]
    pose = pose @ Rotation.random(random_state=seed).as_matrix().T
    root = np.array([x * far, y * far, far])
    found = place_root(pose, K, borders(project(hand_vertices(pose) + root, K)))
    np.testing.assert_allclose(found, root, atol=0.02 * far)
    found = place_root(pose, K, uv=project(pose + root, K))
    np.testing.assert_allclose(found, root, atol=1e-3 * far)


@pytest.mark.parametrize("make", [lambda: ResNet18(0.25), lambda: BaseCNN(3, 64, 0.25)])
def test_folded_batch_norms_change_nothing_but_rounding(make):
    network = make()
    for norm in (part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d)):
        norm.weight.data.uniform_(0.5, 2), norm.bias.data.normal_()
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    network.eval()
    image = torch.rand(2, 3, 64, 64) - 0.5
    with torch.no_grad():
        before = network(image)
        folded = fold_batch_norms(network)
        after = folded(image)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in folded.modules())
    for one, other in zip(*(each if isinstance(each, tuple) else (each,) for each in (before, after))):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


def test_what_load_gives_predicts_what_was_trained(run, network):
    "Ready for use, a network's poses are those of its weights."
    plain, crops = (
        HandNetwork(find_network(str(run))).eval(),
        torch.rand(3, 3, network.size, network.size) - 0.5,
    )
    with torch.no_grad():
        assert torch.allclose(network(crops).pose, plain(crops).pose, atol=1e-5)


def test_a_left_hand_is_the_right_one_of_the_mirror_image(network, sample):
    asked = question(sample)
    width, (left, top, right, bottom) = sample.image.shape[1], asked.edges
    K = np.array(sample.K, float)
    K[0, 2] = width - 1 - K[0, 2]
    other = replace(
        asked,
        image=sample.image[:, ::-1].copy(),
        edges=(width - 1 - right, top, width - 1 - left, bottom),
        K=K,
        side={"left": "right", "right": "left"}[sample.side],
    )
    here, there = predict(network, asked), predict(network, other)
    np.testing.assert_allclose(here.pose * [-1, 1, 1], there.pose, atol=1e-5)
    np.testing.assert_allclose(here.uv[:, 0], width - 1 - there.uv[:, 0], atol=1e-2)


def official(network, sample):  # (21,3): the pose of a right hand from the crop that a training makes
    row = crop_sample(sample, CropSettings(network.size, 1.0, network.settings.crop_by))
    crop = torch.from_numpy(row["image"]).permute(2, 0, 1)[None].float().div(255).sub(0.5)
    with torch.no_grad():
        pose = network(
            crop, torch.tensor(crop_intrinsics(row["K"], row["box"], network.size))[None].float()
        ).pose
    return pose[0].numpy() * [-1 if row["mirrored"] else 1, 1, 1]


@pytest.fixture(scope="module")
def frames():
    samples = list(SimRHD("evaluation", 12))
    assert {each.side for each in samples} == {"left", "right"}
    return samples


def test_a_box_or_a_mask_gives_the_pose_of_the_official_crop(network, frames):
    assert network.settings.crop_by == "mask"
    for sample in frames:
        pose = predict(network, question(sample), samples=0).pose
        np.testing.assert_allclose(pose, official(network, sample), atol=1e-4)


def test_a_crop_around_the_middle_mcp_is_found_from_a_box_or_a_mask(frames):
    network = load("RGB PI Net")
    assert network.settings.crop_by == "zb" and network.finder.settings.crop_by == "mask"
    assert len(list(network.parameters())) == len(list(network.network.parameters()))
    errors = []
    for sample in frames:
        true, _, scale = normalise(sample.joints)
        poses = official(network, sample), predict(network, question(sample), samples=0).pose
        errors.append([np.linalg.norm(pose - true, axis=1).mean() * float(scale) for pose in poses])
        if sample.visible.all():
            known = replace(question(sample), edges=None, uv=sample.uv)
            np.testing.assert_allclose(predict(network, known, samples=0).pose, poses[0], atol=1e-3)
    by_crop, by_mask = np.mean(errors, 0)
    assert by_mask < by_crop + 8, errors  # mm; 17 by the network's own first look


def test_detected_joints_give_nearly_the_square_of_the_mask(network, frames):
    ratios = []
    for sample in frames:
        by_mask, by_joints = (
            crop_box(network, each)
            for each in (question(sample), replace(question(sample), edges=None, uv=sample.uv))
        )
        assert np.hypot(by_mask.u - by_joints.u, by_mask.v - by_joints.v) < 0.2 * by_mask.size
        ratios.append(by_joints.size / by_mask.size)
    assert 0.9 < np.median(ratios) < 1.1


@pytest.mark.parametrize("name", ("S4", "RGB PI Net"))
def test_a_network_is_exported_with_the_same_poses(name):
    network, generator = load(name), torch.Generator().manual_seed(0)
    first, second = (
        torch.rand(2, 3, network.size, network.size, generator=generator) - 0.5 for _ in range(2)
    )
    K = torch.tensor([[200.0, 0, 40], [0, 200, 50], [0, 0, 1]]).repeat(2, 1, 1)
    exported = torch.export.export(network, (first, K)).module()
    torch.testing.assert_close(exported(second, K).pose, network(second, K).pose, atol=1e-5, rtol=0)


def test_an_answer_repeats_and_its_spread_is_that_of_samples(network, sample):
    first, second = (predict(network, question(sample)) for _ in range(2))
    np.testing.assert_array_equal(first.spread, second.spread)
    crop = network.crop(sample.image, first.box)
    posterior = network.network.encoders["R"](crop)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(4000, posterior.mean.shape[1], generator=generator)
    poses = network.network.decoders["P"](
        posterior.mean + noise * torch.exp(posterior.log_variance / 2)
    ).detach()
    expected = poses.var(0, unbiased=False).sum(-1).sqrt().numpy()
    np.testing.assert_allclose(first.spread, expected, rtol=0.35)


def test_a_calibration_is_of_its_weights_and_scales_the_spread(run, sample, tmp_path):
    folder = tmp_path / "S1"
    shutil.copytree(run, folder)
    network = load(str(folder))
    assert network.calibration == {} and predict(network, question(sample)).expected is None
    found = calibrate(network, 4)
    network = load(str(folder))
    assert network.calibration == found and found["frames"] == 4 and found["error_mm"] > 0
    answer = predict(network, question(sample))
    np.testing.assert_allclose(answer.expected, found["factor"] * answer.spread, rtol=1e-5)
    assert predict(network, question(sample), samples=0).expected is None
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes() + b" ")
    assert read_calibration(network.found) == {}


def test_a_name_stands_for_the_papers_own_network():
    strategies = [each.name for each in available(FOLDERS[:1])]
    assert strategies.count("S4") > 1  # so one of them is a variant
    assert find_network("S4", FOLDERS[:1]).folder.name == "train_aligned-S4-sim-rhd-seed0"


@pytest.mark.parametrize("name", ("S4", "RGB PI Net"))
def test_the_error_to_expect_is_as_large_as_the_error(name, frames):
    network, errors = load(name), []
    for sample in frames:
        answer = predict(network, question(sample))
        errors.append([np.linalg.norm(answer.pose - normalise(sample.joints)[0], axis=1), answer.expected])
    errors = np.delete(np.array(errors), 9, axis=2)  # the root has none
    true, expected = np.sqrt((errors**2).mean((0, 2)))
    assert 0.6 < true / expected < 1.6  # validation frames chose the size, and these are test frames
    fixed = np.ptp(errors[:, 1], axis=0).max() < 1e-6
    assert fixed == (name == "RGB PI Net")  # it has no posterior


def test_the_picture_says_what_its_rings_are(network, sample):
    answer = predict(network, question(sample))
    for changes, words in (
        ({}, "far smaller than the error"),
        (dict(expected=40 * answer.spread), "error to expect on simulated hands"),
        (dict(spread=None), ""),
    ):
        figure = fig_answers([replace(answer, **changes)])
        label, rings = figure.axes[0].get_xlabel(), figure.axes[0].patches
        assert words in label and bool(label) == bool(words) and len(rings) == 6 * bool(words)
        plt.close(figure)


def test_what_a_detector_says_is_compared_and_its_doubts_are_shown(network, sample, monkeypatch, tmp_path):
    Image.fromarray(sample.image).save(tmp_path / "a.png")
    for certainty, side in ((0.7, None), (0.95, None), (0.7, "left")):
        hand = Detected(sample.uv + [3.0, 4.0], "right", 1.0, certainty)
        monkeypatch.setattr(command, "HandDetector", lambda: lambda image: [hand])
        words = [
            f"{tmp_path}/a.png",
            "--detect",
            "--out",
            f"{tmp_path}/out",
            *(["--side", side] if side else []),
        ]
        lines, figures = [], []
        [answer] = run_command(parser().parse_args(words), network, lines.append, figures.append)
        doubted = certainty == 0.7 and side is None
        assert any("right hand? (0.70)" in line for line in lines) == doubted
        assert figures[0].axes[1].get_title() == f"{side or 'right'} hand" + "?" * doubted
        apart = np.linalg.norm(np.array(answer["uv_px"]) - hand.uv, axis=1).mean()
        assert answer["px_from_detector"] == pytest.approx(apart)
        assert f"detector's joints: {apart:.0f} px" in figures[0].axes[0].get_xlabel()
        assert answer["side_certainty"] == (None if side else certainty)
        plt.close("all")


PARAMETERS = dict(images="", network="S4", detect=False, box="", mask="", side="", K="", scale=0.0, every=15)
PARAMETERS |= dict(out="runs/predict", device="auto")


@pytest.mark.parametrize(
    "wrong",
    (
        dict(side="up"),
        dict(box="1 2 3"),
        dict(box="9 9 5 5"),
        dict(box="1 2 3 4", mask="a.png"),
        dict(mask="none.png"),
        dict(K="600 600"),
        dict(K="0 0 1 1"),
        dict(K="a b c d"),
        dict(scale=float("inf")),
        dict(images="a.png"),
    ),
)
def test_wrong_parameters_are_errors_also_without_images(wrong):
    with pytest.raises(HandlabError):
        command.given_by(PARAMETERS | wrong)


def test_parameters_of_the_notebook_stand_for_a_command_line():
    assert command.given_by(PARAMETERS).detect  # nothing to look at, and nothing wrong
    given = command.given_by(PARAMETERS | dict(images="a b.png; c.png", box="-1 2 30 40.5", K="600 600 3 4"))
    assert given.images == ["a b.png", "c.png"] and given.box == [-1, 2, 30, 40.5] and not given.detect
    assert (
        given.K == [600, 600, 3, 4]
        and given.side is None
        and given.out == str(project_root() / "runs/predict")
    )


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    "The folder of three photographs of a left hand, which the npm package fingerpose carries."
    folder = tmp_path_factory.mktemp("fingerpose")
    call = ["npm", "pack", "fingerpose@0.1.0"]
    try:
        done = subprocess.run(call, cwd=folder, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"the photographs cannot be fetched: {error}")
    if done.returncode:
        pytest.skip("the photographs cannot be fetched: npm pack fails")
    with tarfile.open(folder / "fingerpose-0.1.0.tgz") as archive:
        for name in ("fullcurl.jpg", "halfcurl.jpg", "nocurl.jpg"):
            (folder / name).write_bytes(archive.extractfile(f"package/assets/{name}").read())
    return folder


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    "name, box",
    [
        ("fullcurl.jpg", (129, 257, 372, 555)),
        ("halfcurl.jpg", (144, 192, 391, 564)),
        ("nocurl.jpg", (158, 94, 398, 555)),
    ],
)
def test_photographs_give_hands_in_their_boxes(photographs, name, box):
    words = [str(photographs / name), "--box", *map(str, box), "--side", "left"]
    [answer] = ask(load("S4"), words)
    left, top, right, bottom = box
    assert (answer.uv > [left - 20, top - 20]).all() and (answer.uv < [right + 20, bottom + 20]).all()
    assert answer.pose[12, 1] < answer.pose[0, 1]  # upright: the wrist is below the middle finger's tip


def test_the_network_is_the_trained_one(network, run):
    assert handlab.load is load
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert find_network(str(run)).name == "S1" and network.source == "sim-rhd"


def test_what_cannot_be_answered_is_one_line(network, sample):
    for changes, line in (
        (dict(edges=None), "the place of the hand is not given"),
        (dict(edges=(10, 10, 12, 12)), "holds no hand"),
        (dict(edges=(5000, 10, 6000, 900)), "holds no hand"),
        (dict(side="both"), "the side is"),
        (dict(K=np.zeros((3, 3))), "give fx, fy"),
        (dict(image=sample.image.astype(float)), "of uint8"),
    ):
        with pytest.raises(HandlabError, match=line):
            predict(network, replace(question(sample), **changes))


def test_images_as_people_have_them(tmp_path, monkeypatch):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "b.JPG", exif=exif, quality=95)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"Mac OS X")
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no picture")
    assert [each.name for each in files_named([tmp_path])] == ["a.png", "b.JPG"]
    assert [each.name for each in files_named([f"{tmp_path}/*.png"])] == ["a.png"]
    upright = read_image(tmp_path / "b.JPG")
    assert upright.shape == (60, 40, 3) and upright[5, 35].min() > 200 and upright[5, 5].max() < 60
    assert read_image(tmp_path / "a.png").shape == (40, 60, 3)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow refuses twice as many by itself
        with pytest.raises(HandlabError, match="a.png: it has more than 1.* give a smaller copy"):
            read_image(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(HandlabError, match="cannot be read"):
        read_image(tmp_path / "cut.png")
    with pytest.raises(HandlabError, match="no such file"):
        files_named([tmp_path / "missing.png"])


def test_a_name_counts_from_here_or_from_the_projects_root(tmp_path, monkeypatch):
    for folder in ("project", "project/nbs"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("HANDLAB_ROOT", str(tmp_path / "project"))
    monkeypatch.chdir(tmp_path / "project/nbs")
    (tmp_path / "project/a.png").write_bytes(b"")
    for word in ("a.png", "*.png"):  # as a notebook names it, which runs in its own folder
        assert files_named([word]) == [tmp_path / "project/a.png"]
    (tmp_path / "project/nbs/a.png").write_bytes(b"")
    assert [each.absolute() for each in files_named(["a.png"])] == [tmp_path / "project/nbs/a.png"]
    with pytest.raises(HandlabError, match="b.png: there is no such file, here or in the project"):
        files_named(["b.png"])


def test_files_of_one_name_in_two_folders_stay_apart(tmp_path):
    for name in ("a/hand.png", "b/hand.png", "b/c/hand.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / name)
    files = files_named([tmp_path / "a", f"{tmp_path}/**/*.png", tmp_path / "a" / "hand.png"])
    assert short_names(files) == ["a/hand.png", "b/c/hand.png", "b/hand.png"]
    assert short_names(files_named([tmp_path / "a"])) == ["hand.png"]


def test_every_nth_frame_of_a_video(tmp_path):
    video = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(7):
        video.write(np.full((48, 64, 3), 30 * number, np.uint8))
    video.release()
    frames = list(frames_of(tmp_path / "v.avi", every=3))
    assert [name for name, _ in frames] == [f"v.avi frame {number}" for number in (0, 3, 6)]
    np.testing.assert_allclose([image.mean() for _, image in frames], [0, 90, 180], atol=5)
    assert [frame_count(tmp_path / "v.avi", every) for every in (1, 3, 7, 9)] == [7, 3, 1, 1]
    pictures = [Image.fromarray(np.full((48, 64), 60 * number, np.uint8)) for number in range(3)]
    pictures[0].save(tmp_path / "v.gif", save_all=True, append_images=pictures[1:])
    assert [round(image.mean() / 60) for _, image in frames_of(tmp_path / "v.gif")] == [0, 1, 2]
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(HandlabError, match="no frame"):
        list(frames_of(tmp_path / "bad.mp4"))


def test_the_command_writes_tables_and_pictures(run, sample, tmp_path, capsys):
    Image.fromarray(sample.image).save(tmp_path / "hand.png")
    Image.fromarray(sample.mask.astype(np.uint8)).save(tmp_path / "mask.png")
    (tmp_path / "broken.png").write_bytes(b"x")
    words = [f"{tmp_path}/hand.png", f"{tmp_path}/broken.png", "--mask", f"{tmp_path}/mask.png"]
    words += ["--network", str(run), "--scale", "40", "--side", sample.side, "--out", f"{tmp_path}/out"]
    main([*words, "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "broken.png" in printed and "1 hands in 2 files, 1 left out" in printed
    [answer] = json.loads((tmp_path / "out/predictions.json").read_text())
    joints = np.array(answer["joints_mm"])
    assert joints.shape == (21, 3) and answer["camera"]["assumed"] and answer["trained_on"] == "sim-rhd"
    relative = np.array(answer["pose_in_hand_scales"])
    np.testing.assert_allclose((joints - joints[9]), 40 * (relative - relative[9]), atol=1e-3)
    K = np.array(answer["camera"]["K"])
    np.testing.assert_allclose(project(joints, K), answer["uv_px"], atol=0.1)
    with open(tmp_path / "out/predictions.csv") as file:
        table = list(csv.reader(file))
    assert tuple(table[0]) == COLUMNS and len(table) == 22
    assert Image.open(tmp_path / "out/hand.png-hand.png").size[0] > 300


def test_what_is_asked_in_a_notebook_is_what_the_command_answers(network, sample, tmp_path):
    Image.fromarray(sample.image).save(tmp_path / "hand.png")
    box = [str(each) for each in edges_of_mask(sample.mask)]
    [answer] = ask(network, [f"{tmp_path}/hand.png", "--box", *box, "--side", sample.side])
    expected = predict(network, replace(question(sample), K=None))
    np.testing.assert_allclose(answer.pose, expected.pose, atol=1e-5)
    posterior = network.network.encoders["R"](seen_crop(network, answer))
    pose = network.network.decoders["P"](posterior.mean)
    relative = (pose - pose[:, 9:10])[0].detach().numpy() * [-1 if sample.side == "left" else 1, 1, 1]
    lengths = [np.linalg.norm(np.diff(each, axis=0), axis=1) for each in (relative, answer.pose)]
    np.testing.assert_allclose(*lengths, atol=1e-4)  # the same hand, turned to the camera
    with pytest.raises(HandlabError, match="no such file"):
        ask(network, [f"{tmp_path}/none.png", "--box", *box])


def test_command_line_errors_are_one_line(run, tmp_path):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    for words, line in (
        (["a.png"], "--box --mask --detect"),
        (
            [f"{tmp_path}/a.png", "--box", "0", "0", "30", "30", "--network", "S9"],
            "there are no weights of it",
        ),
        (
            [f"{tmp_path}/a.png", "--mask", f"{tmp_path}/a.png", "--network", str(run)],
            "no hand was predicted",
        ),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "handlab.predict", *words],
            capture_output=True,
            text=True,
            cwd=project_root(),
        )
        assert done.returncode == 2 and line in done.stderr and "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    help_text = subprocess.run(
        [sys.executable, "-m", "handlab.predict", "--help"],
        capture_output=True,
        text=True,
        cwd=project_root(),
    ).stdout
    assert all(option in help_text for option in ("--detect", "--scale", "--network", "--every"))
    assert parser().parse_args(["a.png", "--detect"]).detect


def test_a_mask_may_be_a_jpeg_and_may_not_hold_labels(sample, tmp_path):
    def edges(image, name="mask.png"):
        Image.fromarray(image).save(tmp_path / name)
        given = parser().parse_args(["a.png", "--mask", str(tmp_path / name)])
        return questions("a.png", sample.image, given)[0].edges

    expected = edges_of_mask(sample.mask)
    assert edges(sample.mask.astype(np.uint8)) == edges(sample.mask * np.uint8(255)) == expected
    np.testing.assert_allclose(edges(sample.mask * np.uint8(255), "mask.jpg"), expected, atol=2)
    labels = sample.mask.astype(np.uint8)  # 1: a person, then the parts of the hands, as in RHD
    labels[:2, :4] = np.arange(4)
    with pytest.raises(HandlabError, match="4 labels.*black but for the hand"):
        edges(labels)


def test_a_folder_that_cannot_be_written_is_said_before_any_image(run, sample, tmp_path):
    Image.fromarray(sample.image).save(tmp_path / "a.png")
    words = [f"{tmp_path}/a.png", "--box", "0", "0", "90", "90", "--out", f"{tmp_path}/a.png"]
    with pytest.raises(HandlabError, match="could not be written.*another folder"):
        run_command(parser().parse_args(words), report=pytest.fail)


def test_small_hands_are_shown_enlarged(network, sample):
    for size, whole in ((10, False), (200, True)):
        corner = np.array([30.0, 20.0])
        uv = np.concatenate([[corner, corner + size], np.tile(corner + size / 2, (19, 1))])
        figure = fig_answers([replace(predict(network, question(sample)), uv=uv)])
        limits = np.array([figure.axes[0].get_xlim(), figure.axes[0].get_ylim()[::-1]])
        height, width = sample.image.shape[:2]
        if whole:
            np.testing.assert_allclose(limits, [[-0.5, width - 0.5], [-0.5, height - 0.5]])
        else:
            np.testing.assert_allclose(limits, corner[:, None] + [-size - 0.5, 2 * size - 0.5])
        plt.close(figure)


def test_palms_are_decoded_without_overlaps():
    raw, scores = np.zeros((2016, 18)), np.full(2016, -100.0)
    raw[:, 2:4] = 60  # width and height
    scores[[0, 1, 2015]] = 3.0, 2.0, 1.0  # two proposals of the first cell, one of the last
    first, last = decode_palms(raw, scores, zoom=2.0)
    np.testing.assert_allclose(first.box, [8 - 60, 8 - 60, 120, 120])  # the cell's middle is at 4 px of 192
    np.testing.assert_allclose(last.box, [384 - 16 - 60, 384 - 16 - 60, 120, 120])
    assert first.score == pytest.approx(1 / (1 + np.exp(-3)))


@pytest.mark.parametrize("angle", (0, 90, 200))
def test_a_palm_of_any_direction_points_upwards_in_its_square(angle):
    ahead = Rotation.from_euler("z", angle, degrees=True).apply([0, -1, 0])[:2]
    points = np.tile([100.0, 100.0], (7, 1))
    points[2] += 40 * ahead
    matrix = hand_square(Palm(1.0, np.array([80.0, 80, 40, 40]), points))
    wrist, middle = (matrix @ np.append(points[each], 1) for each in (0, 2))
    np.testing.assert_allclose(wrist[0], middle[0], atol=1e-6)
    assert wrist[1] > middle[1] and np.linalg.det(matrix[:2, :2]) > 0  # not mirrored


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mediapipe")
    words = "mediapipe==0.10.21 --no-deps --only-binary=:all: --python-version 3.11 --quiet -d".split()
    done = subprocess.run([sys.executable, "-m", "pip", "download", *words, str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("the wheel of mediapipe cannot be fetched here")
    return folder


def test_detected_hands_lie_where_the_simulated_ones_are(wheel):
    detector, errors = HandDetector(wheel), []
    for sample in SimRHD("evaluation", 12):
        hands = detector(sample.image)
        distances = [np.linalg.norm(hand.uv - sample.uv, axis=1).mean() for hand in hands]
        errors.append(min(distances, default=np.inf))
    assert np.median(errors) < 25  # px of 320


def test_the_notebook_runs_without_any_picture(tmp_path):
    target = tmp_path / "predict.ipynb"
    done = subprocess.run(
        papermill_calls.call("predict", target, frames=2, device="cpu"),
        env=papermill_calls.environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    cells = json.loads(target.read_text())["cells"]
    shown = [
        output
        for cell in cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(shown) == 2  # frames of the twin; the photographs are not there
