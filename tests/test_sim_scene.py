"Frames hang together: joints, depth, parts, visibility, cameras; looks and backgrounds differ."

import cv2
import numpy as np
import pytest

from handlab.data.files import read_png, real_root
from handlab.data.rhd import read_annotation
from handlab.hand.orders import from_rhd
from handlab.settings import numpy_generator
from handlab.sim import actor, places, scene
from handlab.sim.render import part_ids

COUNT = 24


@pytest.fixture(scope="module")
def actors():
    return [actor.make_actor(numpy_generator(7, "person", number)) for number in range(6)]


@pytest.fixture(scope="module")
def frames(actors):
    return [
        scene.render_frame(
            numpy_generator(7, index), actors[index % 6], places.pool_background(7, "training", index % 4)
        )
        for index in range(COUNT)
    ]


def main_hand(frame):
    side = scene.SIDES.index(frame.side)
    ids = part_ids(frame.side)
    return frame.joints[side], frame.uv[side], frame.visible[side], ids


def pixel(picture, uv):
    return picture[int(round(uv[1])), int(round(uv[0]))]


def test_shapes_and_types(frames):
    for frame in frames:
        assert frame.image.shape == (320, 320, 3) and frame.image.dtype == np.uint8
        assert frame.parts.dtype == np.uint8 and frame.parts.max() <= 33 and frame.depth.dtype == np.float32
        assert (
            np.isfinite(frame.joints).all() and np.isfinite(frame.uv).all() and np.isfinite(frame.depth).all()
        )
        assert ((frame.parts > 0) == (frame.depth > 0)).all()  # depth and parts come from the same pass


def test_joints_project_where_they_are_said_to(frames):
    for frame in frames:
        joints, uv, _, _ = main_hand(frame)
        projected = joints @ frame.K.T
        np.testing.assert_allclose(projected[:, :2] / projected[:, 2:], uv, atol=1e-2)


def test_a_visible_joint_lies_below_its_own_skin(frames):
    right_finger = within = total = 0
    for frame in frames:
        joints, uv, visible, ids = main_hand(frame)
        finger_of = {int(part): 0 if bone == 0 else 1 + (bone - 1) // 3 for bone, part in enumerate(ids[:16])}
        for joint in np.flatnonzero(visible):
            part = int(pixel(frame.parts, uv[joint]))
            if part not in finger_of:
                continue
            same = finger_of[part] == (0 if joint == 0 else 1 + (joint - 1) // 4) or (
                joint % 4 == 1 and finger_of[part] == 0
            )
            total, right_finger = total + 1, right_finger + same
            if same:
                within += (
                    -12 < joints[joint, 2] - pixel(frame.depth, uv[joint]) < 45
                )  # a joint is at most a palm's thickness below the skin
    assert total > 12 * COUNT and right_finger > 0.6 * total and within > 0.93 * right_finger


def test_hidden_joints(frames):
    hidden = 0
    for frame in frames:
        for side in (0, 1):
            joints, uv, visible = frame.joints[side], frame.uv[side], frame.visible[side]
            outside = (np.rint(uv) < 0).any(1) | (np.rint(uv) > 319).any(1)
            assert not visible[outside].any() and not visible[joints[:, 2] < 0].any()
            own = part_ids(scene.SIDES[side])[:16]
            for joint in np.flatnonzero(~outside & (joints[:, 2] > 60)):
                part, depth = pixel(frame.parts, uv[joint]), pixel(frame.depth, uv[joint])
                assert visible[joint] == (
                    part in own or depth == 0 or depth >= joints[joint, 2] - scene.HIDDEN_BY
                )
                hidden += not visible[joint]
    assert hidden > 0


def test_hands_are_of_the_side_they_claim(frames, actors):
    "With palm to the camera and fingers up, a right hand's thumb is at the right, as on 95 of 100 RHD hands."
    for seed in range(6):
        for side, sign in (("left", -1), ("right", 1)):
            arm = actor.pose_arm(numpy_generator(seed, "side"), actors[0], side)
            ahead = actor.unit_vector(np.array([0.3, 0.2, 1]))
            knuckle = arm.world(arm.joints[9:10])[0]
            camera = scene.sample_camera(numpy_generator(seed), knuckle, ahead, 500.0)
            placed = scene.place_hand(actors[0], arm, camera)
            out_of_palm = camera.rotation @ ((arm.palm @ [0, 0, -1.0]) * arm.mirror)
            knuckles = placed.joints[[5, 17]] - placed.joints[0]
            assert sign * (np.cross(*knuckles) @ out_of_palm) > 0
    signs = []
    for frame in frames:  # and as a stranger would see it: fingertips lie on the palm's side of the knuckles
        for joints, sign in zip(frame.joints, (-1, 1)):
            signs.append(
                sign
                * (
                    np.cross(joints[5] - joints[0], joints[17] - joints[0])
                    @ (joints[[8, 12, 16, 20]] - joints[[5, 9, 13, 17]]).sum(0)
                )
                > 0
            )
    assert np.mean(signs) > 0.8


def test_hands_are_seen_from_everywhere(actors):
    "The directions from which cameras see the hand are even over the sphere: a sixth of it around each axis."
    ways = []
    for index in range(360):
        geometry = scene.sample_geometry(numpy_generator(index, "views"), actors[index % 6])
        joints = geometry.drawn.placed[0].joints
        up, side = joints[9] - joints[0], 1 if geometry.drawn.placed[0].side == "right" else -1
        back = side * np.cross(joints[17] - joints[0], joints[5] - joints[0])
        up, back = actor.unit_vector(up), actor.unit_vector(back - up * (back @ up) / (up @ up))
        seen = -actor.unit_vector(joints[9])
        ways.append([seen @ up, seen @ back, side * (seen @ np.cross(up, back))])
    ways = np.array(ways)
    for axis in range(3):
        for sign in (-1, 1):  # 1/6 of a sphere lies within 48.2 degrees of an axis
            share = (sign * ways[:, axis] > 2 / 3).mean()
            assert 0.10 < share < 0.24, (axis, sign, share)


def test_both_hands_are_one_person_s(frames, actors):
    def bones(joints):
        return np.linalg.norm(
            joints[[2, 3, 4, 6, 7, 8, 10, 11, 12]] - joints[[1, 2, 3, 5, 6, 7, 9, 10, 11]], axis=1
        )

    for index, frame in enumerate(frames):
        np.testing.assert_allclose(bones(frame.joints[0]), bones(frame.joints[1]), atol=1e-6)
        np.testing.assert_allclose(bones(frame.joints[0]), bones(actors[index % 6].person.joints), atol=1e-6)


def test_cameras_are_rhd_s():
    target, ahead = np.array([-120.0, -150, 350]), actor.unit_vector(np.array([0.3, 0.2, 1]))
    cameras = []
    for seed in range(400):
        generator = np.random.default_rng(seed)
        distance = scene.sample_distance(generator)
        cameras.append(scene.sample_camera(generator, target, ahead, distance))
    focal, distance = (
        np.array([camera.K[0, 0] for camera in cameras]),
        np.array([(camera.rotation @ [-120, -150, 350] + camera.shift)[2] for camera in cameras]),
    )
    assert (
        focal.min() >= 260
        and focal.max() <= 310
        and all(camera.K[0, 2] == camera.K[1, 2] == 160 for camera in cameras)
    )
    low, middle, high = np.percentile(distance, [5, 50, 90])
    assert 370 < low < 420 and 470 < middle < 540 and 580 < high < 720
    for camera in cameras[:20]:
        np.testing.assert_allclose(camera.rotation @ camera.rotation.T, np.eye(3), atol=1e-9)


def test_something_stands_behind_the_hand(frames):
    "In many frames the body is within half a metre behind the hand: the depth crop must see it."
    seen = 0
    for frame in frames:
        joints, uv, visible, _ = main_hand(frame)
        (x0, y0), (x1, y1) = (
            np.clip(uv.min(0), 0, 319).astype(int),
            np.clip(uv.max(0) + 1, 1, 320).astype(int),
        )
        window, parts = frame.depth[y0:y1, x0:x1], frame.parts[y0:y1, x0:x1]
        seen += ((parts == 1) & (window > joints[9, 2]) & (window < joints[9, 2] + 500)).mean() > 0.03
    assert seen > 0.3 * COUNT


def test_same_seed_same_frame_and_frames_differ(frames, actors):
    again = scene.render_frame(numpy_generator(7, 3), actors[3], places.pool_background(7, "training", 3))
    for field in ("image", "depth", "parts", "joints", "uv", "visible", "K"):
        np.testing.assert_array_equal(getattr(again, field), getattr(frames[3], field))
    assert (
        len({frame.image.tobytes() for frame in frames})
        == len({frame.joints.tobytes() for frame in frames})
        == COUNT
    )
    assert {frame.side for frame in frames} == {"left", "right"}


def test_geometry_does_not_depend_on_colours(frames, actors):
    bare = scene.render_frame(numpy_generator(7, 5), actors[5])
    assert bare.image is None
    np.testing.assert_array_equal(bare.depth, frames[5].depth)
    np.testing.assert_array_equal(bare.parts, frames[5].parts)


def test_a_hand_alone(actors):
    geometry = scene.sample_geometry(numpy_generator(0, "alone"), actors[0], size=256, zoom=2.8, alone=True)
    assert (
        len(geometry.drawn.placed) == 1
        and geometry.drawn.body is None
        and geometry.parts.shape == (256, 256)
        and (geometry.parts > 1).mean() > 0.05
    )


def test_persons_differ_in_bones_skin_and_clothes(actors):
    for name in ("joints", "radii"):
        assert len({np.round(getattr(actor.person, name), 3).tobytes() for actor in actors}) == len(actors)
    assert (
        len({actor.skin.colour for actor in actors})
        == len({actor.materials.main.tobytes() for actor in actors})
        == len(actors)
    )
    colours = np.array([actor.sample_skin(np.random.default_rng(seed)).colour for seed in range(300)])
    assert (colours[:, 0] > colours[:, 1]).all() and (
        colours[:, 1] > colours[:, 2] * 0.85
    ).all()  # skin is some brown, never blue
    brightness, saturation = colours.max(1), 1 - colours.min(1) / colours.max(1)
    assert brightness.min() < 0.35 and brightness.max() > 0.8 and saturation.max() < 0.75


def test_backgrounds_are_unlike_and_of_their_split():
    first = [places.pool_background(3, "training", number) for number in range(6)]
    second = [places.pool_background(3, "evaluation", number) for number in range(6)]
    assert len({page.tobytes() for page in first + second}) == 12
    assert all(page.std() > 5 for page in first + second)


def test_hands_are_dull_and_sometimes_dark(frames):
    brightness = [frame.image[(frame.parts > 1)].mean() for frame in frames]
    assert 35 < np.median(brightness) < 110 and min(brightness) < 60


def test_visibility_follows_what_real_frames_show():
    "On real frames: never visible outside the picture, always on the hand's own pixels."
    root = real_root("rhd")
    if root is None:
        pytest.skip("no real RHD frames here")
    frames, labels = read_annotation(root / "evaluation" / "anno_evaluation.pickle")
    own, outside = [], []
    for path in sorted((root / "evaluation" / "mask").glob("*.png"))[:40]:
        parts, row = read_png(path, "L", (320, 320)), int(np.searchsorted(frames, int(path.stem)))
        for side in scene.SIDES:
            uv, seen = (
                from_rhd(labels["uv_vis"][row], side)[:, :2],
                from_rhd(labels["uv_vis"][row], side)[:, 2],
            )
            inside = ((np.rint(uv) >= 0) & (np.rint(uv) < 320)).all(1)
            outside += seen[~inside].tolist()
            own += [
                seen[joint]
                for joint in np.flatnonzero(inside)
                if pixel(parts, uv[joint]) in part_ids(side)[:16]
            ]
    assert len(own) > 500 and np.mean(own) > 0.99 and len(outside) > 100 and np.mean(outside) < 0.02


@pytest.mark.parametrize("side", scene.SIDES)
def test_the_parts_of_a_hand_are_those_without_its_forearm(side):
    ids, first = np.arange(256, dtype=np.uint8)[None], scene._FIRST_PART[side]
    assert set(range(first, first + 16)) == set(part_ids(side)[:16].tolist())
    assert scene._count_parts(ids, (0, 0, 256, 1), first) == 16
    assert scene._count_parts(ids, (first + 1, 0, 256, 1), first) == 15


def test_shares_are_drawn_as_numpy_draws_them():
    ours, numpys = numpy_generator(0, "shares"), numpy_generator(0, "shares")
    shares = [share for share, _ in scene._SETUPS.values()]
    for _ in range(500):
        assert scene._sample_setup(ours)[0] == list(scene._SETUPS)[numpys.choice(len(shares), p=shares)]
    assert ours.random() == numpys.random()


def test_a_background_is_a_window_with_a_gain_per_channel():
    pool, flipped = places.pool_background(7, "training", 0), 0
    for number in range(12):
        image = places.as_light(*places.take_background(numpy_generator(number, "window"), pool, 64))
        draw = numpy_generator(number, "window")
        side = int(320 * draw.uniform(0.6, 1.0))
        x, y = draw.integers(0, 320 - side + 1, 2)
        window = pool[y : y + side, x : x + side]
        if draw.random() < 0.5:
            window, flipped = window[:, ::-1], flipped + 1
        plain = cv2.resize(np.ascontiguousarray(window), (64, 64), interpolation=cv2.INTER_LINEAR)
        if draw.random() < 0.12:
            plain = cv2.GaussianBlur(plain, (0, 0), 64 * draw.uniform(0.002, 0.012))
        gain = np.float32(draw.uniform(0.75, 1.2) / 255)
        gains = gain * (1 + 0.06 * draw.standard_normal(3)).astype(np.float32)
        assert (image == plain.astype(np.float32) * gains).all()  # to the bit
    assert 0 < flipped < 12
