"The simulated hand in motion: limits, kinematics against SciPy, contacts, skin."

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from handlab.core import HandlabError
from handlab.settings import numpy_generator
from handlab.sim.pose import (
    GESTURES,
    gesture_style,
    half_rotation,
    joint_limits,
    mirror_posed,
    overlap,
    penetration_depth,
    pose_from,
    pose_hand,
    pose_path,
    sample_pose,
    skin_hand,
)
from handlab.sim.shape import Traits, make_person, person_from

PARENTS = [-1, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11, 0, 13, 14, 15, 0, 17, 18, 19]


@pytest.fixture(scope="module")
def persons():
    return [make_person(numpy_generator(2, "pose test", i), "fast") for i in range(8)]


@pytest.fixture(scope="module")
def sampled(persons):
    generator = numpy_generator(2, "pose test")
    return [(persons[i % 8], sample_pose(generator, persons[i % 8])) for i in range(2000)]


def reference(person, vector):
    "Forward kinematics once more, by SciPy's rotations."
    posed, rotations = person.joints.copy(), {}
    for finger in range(5):
        whole = Rotation.identity()
        for k in range(3):
            lateral, along, dorsal = person.frames[finger, k]
            if k == 0:
                if finger == 0:
                    whole = whole * Rotation.from_rotvec(along * vector[20])
                whole = whole * Rotation.from_rotvec(
                    dorsal * (vector[4 * finger] - person.rest_abduction[finger])
                )
            whole = whole * Rotation.from_rotvec(-lateral * vector[4 * finger + 1 + k])
            start = 1 + 4 * finger + k
            posed[start + 1] = posed[start] + whole.apply(person.joints[start + 1] - person.joints[start])
            rotations[1 + 3 * finger + k] = whole.as_matrix()
    hand = Rotation.from_euler(
        "ZXY", [vector[22], -vector[21], vector[23]]
    )  # deviation, flexion, twist of the hand against the forearm
    rotations[16] = hand.inv().as_matrix()
    return posed, rotations


def within_limits(seed):
    low, high = joint_limits()
    return low + (high - low) * np.random.default_rng(seed).random(24)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_kinematics_against_scipy(seed):
    person, vector = KIN[seed % 2], within_limits(seed)
    posed, transforms = pose_hand(person, pose_from(vector))
    expected, rotations = reference(person, vector)
    np.testing.assert_allclose(posed, expected, atol=1e-9)
    for bone, rotation in rotations.items():
        np.testing.assert_allclose(transforms[bone, :, :3], rotation, atol=1e-9)
    for finger in range(5):
        for k in range(3):
            for joint in (1 + 4 * finger + k, 2 + 4 * finger + k):  # a bone carries both of its joints
                moved = transforms[1 + 3 * finger + k] @ np.r_[person.joints[joint], 1]
                np.testing.assert_allclose(moved, posed[joint], atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_bones_keep_their_length(seed):
    person = KIN[seed % 2]
    posed = pose_hand(person, pose_from(within_limits(seed)))[0]

    def length(joints):
        return np.array([np.linalg.norm(joints[i] - joints[PARENTS[i]]) for i in range(1, 21)])

    np.testing.assert_allclose(length(posed), length(person.joints), rtol=1e-9)


KIN = [person_from(Traits(), "fast"), make_person(numpy_generator(4, "kinematics"), "fast")]


def test_samples_stay_within_limits(sampled):
    low, high = joint_limits()
    vectors = np.stack([pose.vector for _, pose in sampled])
    assert (vectors >= low - 1e-12).all() and (vectors <= high + 1e-12).all()
    assert (np.degrees(vectors.std(0)) > 1.5).all(), "every joint moves"
    for finger in range(1, 5):
        assert np.corrcoef(vectors[:, 4 * finger + 2], vectors[:, 4 * finger + 3])[0, 1] > 0.6, (
            "DIP follows PIP"
        )
    assert (
        np.corrcoef(vectors[:, 14], vectors[:, 18])[0, 1]
        > np.corrcoef(vectors[:, 6], vectors[:, 18])[0, 1]
        > 0
    ), "neighbours are coupled"


def test_bent_fingers_fan_out_less(sampled):
    vectors = np.stack([pose.vector for _, pose in sampled])
    assert vectors[vectors[:, 5] > 1.2, 4].std() < 0.5 * vectors[vectors[:, 5] < 0.2, 4].std()


def test_fingers_do_not_sink_in(sampled):
    depths = np.array([penetration_depth(pose_hand(person, pose)[0], person) for person, pose in sampled])
    assert (depths > 3.5).mean() <= 0.002
    assert (depths > 0).mean() > 0.2, "yet fingers do touch"


def capsule_depth_by_samples(a, b, c, d, radii):
    t = np.linspace(0, 1, 401)[:, None]
    first, second = a + t * (b - a), c + t * (d - c)
    return (radii[0] + radii[1] - np.linalg.norm(first[:, None] - second[None], axis=2)).max()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_overlap_against_brute_force(seed):
    generator = np.random.default_rng(seed)
    a, b, c, d = generator.uniform(-20, 20, (4, 3))
    radii = generator.uniform(3, 9, 2)
    assert (
        abs(
            overlap(a, b, c, d, radii[0], radii[0], radii[1], radii[1])
            - capsule_depth_by_samples(a, b, c, d, radii)
        )
        < 0.05
    )


def test_skin_at_rest_is_the_rest_skin(persons):
    for person in persons[:3]:
        rest = np.zeros(24)
        rest[:20:4] = person.rest_abduction
        vertices, normals = skin_hand(person, pose_hand(person, pose_from(rest))[1])
        np.testing.assert_allclose(vertices, person.vertices, atol=3e-4)
        np.testing.assert_allclose(normals, person.normals, atol=1e-3)


def test_skin_against_a_plain_sum():
    person, vector = KIN[1], within_limits(7)
    transforms = pose_hand(person, pose_from(vector))[1]
    moved, _ = skin_hand(person, transforms)
    single = np.flatnonzero((person.bone_weight[:, 0] > 0.9999) & (person.bone_index[:, 0] < 17))
    assert len(single) > 300
    matrices = transforms[person.bone_index[single, 0]]
    expected = np.einsum("nij,nj->ni", matrices[:, :, :3], person.vertices[single]) + matrices[:, :, 3]
    np.testing.assert_allclose(moved[single], expected, atol=0.05)


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.floats(-1, 1)] * 3), st.floats(0.01, 3))
def test_half_rotation(axis, angle):
    axis = np.array(axis) + [1e-3, 0, 0]
    rotvec = axis / max(np.linalg.norm(axis), 1e-6) * angle
    np.testing.assert_allclose(
        half_rotation(Rotation.from_rotvec(rotvec).as_matrix()),
        Rotation.from_rotvec(rotvec / 2).as_matrix(),
        atol=1e-6,
    )


def test_skin_stretches_little(sampled, persons):
    stretches = []
    for person, pose in sampled[:160]:
        edges = np.unique(np.sort(person.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1), axis=0)

        def length(vertices):
            return np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1)

        stretches.append(length(skin_hand(person, pose_hand(person, pose)[1])[0]) / length(person.vertices))
    assert np.percentile(np.concatenate(stretches), 99.9) < 2.2


def test_a_bent_finger_keeps_its_thickness():
    person, vector = KIN[0], np.zeros(24)
    vector[:20:4], vector[10] = person.rest_abduction, np.radians(100)
    posed, transforms = pose_hand(person, pose_from(vector))
    vertices, _ = skin_hand(person, transforms)
    back = person.frames[2, 1, 2]
    outward = (transforms[7, :, :3] @ back + transforms[8, :, :3] @ back) / 2
    knuckle = ((vertices - posed[10]) @ (outward / np.linalg.norm(outward)))[person.finger == 2].max()
    assert knuckle > 0.8 * person.radii[2, 1], "linear blending alone would leave .64"


def test_mirror(persons):
    person = persons[0]
    posed, transforms = pose_hand(person, sample_pose(numpy_generator(0, "mirror"), person))
    vertices, _ = skin_hand(person, transforms)
    left, joints, faces = mirror_posed(vertices, posed, person.faces)

    def volume(v, f):
        return (
            np.einsum(
                "ij,ij->",
                v[f[:, 0]].astype(float),
                np.cross(v[f[:, 1]].astype(float), v[f[:, 2]].astype(float)),
            )
            / 6
        )

    np.testing.assert_allclose(volume(left, faces), volume(vertices, person.faces), rtol=1e-4)
    np.testing.assert_array_equal(joints, posed * [-1, 1, 1])
    assert left.dtype == vertices.dtype and faces.flags.c_contiguous


def test_deterministic(persons):
    first, second = (
        [sample_pose(generator, persons[0]).vector for _ in range(20)]
        for generator in (numpy_generator(1, "a"), numpy_generator(1, "a"))
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first[0], sample_pose(numpy_generator(1, "b"), persons[0]).vector)


def test_gestures_look_like_their_names():
    person, generator = KIN[0], numpy_generator(0, "gestures")
    assert len(GESTURES) >= 20
    posed = {
        name: pose_hand(person, sample_pose(generator, person, name, wrist=0, variation=0.02))[0]
        for name in GESTURES
    }

    def reach(name, finger):
        return np.linalg.norm(posed[name][4 + 4 * finger] - posed[name][1 + 4 * finger]) / np.linalg.norm(
            person.joints[4 + 4 * finger] - person.joints[1 + 4 * finger]
        )

    assert all(reach("fist", f) < 0.6 for f in range(1, 5)) and all(
        reach("open", f) > 0.97 for f in range(1, 5)
    )
    assert reach("point", 1) > 0.97 and max(reach("point", f) for f in (2, 3, 4)) < 0.6
    assert min(reach("victory", f) for f in (1, 2)) > 0.97 and max(reach("victory", f) for f in (3, 4)) < 0.6
    assert min(reach("call", f) for f in (0, 4)) > 0.95 and max(reach("call", f) for f in (1, 2, 3)) < 0.6
    touching = person.radii[0, 3] + person.radii[1, 3] + 4
    for name, tip in (
        ("ok", 8),
        ("pinch", 8),
        ("thumb_to_middle", 12),
        ("thumb_to_ring", 16),
        ("thumb_to_little", 20),
    ):
        assert np.linalg.norm(posed[name][4] - posed[name][tip]) < touching, name

    def gap(name):
        return np.linalg.norm(posed[name][8] - posed[name][20])

    assert gap("spread") > 1.4 * gap("flat")
    assert (
        (posed["crossed"][8, 0] - posed["crossed"][12, 0])
        > 0
        > (posed["crossed"][6, 0] - posed["crossed"][10, 0])
    ), "the tips have changed sides"


def test_unknown_gesture():
    with pytest.raises(HandlabError, match="gesture 'salute'.*fist"):
        gesture_style("salute")


def test_path_is_smooth_and_within_limits(persons):
    generator, low_high = numpy_generator(0, "path"), joint_limits()
    stops = [sample_pose(generator, persons[0]) for _ in range(3)]
    path = np.stack([pose.vector for pose in pose_path(stops, 30)])
    assert path.shape == (61, 24) and np.allclose(path[[0, 30, 60]], [stop.vector for stop in stops])
    assert (path >= low_high[0] - 1e-9).all() and (path <= low_high[1] + 1e-9).all()
    speed = np.abs(np.diff(path, axis=0)).max(1)
    assert max(speed[0], speed[29], speed[30], speed[59]) < 0.02 * speed.max(), "it rests at each stop"
