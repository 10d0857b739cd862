"Hands as numbers: views and angles by hand, sides, coverage, labels of a folder."

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from handlab.data.rhd import write_drawn
from handlab.settings import numpy_generator
from handlab.sim.compare import (
    Hands,
    bone_ratios,
    coverage,
    finger_angles,
    in_palm,
    measures,
    real_hands,
    twin_hands,
)
from handlab.sim.pose import pose_from, pose_hand, sample_pose
from handlab.sim.rhd import rhd_frame, rhd_traits
from handlab.sim.shape import person_from

PERSON = person_from(rhd_traits(numpy_generator(0, "compare")), "fast")


def hand(bends=(0, 0, 0), turn=Rotation.identity()):
    "A right hand (1,21,3), 500 mm from the camera; unturned it shows its back, fingers up."
    vector = np.zeros(24)
    vector[:20:4] = PERSON.rest_abduction
    vector[4:20].reshape(4, 4)[:, 1:] = np.radians(bends)
    posed = pose_hand(PERSON, pose_from(vector))[0] * [-1, 1, 1] * [-1, -1, -1]  # y down, z from the camera
    return (turn.apply(posed - posed[9]) + [0, 0, 500])[None]


def test_views():
    views = {
        (0, 0, 0): [0, 0, 1],  # the back
        (0, 180, 0): [0, 0, -1],  # the palm
        (90, 0, 0): [0, 1, 0],  # fingers to the camera
        (-90, 0, 0): [0, -1, 0],  # and from it
    }
    for (about_x, about_y, about_z), expected in views.items():
        turn = Rotation.from_euler("xyz", [about_x, about_y, about_z], degrees=True)
        way = in_palm(hand(turn=turn))[1][0]
        assert way @ expected > 0.97, (about_x, about_y, way)


def test_angles_are_those_that_bent_the_fingers_whatever_the_view():
    straight = finger_angles(in_palm(hand())[0])[0]
    turn = Rotation.random(random_state=3)
    bent = finger_angles(in_palm(hand((30, 60, 20), turn))[0])[0]
    np.testing.assert_allclose(bent[1:, 2:] - straight[1:, 2:], [[60, 20]] * 4, atol=1e-6)
    np.testing.assert_allclose(bent[1:, 1] - straight[1:, 1], 30, atol=5)


def test_bones_are_relative_to_the_palm():
    ratios = bone_ratios(np.concatenate([hand(), 2 * hand()]))
    np.testing.assert_allclose(ratios[0], ratios[1])
    assert (np.abs(ratios[0] - 1) < 1e-9).sum() == 1, "wrist to middle MCP itself"


def test_coverage_finds_what_a_set_lacks():
    generator, hands = numpy_generator(1, "compare"), {}
    for name, kind in (("flat", "flat"), ("flat too", "flat"), ("fist", "fist")):
        joints = [pose_hand(PERSON, sample_pose(generator, PERSON, kind))[0] for _ in range(150)]
        hands[name] = Hands(np.stack(joints) + [0, 0, 500], np.full(150, 21), np.full(150, 90.0))
    assert coverage(hands["flat"], hands["flat too"])["beyond"] < 0.15
    assert coverage(hands["flat"], hands["fist"])["beyond"] > 0.95
    assert measures(hands["fist"])["fists, %"] == "100" and measures(hands["flat"])["fists, %"] == "0"


def test_labels_of_a_folder(tmp_path):
    write_drawn(tmp_path, "evaluation", 6)
    hands = real_hands(tmp_path)
    assert hands.joints.shape == (len(hands.visible), 21, 3) and len(hands.size) == len(hands.visible) > 0
    with pytest.raises(Exception, match="anno_training"):
        real_hands(tmp_path, "training")


@pytest.fixture(scope="module")
def rhd_twin() -> Hands:
    return twin_hands(600)


def test_the_twin_shows_every_view_evenly(rhd_twin):
    "The cosines of even directions are uniform: a mean of 0 and a spread of 1 / sqrt(3) on each axis."
    way = in_palm(rhd_twin.joints)[1]
    assert abs(way.mean(0)).max() < 0.15 and np.allclose(way.std(0), 1 / np.sqrt(3), atol=0.08)


def test_the_twin_has_the_bones_and_the_habits_that_were_asked_for(rhd_twin):
    found = measures(rhd_twin)
    assert 2.5 < float(found["wrist to MCP over MCP to PIP, middle finger"]) < 2.8  # RHD's labels: 2.70
    assert float(found["PIPs bend together, correlation"]) > 0.46  # the twin before
    assert 8 < float(found["fists, %"]) < 25 and float(found["spread of bone lengths, %"]) > 7


def test_some_pictures_of_the_twin_are_grey():
    pictures = [np.asarray(rhd_frame(0, "training", 80 * index)[0]).astype(int) for index in range(40)]
    coloured = np.array([np.ptp(each, axis=2).mean() for each in pictures])
    assert 0 < (coloured < 4).mean() < 0.4 and np.median(coloured) > 8
