"""The twin of Dexter+Object: pure frames, both cameras, a left hand holds a box and does not sink into it."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from handlab.core import HandlabError
from handlab.data import dexter_object as data
from handlab.data.dexter_object import DEPTH_K, FRAMES, SEQUENCES, parse_line
from handlab.data.prepare import CropSettings, prepare
from handlab.hand.skeleton import handedness
from handlab.sim import dexter_object as sim
from handlab.sim.dexter_object import SimDexterObject
from handlab.sim.pose import joint_limits, pose_from, pose_hand
from handlab.sim.render import depth_of
from handlab.sim.write import write

MISSING = 32001


def hand(seed, sequence, index):
    "All 21 joints (mm, colour camera), the stage and the actor of a frame."
    stage, actor = sim.stage_at(seed, sequence, index), sim.actor_of(seed, sim.PERSONS[sequence])
    return sim.arm_of(stage, actor).world(pose_hand(actor.person, pose_from(stage.pose))[0]), stage, actor


def labels(seed, sequence, index):
    return parse_line("", sim.raw_frame(seed, sequence, index)[3], 3)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(
        "sim-dexter-object",
        tmp_path_factory.mktemp("twin") / "set",
        evaluation=13,
        seed=3,
        every=9,
        show_progress=False,
    )


# ---- stream and disk


def test_the_layout_is_the_official_one(written):
    assert sorted(path.name for path in written.iterdir()) == [
        "data",
        "digests.json",
        "source.json",
    ] and sorted(path.name for path in (written / "data").iterdir()) == sorted(SEQUENCES)
    folder = written / "data/Grasp1"
    assert [path.name for path in sorted((folder / "color").iterdir())] == [
        "Color_0001.bmp",
        "Color_0002.bmp",
        "Color_0003.bmp",
    ]
    with Image.open(folder / "color/Color_0002.bmp") as image:
        assert (image.format, image.mode, image.size) == ("BMP", "RGB", (640, 480))
    with Image.open(folder / "depth/Depth_0002.png") as image:
        assert image.format == "PNG" and image.mode.startswith("I;16") and image.size == (320, 240)
    two, three = ((folder / f"annotations/Grasp1{d}D.txt").read_text().splitlines() for d in (2, 3))
    assert len(two) == len(three) == 3 and all(text.count(";") == 8 for text in two + three)
    for flat, solid in zip(two, three):
        flat, solid = parse_line("", flat, 2), parse_line("", solid, 3)
        seen = solid[:, 2] != MISSING
        x, y, z = (solid[seen] * [-1, -1, 1]).T  # negate before projecting
        assert np.abs(np.stack([224.502 * x / z + 160, 230.494 * y / z + 120], -1) - flat[seen]).max() < 0.01


def test_a_frame_is_a_pure_function():
    first = [sim.raw_frame(5, "Grasp2", index) for index in (300, 40)]
    for cache in (sim.actor_of, sim.grip_of, sim.sways, sim.room_of, sim.materials_of):
        cache.cache_clear()
    sim.raw_frame(6, "Pinch", 3)
    for one, two in zip(first, [sim.raw_frame(5, "Grasp2", index) for index in (300, 40)]):
        assert all(np.array_equal(a, b) for a, b in zip(one, two))
    other = sim.raw_frame(6, "Grasp2", 300)
    assert not np.array_equal(first[0][0], other[0]) and first[0][3] != other[3]


def test_every_takes_the_same_frames_of_the_motion():
    slow, fast = SimDexterObject(None, 2, "Rigid"), SimDexterObject(4, 2, "Rigid", every=30)
    assert np.array_equal(slow[90].image, fast[3].image) and fast.frames[3] == ("Rigid", 4)


def test_counts():
    reader = SimDexterObject()
    assert len(reader) == 3145 and reader.counts == FRAMES and reader.frames[356] == ("Grasp2", 1)
    assert list(SimDexterObject(8).counts.values()) == [2, 2, 1, 1, 1, 1] and list(
        SimDexterObject(2).counts
    ) == ["Grasp1", "Grasp2"]
    for arguments, said in (
        (dict(count=0), "at least one frame"),
        (dict(sequences="Juggle"), "no such sequence"),
        (dict(every=0), "it cannot be below 1"),
        (dict(sequences=()), "there is none"),
    ):
        with pytest.raises(HandlabError, match=said) as error:
            SimDexterObject(**arguments)
        assert "\n" not in str(error.value)


def test_a_reader_travels_and_feeds_prepare(tmp_path):
    reader = pickle.loads(pickle.dumps(SimDexterObject(6, seed=1, every=40)))
    assert (
        reader.identity()
        == SimDexterObject(6, seed=1, every=40).identity()
        != SimDexterObject(6, seed=1, every=41).identity()
    )
    prepared = prepare(
        reader, tmp_path / "crops", CropSettings(size=32, crop="tips"), workers=1, show_progress=False
    )
    assert (
        prepared.mirrored.all()
        and prepared.source == "sim-dexter-object"
        and np.isfinite(prepared.box).all()
        and np.isnan(prepared.joints[:, 9]).all()
    )
    with pytest.raises(IndexError):
        reader[6]


def test_source_says_what_it_is(written):
    stated = json.loads((written / "source.json").read_text())
    assert (
        stated["source"] == "sim-dexter-object"
        and stated["frames"] == dict(Grasp1=3, Grasp2=2, Occlusion=2, Pinch=2, Rigid=2, Rotate=2)
        and (stated["seed"], stated["every"]) == (3, 9)
    )


# ---- the hand and the box


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_the_hand_is_a_left_one_within_human_limits(sequence):
    low, high = joint_limits()
    hands = []
    for index in range(0, FRAMES[sequence], 41):
        joints, stage, _ = hand(2, sequence, index)
        hands.append(joints)
        assert (stage.pose >= low - 1e-9).all() and (stage.pose <= high + 1e-9).all()
        assert np.linalg.det(stage.rotation) == pytest.approx(1) and joints[:, 2].min() > 200
    assert np.mean(handedness(np.stack(hands))) < -5


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_motion_is_smooth(sequence):
    joints = np.stack(
        [hand(0, sequence, index)[0] for index in range(180, 300)]
    )  # over the end of a cycle (frame 210)
    boxes = np.stack([sim.stage_at(0, sequence, index).centre for index in range(180, 300)])
    assert (
        np.linalg.norm(np.diff(joints, axis=0), axis=-1).max() < 30
        and np.linalg.norm(np.diff(joints, 2, axis=0), axis=-1).max() < 8
    )
    assert np.linalg.norm(np.diff(boxes, axis=0), axis=-1).max() < 15 and np.ptp(joints, 0).max() > 20


def test_two_persons():
    def length(sequence):
        return np.linalg.norm(np.diff(hand(0, sequence, 50)[0][[5, 6, 7, 8]], axis=0), axis=1)

    assert (
        np.allclose(length("Grasp1"), length("Pinch"))
        and np.allclose(length("Grasp1"), length("Rotate"))
        and np.allclose(length("Grasp2"), length("Rigid"))
    )
    assert np.abs(length("Grasp1") - length("Grasp2")).max() > 0.5


@pytest.mark.parametrize("sequence", ["Pinch", "Rigid", "Occlusion"])
def test_fingers_touch_the_box_and_do_not_sink_in(sequence):
    for index in range(0, FRAMES[sequence], 67):
        joints, stage, actor = hand(1, sequence, index)
        radii, fingers = actor.person.radii, []
        for finger in range(5):
            points = [
                joints[1 + 4 * finger + k] + share * (joints[2 + 4 * finger + k] - joints[1 + 4 * finger + k])
                for k in (0, 1, 2)
                for share in (np.linspace(0.5, 1, 7) if k == 0 else np.linspace(0, 0.9, 7))
            ]
            local = (
                np.abs((np.array(points) - stage.centre) @ stage.axes) - sim.BOX
            )  # by hand: distance to a box in its own axes
            distance = np.linalg.norm(local.clip(0), axis=1) + np.minimum(local.max(1), 0)
            fingers.append(
                (
                    np.array(
                        [
                            *np.linspace(radii[finger, :2].mean(), radii[finger, 1], 7),
                            *np.linspace(radii[finger, 1], radii[finger, 2], 7),
                            *np.linspace(radii[finger, 2], radii[finger, 3], 7),
                        ]
                    )
                    - distance
                ).max()
            )
        assert max(fingers) < 2.5 and fingers[0] > -3 and fingers[1] > -3


def test_the_box_stands_on_the_desk_and_is_carried():
    down, up = sim.UP @ sim.stage_at(0, "Grasp1", 5).centre, sim.UP @ sim.stage_at(0, "Grasp1", 110).centre
    assert down == pytest.approx(-365 + sim.BOX[1]) and up - down > 40
    for index in (60, 110, 150):  # in the hand: fixed in the palm
        stage = sim.stage_at(0, "Grasp1", index)
        assert np.allclose(
            sim.MIRROR * (stage.rotation.T @ (stage.centre - stage.wrist)),
            sim.grip_of(0, 0, "over").centre,
            atol=1e-6,
        )
    before, after = sim.stage_at(0, "Grasp1", 209), sim.stage_at(0, "Grasp1", 211)
    assert np.allclose(before.centre, after.centre, atol=0.01)


def test_box_distance_by_brute_force():
    generator = np.random.default_rng(0)
    axes = sim.rotation_about(np.array([0.6, 0, 0.8]), 0.7)
    half, centre = np.array([4.0, 7, 3]), np.array([1.0, 2, 3])
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 41)] * 3, indexing="ij"), -1).reshape(-1, 3) * half
    for point in generator.uniform(-14, 14, (20, 3)):
        local = (point - centre) @ axes
        found = sim.box_distance(*point, centre, axes, half)
        if (np.abs(local) < half).all():
            assert found == pytest.approx(-(half - np.abs(local)).min())
        else:
            assert found == pytest.approx(np.linalg.norm(grid - local, axis=1).min(), abs=0.35) and found > 0


def test_the_box_is_a_closed_box_seen_from_outside():
    for sequence, index in (("Grasp1", 3), ("Pinch", 50), ("Rotate", 99)):
        stage = sim.stage_at(0, sequence, index)
        piece = sim.box_piece(stage)
        corner = piece.vertices[piece.faces].astype(float)
        normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        assert (
            len(piece.faces) == 12
            and (np.einsum("fc,fc->f", normal, corner.mean(1) - stage.centre) > 0).all()
        )
        assert np.einsum(
            "fc,fc->",
            corner[:, 0] - stage.centre,
            np.cross(corner[:, 1] - stage.centre, corner[:, 2] - stage.centre),
        ) / 6 == pytest.approx(8 * sim.BOX.prod(), rel=1e-4)  # its volume
        assert (np.einsum("fc,fc->f", piece.normals[piece.faces[:, 0]], normal) > 0).all()


# ---- two cameras


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_labels_are_where_the_tips_are(sequence):
    for index in (3, 130):
        points, (joints, stage, _) = labels(4, sequence, index), hand(4, sequence, index)
        tips = points[:5] * [-1, -1, 1] @ data.DEPTH_TO_COLOR[:, :3].T + data.DEPTH_TO_COLOR[:, 3]
        corners = points[5:] * [-1, -1, 1] @ data.DEPTH_TO_COLOR[:, :3].T + data.DEPTH_TO_COLOR[:, 3]
        seen, there = points[:5, 2] != MISSING, points[5:, 2] != MISSING
        assert seen.sum() >= 2 and np.abs(tips - joints[[4, 8, 12, 16, 20]])[seen].max() < 0.01
        local = (corners[there] - stage.centre) @ stage.axes
        assert np.abs(np.abs(local) - sim.BOX).max(initial=0) < 0.02  # corners of the box that is drawn


def test_registered_depth_is_what_the_colour_camera_would_have_measured():
    for sequence, index in (("Rigid", 30), ("Pinch", 100), ("Rotate", 400)):
        sample = SimDexterObject(None, 0, sequence)[index]
        _, stage, actor = hand(0, sequence, index)
        arm = sim.arm_of(stage, actor)
        pieces = sim.join(
            [*(sim.mirrored(piece) for piece in sim.arm_pieces(arm, actor)), sim.box_piece(stage)]
        )
        drawn = depth_of(
            sim.draw_meshes([sim.place_hand(actor, arm, sim.COLOR_CAMERA)], pieces, sim.COLOR_CAMERA).nearness
        )
        both = (drawn > 0) & np.isfinite(sample.depth)
        error = np.abs(sample.depth * 1000 - drawn)[both]
        assert both.sum() > 0.75 * (drawn > 0).sum() and np.median(error) < 3 and (error > 40).mean() < 0.04
        assert both[sample.mask].mean() > 0.9


def test_desk_depth_agrees_with_the_plane():
    v, u = 200, 100
    z = float(sim.desk_depth(400.0)[v, u])
    point = (
        np.array([(u - 160) / 224.502 * z, (v - 120) / 230.494 * z, z]) @ data.DEPTH_TO_COLOR[:, :3].T
        + data.DEPTH_TO_COLOR[:, 3]
    )
    assert sim.UP @ point == pytest.approx(-400, abs=0.5)


def test_missing_tips_are_hidden_and_annotated_ones_are_not():
    hidden = {}
    for sequence in SEQUENCES:
        missing = 0
        for index in range(0, FRAMES[sequence], 53):
            color, raw, _, line = sim.raw_frame(0, sequence, index)
            points, joints = parse_line("", line, 3), hand(0, sequence, index)[0]
            tips = (joints[[4, 8, 12, 16, 20]] - data.DEPTH_TO_COLOR[:, 3]) @ np.linalg.inv(
                data.DEPTH_TO_COLOR[:, :3]
            ).T
            seen = points[:5, 2] != MISSING
            missing += (~seen).sum()
            u, v = (
                np.rint(tips[:, k] * DEPTH_K[k, k] / tips[:, 2] + DEPTH_K[k, 2]).astype(int) for k in (0, 1)
            )
            for tip in np.flatnonzero((u >= 0) & (u < 320) & (v >= 0) & (v < 240)):
                around = raw[max(v[tip] - 2, 0) : v[tip] + 3, max(u[tip] - 2, 0) : u[tip] + 3]
                around = around[(around > 0) & (around < MISSING)]
                if len(around) and not seen[tip]:
                    assert around.min() < tips[tip, 2] - 5  # something is in front
                if len(around) and seen[tip] and seen.sum() > 2:
                    assert around.max() > tips[tip, 2] - 25
        hidden[sequence] = missing
    assert all(count > 0 for count in hidden.values()) and hidden["Occlusion"] > hidden["Grasp1"]


def test_fewest_tips():
    points = np.stack([np.linspace(-60, 60, 8), np.zeros(8), np.full(8, 500.0)], -1)
    wall = np.full((240, 320), 300.0, np.float32)
    marked, uv = sim.annotated(points, wall)
    assert (marked[:5, 2] != MISSING).sum() == 2 and (marked[5:, 2] == MISSING).all()
    wall[:, 120:] = 490
    marked, uv = sim.annotated(points, wall)  # 10 mm before a tip does not hide it
    assert np.array_equal(marked[:, 2] != MISSING, points[:, 0] * 224.502 / 500 + 160 > 119.5)
    assert np.allclose(marked[7], [-60, 0, 500]) and np.allclose(uv[7], [60 * 224.502 / 500 + 160, 120])
    points[0] = 0, 0, -100
    assert sim.annotated(points, wall * 0)[0][0, 2] == MISSING


def test_the_depth_camera_s_faults():
    flat = np.full((240, 320), 600.0, np.float32)
    flat[:, 160:] = 420
    flat[:40] = 0
    flat[200:] = 1300
    raw = sim.sensed_depth(np.random.default_rng(0), flat)
    assert raw.dtype == np.uint16 and (raw[:38] == 0).all() and (raw[205:] == 32002).mean() > 0.95
    near, far = raw[60:190, 170:300].astype(float), raw[60:190, 10:150].astype(float)
    near, far = (part[(part > 0) & (part < MISSING)] for part in (near, far))
    assert abs(near.mean() - 420) < 0.5 and abs(far.mean() - 600) < 0.5 and 0.5 < near.std() < far.std() < 6
    assert 0.4 < (raw[60:190, 159:161] == 0).mean() < 0.95 and (raw[60:190, 170:300] == 0).mean() == 0


def test_pictures_look_like_something():
    for sequence in SEQUENCES:
        sample = SimDexterObject(None, 0, sequence)[60]
        assert 25 < sample.image.mean() < 200 and sample.image.std() > 8
        tips = np.rint(sample.uv[sample.visible]).astype(int)
        skin = np.array(
            [
                np.median(sample.image[max(v - 2, 0) : v + 3, max(u - 2, 0) : u + 3].reshape(-1, 3), 0)
                for u, v in tips
            ]
        )
        if sequence != "Occlusion":
            assert (skin[:, 0] > skin[:, 2]).mean() > 0.5  # skin is redder than blue


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_nothing_goes_through_the_desk(sequence):
    for index in range(0, FRAMES[sequence], 29):
        joints, stage, _ = hand(0, sequence, index)
        corners = (
            stage.centre + (np.stack(np.meshgrid(*[[-1, 1]] * 3), -1).reshape(-1, 3) * sim.BOX) @ stage.axes.T
        )
        assert (corners @ sim.UP).min() > -sim.HEIGHTS[sequence] - 3 and (
            joints @ sim.UP
        ).min() > -sim.HEIGHTS[sequence] - 3
