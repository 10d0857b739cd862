"The simulated hand's shape: closed skin, joints inside, persons that differ."

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlab.core import HandlabError
from handlab.settings import numpy_generator
from handlab.sim.shape import (
    BONE_COUNT,
    HALF_CHILDREN,
    HALF_PARENTS,
    Traits,
    cone_distance,
    field_on_grid,
    grid_axes,
    hand_cones,
    make_person,
    part_of,
    person_from,
    rest_skeleton,
    round_cone,
    sample_traits,
    skin_distance,
    smooth_minimum,
    with_half_bones,
)


@pytest.fixture(scope="module")
def persons():
    return [make_person(numpy_generator(3, "test person", i), "fast" if i % 2 else "fine") for i in range(6)]


def winding(vertices, faces, point):
    "How often a closed mesh winds round a point: 1 inside, 0 outside (Van Oosterom and Strackee's angles)."
    a, b, c = (vertices[faces[:, i]].astype(float) - point for i in range(3))
    la, lb, lc = (np.linalg.norm(x, axis=1) for x in (a, b, c))
    above = np.einsum("ij,ij->i", a, np.cross(b, c))
    below = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
    return 2 * np.arctan2(above, below).sum() / (4 * np.pi)


def test_every_edge_twice_and_in_both_directions(persons):
    for person in persons:
        directed = person.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
        forward = {tuple(edge) for edge in directed.tolist()}
        assert len(forward) == len(directed) and all((b, a) in forward for a, b in forward)
        assert len(person.vertices) - len(directed) // 2 + len(person.faces) == 2


def test_outward(persons):
    for person in persons:
        a, b, c = (person.vertices[person.faces[:, i]].astype(float) for i in range(3))
        face_normals = np.cross(b - a, c - a)
        assert np.einsum("ij,ij->", a, face_normals) > 0
        agree = (face_normals * person.normals[person.faces].mean(1)).sum(1) > 0
        assert agree.mean() > 0.995
        np.testing.assert_allclose(np.linalg.norm(person.normals, axis=1), 1, atol=1e-5)


def test_joints_inside_and_wrist_in_the_middle(persons):
    for person in persons:
        assert all(abs(winding(person.vertices, person.faces, joint) - 1) < 1e-3 for joint in person.joints)
        assert abs(winding(person.vertices, person.faces, person.joints[12] + [0, 15, 0])) < 1e-3
        distance = np.linalg.norm(person.vertices - person.joints[0], axis=1).min()
        assert distance > 9 * person.size, "the carpus lies deep"
        tips = [np.linalg.norm(person.vertices - person.joints[t], axis=1).min() for t in (4, 8, 12, 16, 20)]
        assert max(tips) < 5.5, "fingertips lie just under the skin"


def test_right_hand():
    joints = rest_skeleton(Traits())[0]
    to_palm = np.cross(joints[5] - joints[0], joints[17] - joints[0])
    thumb_to_palm = joints[4] - joints[[5, 9, 13, 17]].mean(0)
    assert to_palm @ [0, 0, -1] > 0 and thumb_to_palm[2] < 0


def test_face_counts(persons):
    assert all(6500 < len(p.faces) < 14000 for p in persons[::2]) and all(
        3500 < len(p.faces) < 8500 for p in persons[1::2]
    )


def test_deterministic_and_persons_differ():
    a, b = (make_person(numpy_generator(5, "same"), "fast") for _ in range(2))
    assert (
        a.traits == b.traits
        and np.array_equal(a.vertices, b.vertices)
        and np.array_equal(a.bone_weight, b.bone_weight)
    )
    crowd = [rest_skeleton(sample_traits(numpy_generator(1, "crowd", i))) for i in range(300)]
    bones = np.array(
        [np.linalg.norm(joints[[6, 10, 18, 3]] - joints[[5, 9, 17, 2]], axis=1) for joints, _, _ in crowd]
    )
    spread = bones.std(0) / bones.mean(0)
    assert (spread > 0.06).all() and (spread < 0.16).all()
    slender = np.array([radii[1, 1] / bone[0] for (_, _, radii), bone in zip(crowd, bones)])
    assert slender.std() / slender.mean() > 0.08
    shape = bones / bones.sum(1, keepdims=True)
    assert (shape.std(0) / shape.mean(0) > 0.02).all(), "not only scaled copies"


def test_no_variation_is_the_mean_adult():
    assert sample_traits(numpy_generator(0), 0.0) == Traits()
    np.testing.assert_allclose(
        np.linalg.norm(np.diff(rest_skeleton(Traits())[0][9:13], axis=0), axis=1), [46, 29.5, 24]
    )


def test_size_scales_everything():
    one, big = rest_skeleton(Traits()), rest_skeleton(replace(Traits(), size=1.2))
    np.testing.assert_allclose(big[0], 1.2 * one[0])
    np.testing.assert_allclose(big[2], 1.2 * one[2])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_round_cone_is_the_union_of_its_balls(seed):
    generator = np.random.default_rng(seed)
    start, end, (r0, r1) = (
        generator.uniform(-10, 10, 3),
        generator.uniform(-10, 10, 3),
        generator.uniform(1, 6, 2),
    )
    length = np.linalg.norm(end - start)
    r1 = np.clip(r1, r0 - 0.9 * length, r0 + 0.9 * length)
    point, share = generator.uniform(-25, 25, 3), np.linspace(0, 1, 20001)[:, None]
    balls = np.linalg.norm(point - start - share * (end - start), axis=1) - (r0 + share[:, 0] * (r1 - r0))
    assert abs(cone_distance(*point, round_cone(start, end, r0, r1)) - balls.min()) < 1e-3


@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(1, 12))
def test_smooth_minimum(a, b, reach):
    value = smooth_minimum(a, b, reach)
    assert min(a, b) - reach / 6 - 1e-9 <= value <= min(a, b) + 1e-9
    assert abs(value - smooth_minimum(b, a, reach)) < 1e-9


def test_skipping_blocks_never_skips_skin():
    traits = sample_traits(numpy_generator(9, "blocks"))
    joints, axes, radii = rest_skeleton(traits)
    cones, groups, _ = hand_cones(joints, axes, radii, traits)
    grid = grid_axes(joints, radii, traits.size, np.array([9.0, 11, 9]))
    field, scratch = field_on_grid(*grid, cones, groups), np.empty(6)
    direct = np.array(
        [
            [[skin_distance(x, y, z, cones, groups, scratch) for z in grid[2]] for y in grid[1]]
            for x in grid[0]
        ]
    )
    assert np.array_equal(field > 0, direct > 0)
    assert (
        (field[[0, -1]] > 0).all() and (field[:, [0, -1]] > 0).all() and (field[:, :, [0, -1]] > 0).all()
    ), "the grid holds the whole hand"


def test_weights(persons):
    for person in persons:
        assert person.bone_index.min() >= 0 and person.bone_index.max() < BONE_COUNT + len(HALF_CHILDREN)
        np.testing.assert_allclose(person.bone_weight.sum(1), 1, atol=1e-5)
        assert (person.bone_weight >= 0).all()
        elbow = person.vertices[:, 1] < -100
        assert (person.bone_index[elbow, 0] == 16).all() and np.allclose(person.bone_weight[elbow, 0], 1)
        assert person.vertices[:, 1].min() < -240 * person.size, "the forearm reaches out of any crop"


def test_half_bones_keep_the_sum_and_the_skeleton():
    weights = np.random.default_rng(0).dirichlet(np.full(BONE_COUNT, 0.2), 50)
    np.testing.assert_allclose(with_half_bones(weights).sum(1), 1)
    parents = dict(zip(HALF_CHILDREN.tolist(), HALF_PARENTS.tolist()))
    assert parents == {
        1: 0,
        2: 1,
        3: 2,
        4: 0,
        5: 4,
        6: 5,
        7: 0,
        8: 7,
        9: 8,
        10: 0,
        11: 10,
        12: 11,
        13: 0,
        14: 13,
        15: 14,
        16: 0,
    }


def test_parts_follow_the_bones(persons):
    person = persons[0]
    for finger in range(5):
        for k in range(3):
            middle = person.joints[[1 + 4 * finger + k, 2 + 4 * finger + k]].mean(0)
            nearest = np.argsort(np.linalg.norm(person.vertices - middle, axis=1))[:12]
            if finger == 0 and k == 0:
                nearest = nearest[:3]
            parts = [
                part_of(
                    np.full(3, person.part_weight[i, 0]),
                    np.full(3, person.part_weight[i, 1]),
                    np.full(3, person.finger[i]),
                    0.3,
                    0.3,
                    0.4,
                )
                for i in nearest
            ]
            assert max(set(parts), key=parts.count) == 2 + 3 * finger + 2 - k
    palm = np.argmin(np.linalg.norm(person.vertices - [3, 45, -25], axis=1))
    assert person.part_weight[palm, 0] < 0.5 and person.part_weight[palm, 1] < 0.5
    assert (person.part_weight[person.vertices[:, 1] < -40 * person.size, 1] > 0.5).all()


def test_unknown_detail():
    with pytest.raises(HandlabError, match="detail 'finest'.*fine"):
        person_from(Traits(), "finest")
