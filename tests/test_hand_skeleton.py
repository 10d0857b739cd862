"""Orders, root, scale and mirror of the 21-joint skeleton, also on real STB and RHD labels where they are."""

import os
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from handlab.core import HandlabError, project_root
from handlab.hand.draw import draw_hand_2d, draw_hand_3d, frame_hands_3d
from handlab.hand.orders import (
    BIGHAND_TO_CANONICAL,
    RHD_TO_CANONICAL,
    STB_TO_CANONICAL,
    from_bighand,
    from_dexter,
    from_rhd,
    from_stb,
    stb_wrist,
)
from handlab.hand.skeleton import (
    BONES,
    FINGERS,
    JOINTS,
    PARENTS,
    ROOT,
    TIPS,
    WRIST,
    denormalise,
    example_hand,
    hand_scale,
    handedness,
    mirror_joints,
    normalise,
    root_of,
)

matplotlib.use("Agg")
examples = settings(deadline=None, max_examples=40)
coordinates = st.floats(-500, 500, allow_nan=False, width=32)
hands = arrays.arrays(np.float64, (3, 21, 3), elements=coordinates, fill=st.nothing())


def real_folder(variable, name):
    "A folder of real labels: named by the environment, in the project, or beside it; None if there is none."
    places = [
        os.environ.get(variable),
        project_root() / "data" / name,
        project_root().parent / "shared" / "data" / name,
    ]
    return next((Path(place) for place in places if place and Path(place).is_dir()), None)


def bone_lengths(joints):
    return np.linalg.norm(joints[..., BONES[:, 0], :] - joints[..., BONES[:, 1], :], axis=-1)


def test_tree():
    assert len(JOINTS) == len(set(JOINTS)) == len(PARENTS) == 21
    assert JOINTS[WRIST] == "wrist" and JOINTS[ROOT] == "middle_mcp" and JOINTS[ROOT + 1] == "middle_pip"
    assert BONES.shape == (20, 2) and (BONES[:, 1] == np.arange(1, 21)).all()
    for joint, parent in enumerate(PARENTS):
        if joint:
            assert JOINTS[parent] == "wrist" or JOINTS[parent].split("_")[0] == JOINTS[joint].split("_")[0]
    assert [JOINTS[tip] for tip in TIPS] == [f"{finger}_tip" for finger in FINGERS]


# The orders below are written out in words, finger by finger, from the datasets' own descriptions.
RHD_WORDS = """wrist
    thumb_tip thumb_ip thumb_mcp thumb_cmc index_tip index_dip index_pip index_mcp
    middle_tip middle_dip middle_pip middle_mcp ring_tip ring_dip ring_pip ring_mcp
    little_tip little_dip little_pip little_mcp""".split()
STB_WORDS = """wrist
    little_mcp little_pip little_dip little_tip ring_mcp ring_pip ring_dip ring_tip
    middle_mcp middle_pip middle_dip middle_tip index_mcp index_pip index_dip index_tip
    thumb_cmc thumb_mcp thumb_ip thumb_tip""".split()
BIGHAND_WORDS = """wrist
    thumb_cmc index_mcp middle_mcp ring_mcp little_mcp thumb_mcp thumb_ip thumb_tip
    index_pip index_dip index_tip middle_pip middle_dip middle_tip
    ring_pip ring_dip ring_tip little_pip little_dip little_tip""".split()


@pytest.mark.parametrize(
    "words,order",
    [(RHD_WORDS, RHD_TO_CANONICAL), (STB_WORDS, STB_TO_CANONICAL), (BIGHAND_WORDS, BIGHAND_TO_CANONICAL)],
)
def test_orders_in_words(words, order):
    assert tuple(words[place] for place in order) == JOINTS


def test_rhd_halves():
    both = np.random.default_rng(0).normal(size=(4, 42, 3))
    for side, start in (("left", 0), ("right", 21)):
        expected = np.stack([both[:, start + RHD_WORDS.index(name)] for name in JOINTS], 1)
        np.testing.assert_array_equal(from_rhd(both, side), expected)
        np.testing.assert_array_equal(from_rhd(torch.from_numpy(both), side).numpy(), expected)
    with pytest.raises(HandlabError, match="side"):
        from_rhd(both, "both")
    with pytest.raises(HandlabError, match="42"):
        from_rhd(both[:, :21], "left")


def test_bighand_lines():
    line = np.arange(126.0).reshape(2, 63)
    np.testing.assert_array_equal(from_bighand(line), from_bighand(line.reshape(2, 21, 3)))
    np.testing.assert_array_equal(from_bighand(line)[0, JOINTS.index("little_tip")], line[0, 60:63])


@pytest.mark.parametrize("library", [np.asarray, torch.as_tensor])
def test_dexter(library):
    tips = np.random.default_rng(0).normal(size=(2, 5, 3))
    tips[1, 2, 2] = 32001
    joints = np.asarray(from_dexter(library(tips)))
    assert joints.shape == (2, 21, 3)
    annotated = np.isfinite(joints)
    assert annotated[0].all(-1).nonzero()[0].tolist() == [4, 8, 12, 16, 20] and annotated[1].any(
        -1
    ).nonzero()[0].tolist() == [4, 8, 16, 20]
    np.testing.assert_array_equal(joints[0, [4, 8, 12, 16, 20]], tips[0])
    flat = np.full((5, 2), 32001.0)  # a 2D coordinate is never a mark
    assert np.isfinite(from_dexter(flat)).sum() == 10


@examples
@given(hands)
def test_stb_wrist_makes_the_palm_the_midpoint(joints):
    moved = stb_wrist(joints)
    np.testing.assert_allclose((moved[:, 0] + moved[:, 13]) / 2, joints[:, 0], atol=1e-9)
    np.testing.assert_array_equal(moved[:, 1:], joints[:, 1:])


@examples
@given(hands)
def test_mirror_twice(joints):
    np.testing.assert_array_equal(mirror_joints(mirror_joints(joints)), joints)
    np.testing.assert_array_equal(mirror_joints(joints)[..., 1:], joints[..., 1:])
    np.testing.assert_allclose(bone_lengths(mirror_joints(joints)), bone_lengths(joints))
    np.testing.assert_array_equal(mirror_joints(torch.from_numpy(joints)).numpy(), mirror_joints(joints))


@examples
@given(hands, st.sampled_from(["middle_mcp", "palm", "wrist"]), st.floats(5, 80))
def test_normalise_round_trip(joints, root, length):
    joints = joints.copy()
    joints[:, ROOT + 1] = joints[:, ROOT] + (0, 0.6 * length, 0.8 * length)
    pose, root_mm, scale = normalise(joints, root)
    np.testing.assert_allclose(scale, length)
    np.testing.assert_allclose(np.linalg.norm(pose[:, ROOT] - pose[:, ROOT + 1], axis=-1), 1)
    np.testing.assert_allclose(root_of(pose, root), 0, atol=1e-6)
    np.testing.assert_allclose(denormalise(pose, root_mm, scale), joints, atol=1e-6)
    tensors = normalise(torch.from_numpy(joints), root)
    for tensor, array in zip(tensors, (pose, root_mm, scale)):
        np.testing.assert_allclose(tensor.numpy(), array, rtol=1e-6, atol=1e-6)
    larger, _, _ = normalise(joints * 3 + (10, -20, 700), root)  # neither place nor size is left in the pose
    np.testing.assert_allclose(larger, pose, atol=1e-4)


def test_roots_by_hand():
    joints = np.zeros((21, 3))
    joints[0] = 0, 80, 400
    joints[9] = 10, 0, 420
    joints[10] = 10, -40, 450
    np.testing.assert_allclose(root_of(joints, "palm"), [5, 40, 410])
    np.testing.assert_allclose(root_of(joints), [10, 0, 420])
    assert hand_scale(joints) == 50
    with pytest.raises(HandlabError, match="thumb"):
        root_of(joints, "thumb")


def test_handedness_of_a_fist():
    flat = example_hand()  # a right hand with its palm to the camera
    joints = flat.copy()
    joints[[5, 9, 13, 17]] = np.linspace(flat[5], flat[5] + [flat[17, 0] - flat[5, 0], 0, 0], 4)
    for knuckle in (5, 9, 13, 17):
        joints[knuckle + 1] = joints[knuckle] + [0, 0, -40]  # bent square at the knuckle, towards the camera
        joints[knuckle + 2] = joints[knuckle + 1] + [0, 25, 0]  # back down to the wrist
        joints[knuckle + 3] = joints[knuckle + 2] + [0, 5, 20]  # and into the palm
    assert handedness(joints) == pytest.approx(25) and handedness(mirror_joints(joints)) == pytest.approx(-25)
    turned = joints @ np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0].T
    assert abs(handedness(turned)) == pytest.approx(25)


@pytest.mark.parametrize("broken", [False, True])
def test_drawing(broken):
    import matplotlib.pyplot as plt

    joints = example_hand()
    if broken:
        joints[5:9] = np.nan
    figure = plt.figure()
    flat, space = figure.add_subplot(121), figure.add_subplot(122, projection="3d")
    draw_hand_2d(flat, joints[:, :2], visible=np.arange(21) < 15, label="hand")
    draw_hand_3d(space, joints, colour="black", label="hand")
    frame_hands_3d(space, joints, ticks=True)
    figure.canvas.draw()
    assert len(flat.lines) == 40 and len(space.lines) == 20
    assert [len(axes.get_legend_handles_labels()[1]) for axes in (flat, space)] == [1, 1]
    limits = np.array([space.get_xlim(), space.get_ylim(), space.get_zlim()])
    np.testing.assert_allclose(
        np.diff(limits), np.diff(limits)[:1].repeat(3, 0)
    )  # a millimetre is a millimetre on every axis
    plt.close(figure)


# Bones of STB's one rigid set, in mm, as they are listed for the dataset.
STB_FINGER_BONES = dict(
    thumb=(30, 28, 26), index=(34, 22, 20), middle=(40, 25, 21), ring=(37, 23, 20), little=(32, 15, 19)
)
STB_PALM_TO_MCP = dict(little=36.77, ring=38.83, middle=39.05, index=41.87, thumb=31.02)


def test_real_stb_bones():
    folder = real_folder("HANDLAB_REAL_STB", "stb")
    files = sorted((folder / "labels").glob("*_SK.mat")) if folder else []
    if not files:
        pytest.skip("no real STB labels (HANDLAB_REAL_STB)")
    from scipy.io import loadmat

    for file in files:
        raw = (
            np.moveaxis(loadmat(file)["handPara"], -1, 0).swapaxes(1, 2).astype(float)
        )  # (3,21,F) -> (F,21,3)
        assert raw.shape == (1500, 21, 3)
        palm, joints = from_stb(raw, wrist=False), from_stb(raw)
        lengths = np.linalg.norm(np.diff(palm[:, 1:].reshape(-1, 5, 4, 3), axis=2), axis=-1)
        np.testing.assert_allclose(
            lengths, np.broadcast_to([STB_FINGER_BONES[finger] for finger in FINGERS], lengths.shape), atol=1
        )
        reach = np.linalg.norm(palm[:, 1::4] - palm[:, :1], axis=-1)
        np.testing.assert_allclose(
            reach, np.broadcast_to([STB_PALM_TO_MCP[finger] for finger in FINGERS], reach.shape), atol=0.05
        )
        np.testing.assert_allclose(hand_scale(joints), 40, atol=1)
        np.testing.assert_allclose(np.linalg.norm(joints[:, 0] - joints[:, 13], axis=-1), 2 * 38.83, atol=0.1)
        assert np.median(handedness(joints)) < 0  # STB shows left hands only


def test_real_rhd_sides():
    folder = real_folder("HANDLAB_REAL_RHD", "rhd")
    file = folder / "evaluation" / "anno_evaluation.pickle" if folder else None
    if not file or not file.is_file():
        pytest.skip("no real RHD annotation (HANDLAB_REAL_RHD)")
    from handlab.core import read_pickle

    frames = list(read_pickle(file).values())
    both = np.stack([frame["xyz"] for frame in frames]) * 1000.0
    for side, sign in (("left", -1), ("right", 1)):
        joints = from_rhd(both, side)
        joints = joints[joints[..., 2].min(-1) > 100]
        assert (sign * handedness(joints) > 0).mean() > 0.99
        lengths = bone_lengths(joints).reshape(-1, 5, 4)[:, 1:]
        assert (
            np.median(lengths, 0)[:, 1] > np.median(lengths, 0)[:, 2]
        ).all()  # a finger's first bone is longer than its second


def test_the_stand_in_root_of_tips():
    joints = np.random.default_rng(0).normal(0, 60, (4, 21, 3))
    joints[1, 8] = joints[2, 4] = np.nan
    expected = np.stack(
        [np.nanmean(hand[[4, 8, 12, 16, 20]], 0) for hand in joints]
    )  # other joints have no say
    for values in (joints, torch.from_numpy(joints)):
        pose, root, scale = normalise(values, "tips")
        np.testing.assert_allclose(np.asarray(root), expected)
        np.testing.assert_allclose(np.asarray(scale), hand_scale(joints))  # a bone that is annotated is kept
        np.testing.assert_allclose(
            np.asarray(pose), (joints - expected[:, None]) / hand_scale(joints)[:, None, None]
        )
    joints[3, 10] = np.nan
    assert normalise(joints, "tips")[2][3] == 33 and np.isnan(normalise(joints)[2][3])
