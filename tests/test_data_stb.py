"""The STB reader: what it reads, and what it refuses in one line."""

import pickle
import shutil
import struct

import numpy as np
import pytest
import scipy.io
from PIL import Image

from handlab.core import HandlabError
from handlab.data import stb, stb_depth
from handlab.data.files import real_root
from handlab.data.mat import read_mat
from handlab.data.prepare import CropSettings, prepare
from handlab.data.stb import (
    FRAMES,
    SPLITS,
    STB,
    STB_BONES,
    bone_lengths,
    camera_joints,
    decode_frame,
    image_path,
    label_path,
    read_labels,
    stored_joints,
)
from handlab.data.stb_depth import decode_depth, encode_depth, hand_mask, register_depth

# written down once more, from the dataset's descriptions and not from the code under test
COLOUR = np.array([[607.92271, 0, 314.78337], [0, 607.88192, 236.42484], [0, 0, 1]])
DEPTH = np.array([[475.62768, 0, 336.41179], [0, 474.77709, 238.77962], [0, 0, 1]])
SHIFT = np.array([-24.0381, -0.4563, -1.2326])


def rotation(x=0.00531, y=-0.01196, z=0.00301):
    "Rodrigues' formula by its series: exp of the cross product's matrix."
    cross, term, total = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]), np.eye(3), np.eye(3)
    for power in range(1, 12):
        term = term @ cross / power
        total = total + term
    return total


def to_colour(point):
    return rotation().T @ (np.asarray(point, float) - SHIFT)


def hand(index=0):
    "A label (3,21) of a left hand in STB's own order, mm: straight fingers, so that its bones are known."
    knuckles = np.array([[-28.0, -30, 0], [-12, -38, 0], [4, -39, 0], [20, -36, 0], [30, 2, 0]])
    ways = np.array([[-0.3, -0.95], [-0.1, -0.99], [0, -1], [0.12, -0.99], [0.75, -0.66]])
    bones = STB_BONES[::-1, 1:]
    points = [np.array([0.0, 0, 0])]
    for knuckle, way, lengths in zip(knuckles, ways, bones):
        for reach in (0, *np.cumsum(lengths)):
            points.append(knuckle + reach * np.array([*way / np.linalg.norm(way), 0.0]))
    return np.array(points).T + np.array([[5.0 * index], [20], [470 + 7 * index]])


def frame(index=0, seed=0):
    "color, depth code and label; the depth is a plate through the hand, seen from the depth camera."
    label = hand(index)
    mm = np.zeros((480, 640), np.float32)
    uv = (DEPTH @ label)[:2] / label[2]
    low, high = uv.min(1).astype(int) - 12, uv.max(1).astype(int) + [12, 80]  # down to the forearm
    mm[low[1] : high[1], low[0] : high[0]] = label[2, 0]
    color = np.random.default_rng(seed + index).integers(0, 255, (480, 640, 3), np.uint8)
    code = np.zeros((480, 640, 3), np.uint8)
    code[..., 0], code[..., 1] = mm.astype(int) % 256, mm.astype(int) // 256
    return color, code, label


def write(root, count=3, split="evaluation", source="sim-test", only=None):
    "Frames in the official layout, without the code under test."
    (root / "labels").mkdir(parents=True, exist_ok=True)
    for sequence in only or SPLITS[split]:
        (root / "images" / sequence).mkdir(parents=True, exist_ok=True)
        frames = [frame(index) for index in range(count)]
        for index, (color, code, _) in enumerate(frames):
            Image.fromarray(color).save(
                root / "images" / sequence / f"SK_color_{index}.png", compress_level=0
            )
            Image.fromarray(code).save(root / "images" / sequence / f"SK_depth_{index}.png")
        scipy.io.savemat(
            root / "labels" / f"{sequence}_SK.mat",
            {"handPara": np.stack([label for *_, label in frames], -1)},
        )
    if source:
        (root / "source.json").write_text(f'{{"source": "{source}"}}')
    return root


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return write(tmp_path_factory.mktemp("stb") / "set")


@pytest.fixture
def root(template, tmp_path):
    return shutil.copytree(template, tmp_path / "stb")


def line(error):
    "The message of an error: one line with a place, a complaint and a way out."
    assert isinstance(error.value, HandlabError)
    text = str(error.value)
    assert "\n" not in text and ": " in text and "; " in text
    return text


def refused(call, *said):
    with pytest.raises(HandlabError) as error:
        call()
    for words in said:
        assert words in line(error), line(error)


# ---- what is read


def test_a_frame_comes_back_as_it_was_stored(root):
    reader, (color, _, label) = STB(root, "evaluation"), frame(1)
    sample = reader[4].check()
    assert (
        len(reader),
        reader.source,
        reader.name,
        reader.has_depth,
        sample.name,
        sample.side,
        reader.skipped,
    ) == (6, "sim-test", "stb", True, "evaluation/B1Random/0001", "left", [])
    assert np.array_equal(sample.image, color) and sample.visible.all()
    assert np.allclose(sample.K, COLOUR)
    order = [
        17,
        18,
        19,
        20,
        13,
        14,
        15,
        16,
        9,
        10,
        11,
        12,
        5,
        6,
        7,
        8,
        1,
        2,
        3,
        4,
    ]  # thumb .. little, base to tip
    assert np.allclose(sample.joints[1:], [to_colour(label[:, joint]) for joint in order], atol=1e-3)
    wrist = label[:, 5] + 2 * (label[:, 0] - label[:, 5])  # 5 is the ring finger's knuckle
    assert np.allclose(sample.joints[0], to_colour(wrist), atol=1e-3)
    uvw = COLOUR @ sample.joints.T.astype(float)
    assert np.allclose(sample.uv, (uvw[:2] / uvw[2]).T, atol=0.01)


def test_splits_and_their_order():
    assert SPLITS["evaluation"] == ("B1Counting", "B1Random")
    assert list(SPLITS["training"]) == [
        f"B{number}{kind}" for number in (2, 3, 4, 5, 6) for kind in ("Counting", "Random")
    ]
    assert sum(len(names) for names in SPLITS.values()) * FRAMES == 18000


def test_depth_code_by_hand():
    code = np.array([[[2, 1, 0], [0, 0, 0], [255, 255, 0]]], np.uint8)
    mm = decode_depth(code)
    assert mm[0, 0] == 258 and np.isnan(mm[0, 1]) and mm[0, 2] == 65535 and mm.dtype == np.float32
    assert encode_depth(np.array([[258.0, np.nan, 499.6, 0]])).tolist() == [
        [[2, 1, 0], [0, 0, 0], [244, 1, 0], [0, 0, 0]]
    ]


def test_calibration_direction():
    assert np.allclose(stb_depth.sk_rotation(), rotation(), atol=1e-12)
    assert np.allclose(stb_depth.depth_to_colour(np.array([10.0, 20, 500])), to_colour([10, 20, 500]))
    assert to_colour([0, 0, 500])[0] > 10  # the colour camera stands to the left
    points = np.random.default_rng(0).normal(size=(4, 21, 3)) * 100 + [0, 0, 500]
    assert np.abs(stb_depth.colour_to_depth(stb_depth.depth_to_colour(points)) - points).max() < 1e-9


def test_stored_joints_are_the_reader_s_inverse():
    label = np.stack([hand(index) for index in range(3)])
    assert np.abs(stored_joints(camera_joints(label)) - label).max() < 1e-9


def test_stereo_cameras(root):
    for sequence in SPLITS["evaluation"]:
        for index in range(3):
            for side in ("left", "right"):
                Image.fromarray(frame(index)[0]).save(image_path(root, sequence, index, f"BB_{side}"))
        shutil.copy(label_path(root, sequence), label_path(root, sequence, "BB_left"))
    left, right = (
        STB(root, "evaluation", camera="BB_left")[0].check(),
        STB(root, "evaluation", camera="BB_right")[0].check(),
    )
    assert left.depth is None and left.mask is None and np.isclose(left.K[0, 0], 822.79041)
    assert np.allclose(left.joints[9], hand()[:, 9], atol=1e-3)  # as stored: no rigid motion
    assert np.allclose(left.joints - right.joints, [120.054, 0, 0], atol=1e-3)
    assert np.allclose(left.uv[:, 0] - right.uv[:, 0], 822.79041 * 120.054 / left.joints[:, 2], atol=1e-2)
    refused(lambda: STB(root, "evaluation", camera="left"), "camera 'left': STB has no such camera")


def test_registered_depth_of_single_pixels():
    "Each measured pixel must appear where its point projects, with its depth seen from the colour camera."
    generator = np.random.default_rng(0)
    rows, columns = np.meshgrid(np.arange(60, 420, 40), np.arange(120, 560, 40))
    z = generator.uniform(400, 700, rows.shape)
    mm = np.full((480, 640), np.nan, np.float32)
    mm[rows, columns] = z
    registered = register_depth(mm)
    for row, column, depth in zip(rows.ravel(), columns.ravel(), mm[rows, columns].ravel()):
        point = to_colour(np.linalg.inv(DEPTH) @ [column, row, 1] * depth)
        u, v, _ = COLOUR @ point / point[2]
        if not (2 < u < 637 and 2 < v < 477):
            continue
        assert abs(registered[round(v), round(u)] - point[2]) < 0.01
        ys, xs = np.nonzero(np.isfinite(registered[int(v) - 4 : int(v) + 6, int(u) - 4 : int(u) + 6]))
        assert (
            1 <= len(ys) <= 4
            and abs(ys.mean() + int(v) - 4 - v) < 0.75
            and abs(xs.mean() + int(u) - 4 - u) < 0.75
        )


def test_registration_takes_the_nearest_and_closes_no_real_hole():
    mm = np.full((480, 640), 600, np.float32)
    mm[200:280, 300:380] = 420
    mm[100:130, 100:130] = np.nan
    registered = register_depth(mm)
    plate = registered < 500
    low, high = (
        to_colour(np.linalg.inv(DEPTH) @ [u, v, 1] * 420) for u, v in ((299.5, 199.5), (379.5, 279.5))
    )
    (left, top), (right, bottom) = ((COLOUR @ point / point[2])[:2] for point in (low, high))
    ys, xs = np.nonzero(plate)
    assert (
        abs(xs.min() - left) < 1.2
        and abs(xs.max() - right) < 1.2
        and abs(ys.min() - top) < 1.2
        and abs(ys.max() - bottom) < 1.2
    )
    assert plate[ys.min() + 1 : ys.max(), xs.min() + 1 : xs.max()].all()  # no wall between, no hole
    hole = np.isnan(registered[:, :260])
    assert abs(hole.sum() - 30 * 30 * (607.9 * 607.9) / (475.6 * 474.8)) < 160
    wall = np.isfinite(registered) & ~plate
    assert np.abs(registered[wall] - 601.3).max() < 6  # nothing in between: no averages of wall and plate


def test_mask_is_the_hand_and_not_what_is_beside_or_behind(root):
    color, code, label = frame(0)
    sample = decode_frame("x", color, code, label)
    u, v = np.rint(sample.uv).astype(int).T
    assert sample.mask[v, u].all() and np.isfinite(sample.depth[v, u]).all()
    assert 5000 < sample.mask.sum() < 40000
    between = ((sample.uv[4] + sample.uv[8]) / 2).astype(int)  # thumb tip and index tip: plate, but no hand
    assert not sample.mask[between[1], between[0]] and np.isfinite(sample.depth[between[1], between[0]])
    joints = camera_joints(label)
    plate = np.full((480, 640), joints[:, 2].mean(), np.float32)
    near, far = (hand_mask(plate + shift, joints, COLOUR) for shift in (8, 30))
    assert near[v[8], u[8]] and not far.any()
    below = sample.uv[0] + np.array([0, 40 * COLOUR[1, 1] / joints[0, 2]])  # 40 mm below the wrist: forearm
    assert not near[int(below[1]), int(below[0])]


def test_small_holes_of_the_mask_are_closed_only_where_nothing_was_measured():
    joints = camera_joints(hand())
    plate = np.full((480, 640), joints[:, 2].mean(), np.float32)
    u, v = ((COLOUR @ joints[9])[:2] / joints[9, 2]).astype(int)
    holed, behind = plate.copy(), plate.copy()
    holed[v - 1 : v + 2, u - 1 : u + 2], behind[v - 1 : v + 2, u - 1 : u + 2] = np.nan, 900
    assert hand_mask(holed, joints, COLOUR)[v, u] and not hand_mask(behind, joints, COLOUR)[v, u]


@pytest.mark.parametrize("way", [(-260, 0), (240, 0), (0, -150), (0, 200)])
def test_a_joint_outside_the_picture_is_not_visible(way):
    color, code, label = frame()
    sample = decode_frame("x", color, None, label + np.array([[way[0]], [way[1]], [0]]))
    u, v = np.rint(sample.uv).T
    assert 0 < sample.visible.sum() < 21
    assert sample.visible.tolist() == ((u >= 0) & (u <= 639) & (v >= 0) & (v <= 479)).tolist()


def test_no_depth_at_all_means_no_depth(root):
    for path in root.rglob("SK_depth_*"):
        path.unlink()
    reader = STB(root, "evaluation")
    sample = reader[0].check()
    assert not reader.has_depth and sample.depth is None and sample.mask is None


def test_construction_opens_no_image(root, monkeypatch):
    monkeypatch.setattr(stb, "read_png", lambda path, *kind: pytest.fail(f"{path} was opened"))
    assert len(STB(root, "evaluation")) == 6


def test_a_reader_travels(root):
    reader = pickle.loads(pickle.dumps(STB(root, "evaluation")))
    assert np.array_equal(reader[2].image, frame(2)[0]) and np.array_equal(reader[-1].image, reader[5].image)
    with pytest.raises(IndexError):
        reader[6]
    assert [sample.name for sample in reader] == [
        f"evaluation/{sequence}/{index:04d}" for sequence in SPLITS["evaluation"] for index in range(3)
    ]


def test_identity_follows_the_content(root, template):
    names = [
        STB(template, "evaluation").identity(),
        STB(root, "evaluation").identity(),
        STB(root, "evaluation", skip=["B1Random/1"]).identity(),
    ]
    Image.fromarray(frame(2)[1][:, ::-1]).save(image_path(root, "B1Random", 1, depth=True))
    names.append(STB(root, "evaluation").identity())
    stored = read_labels(label_path(root, "B1Random"))
    scipy.io.savemat(label_path(root, "B1Random"), {"handPara": stored + 1})
    names.append(STB(root, "evaluation").identity())
    assert names[0] == names[1] and len(set(names)) == 4


def test_the_folder_names_itself(root):
    (root / "source.json").write_text('{"source": "sim-stb"}')
    assert STB(root, "evaluation").source == "sim-stb"
    (root / "source.json").write_text("[]")
    refused(lambda: STB(root, "evaluation"), "source.json: it does not name a 'source'")


def test_it_can_be_prepared(root, tmp_path):
    prepared = prepare(
        STB(root, "evaluation"), tmp_path / "crops", CropSettings(size=64), workers=1, show_progress=False
    )
    assert len(prepared) == 6 and np.asarray(prepared.mirrored).all() and (prepared.depth[0] > 0).any()


# ---- a part of the dataset


def test_a_part_must_be_asked_for(root):
    image_path(root, "B1Counting", 1).unlink()
    image_path(root, "B1Random", 0, depth=True).unlink()
    refused(
        lambda: STB(root, "evaluation"),
        "images/B1Counting: 1 of 3 images are not there, the first is SK_color_1.png",
        "partial=True",
    )
    assert STB(root, "evaluation", partial=True).frames == [
        ("B1Counting", 0),
        ("B1Counting", 2),
        ("B1Random", 1),
        ("B1Random", 2),
    ]


@pytest.mark.parametrize("lost", ["images/B1Random", "labels/B1Random_SK.mat"])
def test_a_missing_sequence(root, lost):
    shutil.rmtree(root / lost) if (root / lost).is_dir() else (root / lost).unlink()
    refused(lambda: STB(root, "evaluation"), lost, "is not there")
    assert {sequence for sequence, _ in STB(root, "evaluation", partial=True).frames} == {"B1Counting"}
    shutil.rmtree(root / "images/B1Counting")
    refused(lambda: STB(root, "evaluation", partial=True), "no labelled frame of evaluation has its images")


def test_more_images_than_labels(root):
    shutil.copy(image_path(root, "B1Random", 2), image_path(root, "B1Random", 3))
    refused(lambda: STB(root, "evaluation"), "it has no label for 1 of 4 images, the first is SK_color_3.png")
    assert len(STB(root, "evaluation", partial=True)) == 6


def test_an_official_sequence_has_1500_frames(root):
    (root / "source.json").unlink()
    for partial in (False, True):
        refused(
            lambda: STB(root, "evaluation", partial=partial),
            "B1Counting_SK.mat: it holds 3 frames, an official sequence has 1500",
        )
    stored = np.repeat(hand()[..., None], FRAMES, 2)
    for sequence in SPLITS["evaluation"]:
        scipy.io.savemat(label_path(root, sequence), {"handPara": stored})
    reader = STB(root, "evaluation", partial=True)
    assert reader.source == "stb" and len(reader) == 6
    refused(lambda: STB(root, "evaluation"), "1497 of 1500 images are not there, the first is SK_color_3.png")


def test_padded_or_foreign_names_are_not_frames(root):
    for name in ("SK_color_01.png", "SK_color_x.png", "BB_left_9.png", "SK_color_7.txt", "Thumbs.db"):
        (root / "images/B1Random" / name).write_bytes(b"")
    assert len(STB(root, "evaluation")) == 6


def test_skipped_frames_do_not_come(root):
    reader = STB(root, "evaluation", skip=["B1Random/1"])
    assert (
        len(reader) == 5
        and reader.skipped == [("evaluation/B1Random/0001", "left out on request")]
        and ("B1Random", 1) not in reader.frames
    )
    for wrong in ("B7Random/1", "B1Random", "17"):
        refused(lambda: STB(root, "evaluation", skip=[wrong]), "it names no frame")


# ---- what is refused


def test_wrong_roots_and_splits(tmp_path):
    refused(lambda: STB(tmp_path, "evaluation"), "images: the folder is not there")
    (tmp_path / "images").mkdir()
    refused(lambda: STB(tmp_path, "evaluation"), "labels: the folder is not there")
    refused(
        lambda: STB(tmp_path, "test"),
        "split 'test': STB has no such split; choose one of training, evaluation",
    )


def test_training_is_not_evaluation(root):
    refused(lambda: STB(root, "training"), "B2Counting_SK.mat: the file is not there")


LABELS = np.stack([hand(index) for index in range(3)], -1)


@pytest.mark.parametrize(
    "content, said",
    [
        ({"handPara": LABELS.transpose(1, 0, 2)}, "handPara has the shape (21, 3, 3), not (3, 21, frames)"),
        (
            {"handPara": LABELS.transpose(2, 1, 0)},
            "B1Random_SK.mat",
        ),  # three frames: only the content shows it
        ({"handPara": LABELS[:, :20]}, "handPara has the shape (3, 20, 3)"),
        ({"handPara": LABELS[..., 0]}, "handPara has the shape (3, 21)"),
        ({"handPara": LABELS[..., :0]}, "handPara has the shape (3, 21, 0)"),
        ({"handpara": LABELS}, "it holds no variable 'handPara'"),
        ({}, "it holds no variable 'handPara'"),
        ({"handPara": LABELS + 0j + 1j}, "not an array of real numbers"),
        ({"handPara": LABELS.astype(np.int32)}, "not an array of real numbers"),
        ({"handPara": LABELS > 400}, "not an array of real numbers"),
        ({"handPara": "three numbers"}, "not an array of real numbers"),
        ({"handPara": np.array([LABELS, "text"], object)}, "not an array of real numbers"),
        ({"handPara": {"x": LABELS}}, "not an array of real numbers"),
        ({"handPara": LABELS / 1000}, "the labels are in metres, not in millimetres"),
        ({"handPara": LABELS * 1000}, "long on average: that is no hand"),
        ({"handPara": LABELS / 10}, "the labels are in centimetres, not in millimetres"),
        ({"handPara": LABELS * 0}, "all its joints lie in one point"),
        ({"handPara": LABELS * np.nan}, "not one label is a finite number"),
        ({"handPara": LABELS - [[[0]], [[0]], [[600]]]}, "frame 0: the hand reaches behind the camera"),
    ],
)
def test_a_label_file_of_another_kind(root, content, said):
    for packed in (False, True):
        scipy.io.savemat(label_path(root, "B1Random"), content, do_compression=packed)
        refused(lambda: STB(root, "evaluation"), "B1Random_SK.mat", said)


def test_single_precision_is_fine(root):
    scipy.io.savemat(label_path(root, "B1Random"), {"handPara": LABELS.astype(np.float32)})
    assert np.allclose(STB(root, "evaluation")[3].joints, STB(root, "evaluation")[0].joints, atol=1e-3)


@pytest.mark.parametrize(
    "value, said",
    [
        (np.nan, "a label is not a finite number"),
        (np.inf, "a label is not a finite number"),
        (-3.0, "the hand reaches behind the camera"),
        (490.2, "its bones are not as long"),
    ],
)
def test_a_label_that_is_wrong_in_one_frame(root, value, said):
    wrong = LABELS.copy()
    wrong[2, 12, 1] = value
    scipy.io.savemat(label_path(root, "B1Random"), {"handPara": wrong})
    refused(lambda: STB(root, "evaluation"), f"B1Random_SK.mat, frame 1: {said}", 'skip="B1Random/1"')
    assert len(STB(root, "evaluation", skip=["B1Random/1"])) == 5
    if value != 490.2:
        refused(
            lambda: decode_frame("x", *frame(1)[:2], wrong[..., 1]), said
        )  # bones are judged over a sequence


def test_looser_bones_can_be_allowed(root):
    wrong = LABELS.copy()
    wrong[1, 12, 1] += 0.5
    scipy.io.savemat(label_path(root, "B1Random"), {"handPara": wrong})
    refused(lambda: STB(root, "evaluation"), "its bones are not as long")
    assert len(STB(root, "evaluation", rigid=1.0)) == 6


def test_a_label_file_that_is_none(root):
    path = label_path(root, "B1Random")
    whole = path.read_bytes()
    for broken in (
        b"",
        b"\x89HDF\r\n\x1a\n" + bytes(600),
        b"MATLAB 7.3 MAT-file" + bytes(600),
        b"not a mat file at all" * 40,
        pickle.dumps(LABELS),
        whole[:100],
        whole[:150],
        whole[: len(whole) // 2],
        whole[:-9],
    ):
        path.write_bytes(broken)
        refused(lambda: STB(root, "evaluation"), "B1Random_SK.mat: it")
    path.unlink()
    path.mkdir()
    refused(lambda: STB(root, "evaluation"), "it cannot be read (Is a directory)")


def test_mat_reader_agrees_with_scipy_both_ways_round(tmp_path):
    "Another byte order and integers as storage, written by hand from the format's description."
    numbers = np.arange(12.0).reshape(2, 6)
    for order, mark in (("<", b"IM"), (">", b"MI")):

        def element(kind, data):
            return struct.pack(order + "II", kind, len(data)) + data + bytes(-len(data) % 8)

        small = (
            struct.pack(order + "I", 1 | 1 << 16) + b"a" + bytes(3)
            if order == "<"
            else struct.pack(">I", 1 << 16 | 1) + b"a" + bytes(3)
        )
        body = (
            element(6, struct.pack(order + "II", 6, 0))
            + element(5, struct.pack(order + "ii", 2, 6))
            + small
            + element(2, numbers.ravel(order="F").astype("u1").tobytes())
        )
        data = b"MATLAB 5.0".ljust(124) + struct.pack(order + "H", 0x100) + mark + element(14, body)
        assert np.array_equal(read_mat(data, "a"), numbers)
        path = tmp_path / "x.mat"
        path.write_bytes(data)
        assert np.array_equal(scipy.io.loadmat(path)["a"], numbers)


@pytest.mark.parametrize("depth", [False, True])
def test_a_truncated_png(root, depth):
    path = image_path(root, "B1Random", 1, depth=depth)
    whole, reader = path.read_bytes(), STB(root, "evaluation")
    for share in (0, 0.001, 0.1, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        refused(lambda: reader[4], f"{path.name}: the image cannot be decoded")
    path.write_bytes(whole[:-12])
    refused(lambda: reader[4], "it is cut short")
    path.unlink()
    refused(lambda: reader[4], f"{path.name}: the file is not there")


def test_an_image_of_another_size_or_kind(root):
    reader = STB(root, "evaluation")
    for depth in (False, True):
        path = image_path(root, "B1Random", 1, depth=depth)
        whole = path.read_bytes()
        for image, said in (
            (Image.new("RGB", (640, 360)), "RGB 640 x 360"),
            (Image.new("L", (640, 480)), "L 640 x 480"),
            (Image.new("RGBA", (640, 480)), "RGBA 640 x 480"),
            (Image.new("I;16", (640, 480)), "I;16 640 x 480"),
        ):
            image.save(path)
            refused(lambda: reader[4], f"{path.name}: the image is {said}, not RGB 640 x 480")
        path.write_bytes(whole)
    Image.new("RGB", (640, 480)).save(path, "BMP")
    refused(lambda: reader[4], "it is not a PNG file")


def test_depth_and_colour_swapped(root):
    reader, (color, depth) = (
        STB(root, "evaluation"),
        (image_path(root, "B1Random", 1, depth=depth) for depth in (False, True)),
    )
    kept = color.read_bytes(), depth.read_bytes()
    color.write_bytes(kept[1])
    refused(
        lambda: reader[4], "evaluation/B1Random/0001, color: it has no blue", "colour and depth are swapped"
    )
    depth.write_bytes(kept[0])
    refused(lambda: reader[4], "colour and depth are swapped")
    color.write_bytes(kept[0])
    refused(
        lambda: reader[4],
        "evaluation/B1Random/0001, depth: only",
        "it is not the depth of this frame",
    )


def test_depth_of_another_hand(root):
    color, code, label = frame()
    for wrong in (np.zeros_like(code), np.roll(code, 300, 1), encode_depth(decode_depth(code) + 60)):
        refused(lambda: decode_frame("x", color, wrong, label), "x, depth: only")
    assert decode_frame("x", color, encode_depth(decode_depth(code) + 6), label).mask.any()


@pytest.mark.parametrize("kind", ["color", "depth", "labels", "packed labels"])
def test_files_corrupted_at_random(root, kind):
    "Every outcome is the right sample, or one clear error: never a wrong sample, never a crash."
    generator = np.random.default_rng(3)
    path = (
        label_path(root, "B1Random")
        if "labels" in kind
        else image_path(root, "B1Random", 1, depth=kind == "depth")
    )
    if kind == "packed labels":
        scipy.io.savemat(path, {"handPara": LABELS}, do_compression=True)
    if kind == "color":
        Image.fromarray(np.kron(frame()[0][::16, ::16], np.ones((16, 16, 1), np.uint8))).save(path)
    right, whole, failed = STB(root, "evaluation")[4], path.read_bytes(), 0
    for attempt in range(60):
        data, at = (
            bytearray(whole),
            int(generator.integers(len(whole)) if attempt % 2 else generator.integers(min(300, len(whole)))),
        )
        way = attempt % 5
        if way == 0:
            data = data[:at]
        elif way == 1:
            data[at : at + 1] = bytes(generator.integers(0, 256, 3, np.uint8))
        elif way == 2:
            data[at : at + 40] = bytes(40)
        else:
            data[at] ^= int(generator.integers(1, 256))
        path.write_bytes(bytes(data))
        try:
            sample = STB(root, "evaluation")[4].check()
        except HandlabError as error:
            assert "\n" not in str(error)
            failed += 1
            continue
        assert np.array_equal(sample.image, right.image)
        assert np.abs(sample.joints - right.joints).max() < (
            2.5 if kind == "labels" else 1e-6
        )  # bare numbers carry no check sum but the bones
        if kind != "labels":
            assert np.array_equal(sample.depth, right.depth, equal_nan=True)
    assert failed > 20


# ---- the real thing

real = pytest.mark.skipif(real_root("stb") is None, reason="no official STB labels")


@real
@pytest.mark.parametrize("sequence", SPLITS["evaluation"])
def test_real_labels(sequence):
    stored = read_labels(label_path(real_root("stb"), sequence))
    assert stored.shape == (3, 21, 1500)
    assert np.array_equal(stored, scipy.io.loadmat(label_path(real_root("stb"), sequence))["handPara"])
    stb.check_labels("x", stored)
    lengths = bone_lengths(stored).reshape(-1, 5, 4)
    published = [
        [31.02, 30, 28, 26],
        [41.87, 34, 22, 20],
        [39.05, 40, 25, 21],
        [38.83, 37, 23, 20],
        [36.77, 32, 15, 19],
    ]
    assert np.abs(lengths - published).max() < 0.01
    joints = camera_joints(np.moveaxis(stored, -1, 0))
    assert (
        np.abs(np.moveaxis(stored_joints(joints), 0, -1) - stored).max() < 1e-9
    )  # the inverse brings the file back
    assert (
        np.abs(
            (joints[:, 0] + joints[:, 13]) / 2 - np.stack([to_colour(point) for point in stored[:, 0].T])
        ).max()
        < 1e-9
    )  # the palm lies half way
    uvw = joints @ COLOUR.T
    assert (uvw[..., :2] / uvw[..., 2:] > 0).all() and (uvw[..., :2] / uvw[..., 2:] < [639, 479]).all()
    assert 380 < joints[..., 2].min() and joints[..., 2].max() < 650


@real
def test_real_labels_with_images_drawn_for_them(tmp_path):
    "The official label file, 1500 frames long, with a few images: a partial set."
    (tmp_path / "labels").mkdir()
    shutil.copy(label_path(real_root("stb"), "B1Random"), tmp_path / "labels")
    stored = read_labels(label_path(tmp_path, "B1Random"))
    for index in (0, 1499):
        depth = np.zeros((480, 640), np.float32)
        stb._draw_discs(stb_depth.colour_to_depth(camera_joints(stored[..., index])), DEPTH, depth)
        stb.write_frame(tmp_path, "B1Random", index, frame(index)[0], encode_depth(depth))
    reader = STB(tmp_path, "evaluation", partial=True)
    assert reader.source == "stb" and reader.frames == [("B1Random", 0), ("B1Random", 1499)]
    assert reader[1].check().mask.sum() > 3000
