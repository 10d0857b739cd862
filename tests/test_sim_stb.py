"The twin of STB: one left hand with STB's bones, smooth motion, two cameras, STB's layout."

import cv2
import numpy as np
import pytest
import scipy.io

from handlab.data.stb import (
    SPLITS,
    STB_BONES,
    bone_lengths,
    camera_joints,
    decode_frame,
    image_path,
    label_path,
)
from handlab.data.stb_depth import SK_COLOR_K, SK_DEPTH_K, decode_depth, sk_rotation
from handlab.hand.camera import project
from handlab.hand.skeleton import handedness
from handlab.sim import stb
from handlab.sim.shape import Traits, make_person, measured_traits, rest_skeleton
from handlab.sim.stb import (
    FRAMES,
    SimSTB,
    joints_at,
    motion_of,
    render_stb,
    shares,
    stb_frame,
    structured_light,
    time_of,
)
from handlab.sim.write import write


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(
        "sim-stb",
        tmp_path_factory.mktemp("twin") / "set",
        training=12,
        evaluation=5,
        seed=5,
        workers=1,
        show_progress=False,
    )


@pytest.fixture(scope="module")
def paths():
    return {
        name: np.stack([joints_at(motion_of(5, name), index) for index in range(FRAMES)])
        for name in ("B1Counting", "B4Random")
    }


# ---- the person


def test_the_hand_has_stb_s_bones(paths):
    for joints in paths.values():
        stored = np.moveaxis(stb.stored_joints(joints), 0, -1)
        assert np.abs(bone_lengths(stored).reshape(-1, 5, 4) - STB_BONES).max() < 1e-6


def test_measured_traits_leave_other_persons_alone():
    person = make_person(np.random.default_rng(3), "fast")
    assert person.traits.knuckles is None and np.array_equal(rest_skeleton(person.traits)[0], person.joints)
    mean, _, radii = rest_skeleton(Traits())
    bones = np.linalg.norm(np.diff(mean[1:].reshape(5, 4, 3), axis=1), axis=2)
    joints, _, same = rest_skeleton(
        measured_traits(mean[1::4], bones)
    )  # measured from the mean hand: the mean hand again
    assert np.abs(joints - mean).max() < 1e-9 and np.array_equal(same, radii)


# ---- motion


def test_motion_is_smooth_near_and_left_handed(paths):
    for joints in paths.values():
        step = np.linalg.norm(np.diff(joints, axis=0), axis=-1)
        jerk = np.linalg.norm(np.diff(joints, 2, axis=0), axis=-1)
        assert step.max() < 40 and jerk.max() < 15 and 1 < np.median(step.mean(1)) < 6
        assert 400 - 25 < joints[..., 2].min() and joints[..., 2].max() < 650 + 25
        uv = project(joints, SK_COLOR_K)
        assert ((uv > 0) & (uv < [640, 480])).all(-1).mean() > 0.97
        assert np.median(handedness(joints)) < 0
    counting = paths["B1Counting"]
    towards = np.cross(
        counting[:, 5] - counting[:, 0], counting[:, 17] - counting[:, 0]
    )  # leaves a left hand through its back
    assert (towards[:, 2] > 0).mean() > 0.98  # the palm faces the camera


def test_counting_counts(paths):
    "How many of the four fingers are stretched rises and falls through the numbers."
    joints = paths["B1Counting"]
    reach = np.linalg.norm(joints[:, [8, 12, 16, 20]] - joints[:, [5, 9, 13, 17]], axis=-1) / STB_BONES[
        1:, 1:
    ].sum(1)
    count = (reach > 0.85).sum(1)
    shown = [count[at] for at in range(0, FRAMES, 5) if at == 0 or count[at] == count[at - 4]]
    changes = [b for a, b in zip(shown, shown[1:]) if a != b]
    assert set(count) >= {0, 1, 2, 3, 4} and np.abs(np.diff([shown[0], *changes])).max() <= 2
    assert np.mean(np.abs(np.diff([shown[0], *changes])) == 1) > 0.8


def test_sequences_and_seeds_differ():
    first = motion_of(5, "B1Counting").poses
    for seed, name in ((5, "B2Counting"), (5, "B1Random"), (6, "B1Counting")):
        assert not np.allclose(motion_of(seed, name).poses[0], first[0])
    places = [stb.place_of(0, number) for number in range(1, 7)]
    assert all(np.abs(a - b).mean() > 0.05 for i, a in enumerate(places) for b in places[:i])
    assert not np.array_equal(stb.place_of(0, 3), stb.place_of(1, 3))


def test_light_changes_slowly_within_a_sequence():
    factors = stb.brightness_of(5, "B3Random")
    assert 0.04 < np.ptp(factors[:, 0]) < 0.4 and np.abs(np.diff(factors, axis=0)).max() < 0.003


# ---- frames


def test_a_frame_is_a_pure_function_of_seed_sequence_and_index():
    first = stb_frame(5, "B2Random", 77)
    for cached in (stb.motion_of, stb.place_of, stb.actor_of, stb.brightness_of, stb.stb_person):
        cached.cache_clear()
    stb_frame(6, "B3Counting", 2)
    for one, two in zip(first, stb_frame(5, "B2Random", 77)):
        assert np.array_equal(one, two)
    assert not np.array_equal(first[0], stb_frame(5, "B2Random", 78)[0])


def test_neighbouring_frames_differ_by_grain_and_little_motion():
    one, two = (render_stb(5, "B2Counting", index) for index in (400, 401))
    still = ~cv2.dilate((one.true_depth > 0).astype(np.uint8), np.ones((25, 25))).astype(bool)
    difference = one.color[still].astype(float) - two.color[still]
    assert 1 < difference.std() < 12 and abs(difference.mean()) < 1
    assert (one.true_mask & two.true_mask).sum() / (one.true_mask | two.true_mask).sum() > 0.85


@pytest.mark.parametrize("sequence, index", [("B1Random", 200), ("B5Counting", 900)])
def test_two_cameras_see_one_hand(sequence, index):
    frame = render_stb(5, sequence, index)
    joints = camera_joints(frame.stored)
    assert np.abs(joints - joints_at(motion_of(5, sequence), index)).max() < 1e-4
    u, v = np.rint(project(joints, SK_COLOR_K)).astype(int).T
    grown = cv2.dilate(frame.true_mask.astype(np.uint8), np.ones((5, 5), np.uint8))
    assert grown[v, u].mean() > 0.9  # colour: the joints are on the hand
    depth = decode_depth(frame.depth_code)
    seen = joints @ sk_rotation().T + [
        -24.0381,
        -0.4563,
        -1.2326,
    ]  # depth camera, in its own pixels, not those of the colour image
    u, v = np.rint(project(seen, SK_DEPTH_K)).astype(int).T
    near = [
        np.nanmin(np.abs(depth[y - 4 : y + 5, x - 4 : x + 5] - z), initial=1e3)
        for x, y, z in zip(u, v, seen[:, 2])
    ]
    assert np.median(near) < 15 and np.mean(np.array(near) < 40) > 0.8


def test_depth_has_noise_whole_millimetres_and_holes():
    frame = render_stb(5, "B4Counting", 60)
    sample = decode_frame("x", frame.color, frame.depth_code, frame.stored)
    inner = cv2.erode(frame.true_mask.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
    error = sample.depth[inner] * 1000 - frame.true_depth[inner]
    assert 0.3 < np.nanstd(error[np.abs(error) < 8]) < 3 and abs(np.nanmedian(error)) < 1
    lost = np.isnan(sample.depth[frame.true_mask]).mean()
    assert 0.005 < lost < 0.3
    background = sample.depth[
        ~cv2.dilate((frame.true_depth > 0).astype(np.uint8), np.ones((15, 15))).astype(bool)
    ]
    assert np.isnan(background).all()  # out of reach
    overlap = (sample.mask & frame.true_mask).sum() / (sample.mask | frame.true_mask).sum()
    assert overlap > 0.85


def test_shadow_of_the_pattern_by_hand():
    tile = np.zeros((512, 512, 4), np.float32) + np.float32(0.5)  # average luck: no edge is lost
    wall = np.full((8, 300), 700, np.float32)
    wall[:, 150:200] = 420
    seen = structured_light(wall, np.float32(475), tile, 0, 0)
    dark = np.flatnonzero(seen[4] == 0)
    assert (
        abs(len(dark) - 475 * 42 * (1 / 420 - 1 / 700)) < 2
        and dark.max() == 149
        and np.all(np.diff(dark) == 1)
    )
    assert not structured_light(np.full((8, 30), 1200, np.float32), np.float32(475), tile, 0, 0).any()


def test_the_twin_is_not_rhd_s():
    "Differences that the real sets have too: brighter, larger hands, one place in all frames of a sequence."
    from handlab.sim.rhd import SimRHD

    ours, other = (
        list(SimSTB("training", 10)),
        [SimRHD("training", 200)[index] for index in range(0, 200, 20)],
    )

    def hand(sample):
        return (
            sample.image[sample.mask].mean(),
            sample.mask.mean() * sample.image[..., 0].size,
            sample.side,
        )

    bright, large, sides = zip(*map(hand, ours))
    assert set(sides) == {"left"} and np.median(bright) > 1.15 * np.median(
        [hand(sample)[0] for sample in other]
    )
    assert np.median(large) > 3 * np.median([hand(sample)[1] for sample in other]) and ours[
        0
    ].image.shape == (480, 640, 3)


# ---- stream and disk


def test_the_layout_is_stb_s(written):
    assert sorted(path.name for path in written.iterdir()) == ["images", "labels", "source.json"]
    assert sorted(path.name for path in (written / "images").iterdir()) == sorted(sum(SPLITS.values(), ()))
    assert sorted(path.name for path in (written / "images/B1Counting").iterdir()) == [
        f"SK_{kind}_{number}.png" for kind in ("color", "depth") for number in range(3)
    ]
    content = scipy.io.loadmat(label_path(written, "B1Counting"))
    assert content["handPara"].shape == (3, 21, 3) and content["handPara"].dtype == np.float64
    color, depth = (
        cv2.imread(str(image_path(written, "B1Counting", 0, depth=depth)), cv2.IMREAD_UNCHANGED)
        for depth in (False, True)
    )
    assert color.shape == depth.shape == (480, 640, 3) and not depth[..., 0].any()  # OpenCV's order: no blue
    mm = depth[..., 2] + 256 * depth[..., 1].astype(int)  # low byte in red
    assert 380 < np.median(mm[mm > 0]) < 700


def test_shares_of_a_small_set():
    assert shares("evaluation", 5) == {"B1Counting": 3, "B1Random": 2}
    assert (
        set(shares("training", 15000).values()) == {FRAMES}
        and len(SimSTB("training")) == 15000
        and len(SimSTB("evaluation")) == 3000
    )
    assert [time_of(number, 3) for number in range(3)] == [0, 500, 1000] and time_of(1499, 1500) == 1499
    stored = SimSTB("evaluation", 5, seed=5)[1]
    assert np.abs(stored.joints - joints_at(motion_of(5, "B1Counting"), 500)).max() < 1e-3
