"""BigHand's twin: its layout, sound and broad frames, a sensor with faults."""

import numpy as np
import pytest

from handlab.data.bighand import CAMERA
from handlab.hand.camera import project
from handlab.hand.skeleton import BONES, handedness
from handlab.settings import numpy_generator
from handlab.sim import bighand as twin
from handlab.sim import rhd
from handlab.sim.bighand import SimBigHand
from handlab.sim.write import write


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(
        "sim-bighand",
        tmp_path_factory.mktemp("twin") / "set",
        training=230,
        evaluation=30,
        seed=5,
        workers=2,
        show_progress=False,
    )


@pytest.fixture(scope="module")
def samples():
    return [SimBigHand("training", 4000, seed=3)[index] for index in range(0, 4000, 20)]


def test_the_layout_is_bighand_s(written):
    assert sorted(path.name for path in written.iterdir()) == [
        "Subject_1",
        "Subject_2",
        "Subject_e1",
        "full_annotation",
        "source.json",
    ]
    assert sorted(path.name for path in (written / "Subject_1").iterdir()) == sorted(twin.FOLDERS)
    lines = (written / "full_annotation/Subject_2/76 150_sim.txt").read_bytes().splitlines()
    assert [line.split(b"\t")[0] for line in lines] == [b"%08d" % frame for frame in range(1, 6)] and all(
        len(line.split(b"\t")) == 64 for line in lines
    )
    from PIL import Image

    with Image.open(written / "Subject_1/ego/image_D00000003.png") as image:
        assert (image.mode, image.size) == ("I;16", (640, 480))


def test_samples_are_sound(samples):
    for sample in samples:
        sample.check()
        assert (
            sample.side == "right"
            and np.abs(project(sample.joints, sample.K) - sample.uv).max() < 0.05
            and np.array_equal(sample.K, CAMERA)
        )
        assert sample.visible.sum() >= twin.FEWEST_INSIDE and sample.joints[:, 2].min() >= twin.NEAREST - 0.01
        seen = np.rint(np.nan_to_num(sample.depth) * 1000)
        assert (
            seen.max() <= twin.FARTHEST and np.abs(seen - np.nan_to_num(sample.depth) * 1000).max() < 1e-3
        )  # whole millimetres

    away = [
        abs(np.median(sample.depth[sample.mask]) * 1000 - np.median(sample.joints[:, 2]))
        for sample in samples
    ]
    assert np.mean(away) < 35 and max(away) < 150  # the mask may hold some forearm


def test_joints_lie_inside_the_flesh(samples):
    "Where a joint's pixel shows the hand, its surface is before it, by less than the flesh's thickness."
    before = []
    for sample in samples:
        column, row = np.rint(sample.uv[sample.visible]).astype(int).T
        surface = sample.depth[row, column] * 1000
        before.append(sample.joints[sample.visible, 2] - surface)
    before = np.concatenate(before)
    on_hand = before[np.isfinite(before) & (np.abs(before) < 30)]
    assert len(on_hand) > 0.6 * len(before) and 4 < np.median(on_hand) < 12 and np.percentile(on_hand, 3) > -3


def test_hands_are_right_hands(samples):
    curl = np.array([float(handedness(sample.joints)) for sample in samples])  # fingers curl towards the palm
    assert (curl[np.abs(curl) > 12] > 0).mean() > 0.9 and (curl > 12).sum() > 40


def test_views_and_poses_are_broad(samples):
    joints = np.stack([sample.joints for sample in samples])
    along = joints[:, 9] - joints[:, 0]
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    assert np.linalg.norm(along.mean(0)) < 0.45 and along.std(0).min() > 0.35  # fingers point anywhere
    across = np.cross(joints[:, 5] - joints[:, 0], joints[:, 17] - joints[:, 0])
    assert 0.2 < (across[:, 2] > 0).mean() < 0.8  # palms and backs
    curl = np.linalg.norm(joints[:, 12] - joints[:, 9], axis=1) / sum(
        np.linalg.norm(joints[:, k + 1] - joints[:, k], axis=1) for k in (9, 10, 11)
    )
    assert (curl > 0.95).mean() > 0.1 and (curl < 0.6).mean() > 0.1
    distance = joints[:, 9, 2]
    assert distance.min() < 300 < 600 < distance.max()
    bones = np.linalg.norm(joints[:, BONES[:, 1]] - joints[:, BONES[:, 0]], axis=2)
    assert len({round(float(length), 1) for length in bones[:, 9]}) > 12  # twenty persons


def test_cameras_are_often_rolled_but_eyes_are_not():
    upside_down = [
        np.mean(
            [
                twin.sample_camera(
                    numpy_generator(seed, "test"), folder, np.array([-100.0, -150, 350])
                ).rotation[1, 1]
                > 0
                for seed in range(200)
            ]
        )
        for folder in (2, 7)
    ]
    assert 0.12 < upside_down[0] < 0.4 and upside_down[1] < 0.02


def test_persons_come_in_blocks_and_splits_share_nothing():
    def bone(split, index):
        return np.linalg.norm(np.diff(SimBigHand(split, 1000, seed=5)[index].joints[[9, 10]], axis=0))

    block = twin.FRAMES_PER_PERSON
    assert (
        abs(bone("training", 0) - bone("training", block - 1))
        < 0.01
        < abs(bone("training", 0) - bone("training", block))
    )
    people = [
        twin.actor_of(5, split, number).person.joints.tobytes()
        for split in twin.SPLITS
        for number in range(2)
    ] + [rhd.actor_of(5, "training", number).person.joints.tobytes() for number in range(2)]
    assert len(set(people)) == 6  # nor with the twin of RHD
    knuckles = [
        SimBigHand(split, 1, seed=5)[0].joints[9] for split in twin.SPLITS
    ]  # where the camera stands does not depend on the person
    assert np.abs(knuckles[0] - knuckles[1]).max() > 1
    assert not np.array_equal(*(twin.bighand_frame(seed, "training", 0)[0] for seed in (0, 1)))


def test_a_hand_that_is_hidden_is_drawn_again():
    joints = np.column_stack([np.linspace(-50, 50, 21), np.zeros(21), np.full(21, 400.0)])
    depth, own = np.full((480, 640), 392, np.uint16), np.ones((480, 640), bool)
    assert twin.acceptable(depth, own, joints)
    assert twin.acceptable(depth - 70, own, joints) and not twin.acceptable(
        depth - 90, own, joints
    )  # its own fingers; its own forearm
    assert twin.acceptable(depth, ~own, joints) and not twin.acceptable(
        depth - 10, ~own, joints
    )  # another surface
    assert not twin.acceptable(depth * 0, own, joints)
    assert not twin.acceptable(depth - 250, own, joints - [0, 0, 235])  # too near
    assert not twin.acceptable(depth, own, joints + [360, 0, 0])  # partly out of the picture
    SimBigHand("training", 2000)[1685]  # where an arm stood before the hand once


# ---- the sensor


def test_nothing_in_the_shadow():
    "A block before a wall, against the projector's geometry worked out pixel by pixel."
    depth = np.full((480, 640), 900.0)
    depth[100:200, 250:330] = 420
    depth[250:300, 100:500] = np.linspace(500, 700, 400)
    seen = twin.sense_rows(
        (1 / depth).astype(np.float32),
        np.zeros((512, 512, 4), np.float32),
        0,
        0,
        np.float32(475 * 22),
        np.float32(1),
        np.float32(-9),
        np.float32(1500),
    )
    for row in (150, 275, 400):
        projector = np.arange(640) + 475 * 22 / depth[row]
        hidden = np.array([any(projector[:x] > projector[x] + 0.5) for x in range(640)])
        assert ((seen[row] == 0) != hidden).sum() <= 1 and (
            seen[row, ~hidden & (seen[row] > 0)] == np.rint(depth[row, ~hidden & (seen[row] > 0)])
        ).all()
    assert (seen[150] == 0).sum() in (12, 13, 14)  # 475*22*(1/420 - 1/900) = 13.3


def test_outlines_are_lost_in_part_and_noise_grows():
    depth = np.full((480, 640), 500.0)
    depth[:, 320:] = 1000
    seen = np.stack(
        [twin.sense_depth(numpy_generator(seed, "test"), (1 / depth).astype(np.float32)) for seed in range(8)]
    ).astype(float)
    near, far = seen[:, :, 50:300], seen[:, :, 400:600]
    assert (
        0.4 < near[near > 0].std() < 2.5
        and 1.5 < far[far > 0].std() < 8
        and far[far > 0].std() > 1.7 * near[near > 0].std()
    )
    assert abs(near[near > 0].mean() - 500) < 0.2 and abs(far[far > 0].mean() - 1000) < 0.5
    assert (near == 0).mean() < 0.01 and 0.1 < (seen[:, :, 319] == 0).mean() < 0.95


def test_samples_have_holes(samples):
    shares = np.array([1 - np.isfinite(sample.depth[sample.mask]).mean() for sample in samples])
    around = np.array([np.isnan(sample.depth).mean() for sample in samples])
    assert (
        (around > 0).all() and 0.2 < (around > 0.5).mean() < 0.9 and (shares == 0).all()
    )  # the mask holds measured pixels only


# ---- jobs
