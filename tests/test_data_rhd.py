"""The RHD reader: what it reads, and what it refuses in one line."""

import pickle
import shutil
import struct

import cv2
import numpy as np
import pytest
from PIL import Image
from small_hands import hand_between

from handlab.core import HandlabError
from handlab.data import rhd
from handlab.data.files import real_root
from handlab.data.rhd import (
    RHD,
    decode_depth,
    decode_frame,
    encode_depth,
    judge_frames,
    nearest_in_view,
)
from handlab.hand.skeleton import mirror_joints

K = np.array([[250, 0, 160], [0, 250, 160], [0, 0, 1]], np.float32)
ORDER = [0, 4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13, 20, 19, 18, 17]  # and back


def labels(seed=0, left_seen=True, right_seen=True):
    "Both hands, every joint at its own place, in RHD's order and metres."
    generator = np.random.default_rng(seed)
    hands = [hand_between(generator, (75, -20, 480), (90, 20, 520)) for _ in range(2)]
    hands[0] = mirror_joints(hands[0])  # the left hand, left of the right one
    xyz = (np.concatenate([hand[ORDER] for hand in hands]) / 1000).astype(np.float32)
    uv = (xyz @ K.T)[:, :2] / xyz[:, 2:]
    return dict(
        K=K, xyz=xyz, uv_vis=np.column_stack([uv, np.repeat([left_seen, right_seen], 21)]).astype(np.float32)
    )


def near_joints(uv, count):
    "The `count` pixels of a picture that are nearest to the joints."
    apart = np.ones((320, 320), np.uint8)
    apart[tuple(np.rint(uv[:, ::-1]).astype(int).T)] = 0
    return cv2.distanceTransform(apart, cv2.DIST_L2, 5).argsort(None, kind="stable")[:count]


def frame(seed=0, left=400, right=100):
    "color, coded depth, part ids and labels; `left` and `right` count the hands' pixels."
    generator, entry = np.random.default_rng(seed), labels(seed)
    parts = np.zeros(320 * 320, np.uint8)
    for hand, (count, first) in enumerate([(left, 2), (right, 18)]):
        pixels = near_joints(entry["uv_vis"][21 * hand : 21 * hand + 21, :2], count)
        parts[pixels] = generator.integers(first, first + 16, count)
    parts[np.flatnonzero(parts == 0)[:5000]] = 1
    return (
        generator.integers(0, 255, (320, 320, 3), np.uint8),
        generator.integers((22, 1, 1), (30, 250, 250), (320, 320, 3), np.uint8),  # 0.43 to 0.58 m
        parts.reshape(320, 320),
        entry,
    )


def array_opcodes(array):
    "An array as Python 2's pickle wrote it: raw bytes in a string."
    shape = b"".join(b"I%d\n" % length for length in array.shape)
    data = array.astype("<f4").tobytes()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n("
        + shape
        + b"tcnumpy\ndtype\n(U\x02f4I0\nI1\ntR"
        b"(I3\nU\x01<NNNI-1\nI-1\nI0\ntbI00\nT" + struct.pack("<i", len(data)) + data + b"tb"
    )


def python2_pickle(entries):
    "The annotation as the dataset's authors wrote it."
    body = b"".join(
        b"J"
        + struct.pack("<i", number)
        + b"}("
        + b"".join(
            b"U" + bytes([len(key)]) + key.encode() + array_opcodes(value) for key, value in entry.items()
        )
        + b"u"
        for number, entry in entries.items()
    )
    return b"\x80\x02}(" + body + b"u."


def write(root, frames, split="evaluation", depth=True):
    "Frames in the official layout."
    for folder in ("color", "mask", *(["depth"] if depth else [])):
        (root / split / folder).mkdir(parents=True, exist_ok=True)
    for number, (color, coded, parts, _) in frames.items():
        Image.fromarray(color).save(root / split / "color" / f"{number:05d}.png", compress_level=0)
        Image.fromarray(parts).save(root / split / "mask" / f"{number:05d}.png")
        if depth:
            Image.fromarray(coded).save(root / split / "depth" / f"{number:05d}.png", compress_level=0)
    (root / split / f"anno_{split}.pickle").write_bytes(
        python2_pickle({number: entry[3] for number, entry in frames.items()})
    )
    return root


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "rhd", {0: frame(0), 1: frame(1, left=100, right=300), 2: frame(2)})


def line(error):
    "The message of an error: one line with a place, a complaint and a way out."
    assert isinstance(error.value, HandlabError)
    text = str(error.value)
    assert "\n" not in text and ": " in text and "; " in text
    return text


# ---- what is read


def test_a_frame_comes_back_as_it_was_stored(root):
    reader, (color, coded, parts, entry) = RHD(root, "evaluation"), frame(0)
    sample = reader[0].check()
    assert (len(reader), reader.source, reader.name, reader.has_depth, sample.name, sample.side) == (
        3,
        "rhd",
        "rhd",
        True,
        "evaluation/00000",
        "left",
    )
    assert np.array_equal(sample.image, color)
    assert np.array_equal(sample.mask, (parts >= 2) & (parts <= 17))
    expected = (coded[..., 0].astype(float) * 256 + coded[..., 1]) / 65535 * 5
    assert np.abs(sample.depth - expected).max() < 1e-6
    assert np.allclose(sample.joints, entry["xyz"][ORDER] * 1000)
    assert np.array_equal(sample.uv, entry["uv_vis"][ORDER, :2])


def test_the_hand_with_more_pixels_is_taken(root):
    reader = RHD(root, "evaluation")
    assert [sample.side for sample in reader] == ["left", "right", "left"]
    assert np.allclose(reader[1].joints, labels(1)["xyz"][21:][ORDER] * 1000)
    assert np.array_equal(reader[1].mask, frame(1, 100, 300)[2] > 17)


def test_visible_is_the_third_column(root):
    entry = labels(0)
    entry["uv_vis"][3, 2] = 0
    assert decode_frame("x", *frame(0)[:3], entry).visible.tolist() == [
        joint != 2 for joint in range(21)
    ]  # 3 is canonical 2


def test_no_depth_folder_means_no_depth(tmp_path):
    reader = RHD(write(tmp_path / "rhd", {0: frame(0)}, depth=False), "evaluation")
    assert not reader.has_depth and reader[0].check().depth is None


def test_depth_code_by_hand():
    assert np.isclose(decode_depth(np.array([[[1, 2, 77]]], np.uint8))[0, 0], 258 * 5 / 65535)
    assert np.isnan(decode_depth(np.array([[[255, 255, 0], [0, 0, 0]]], np.uint8))).all()
    assert encode_depth(np.array([[np.nan, 7.0, 258 * 5 / 65535]], np.float32)).tolist() == [
        [[255, 255, 0], [255, 255, 0], [1, 2, 0]]
    ]


def test_construction_opens_no_image(root, monkeypatch):
    monkeypatch.setattr(rhd, "read_png", lambda path, *kind: pytest.fail(f"{path} was opened"))
    assert len(RHD(root, "evaluation")) == 3


def test_a_reader_travels(root):
    reader = pickle.loads(pickle.dumps(RHD(root, "evaluation")))
    assert np.array_equal(reader[2].image, frame(2)[0])
    with pytest.raises(IndexError):
        reader[3]


def test_identity_follows_the_content(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")  # with the dates of the files
    names = [
        RHD(root, "evaluation").identity(),
        RHD(copy, "evaluation").identity(),
        RHD(root, "evaluation", skip=[1]).identity(),
    ]
    Image.fromarray(frame(5, 40, 1000)[2]).save(root / "evaluation/mask/00001.png")
    names.append(RHD(root, "evaluation").identity())
    assert names[0] == names[1] and len(set(names)) == 3


def test_the_twin_names_itself(root):
    (root / "source.json").write_text('{"source": "sim-rhd"}')
    assert RHD(root, "evaluation").source == "sim-rhd"
    (root / "source.json").write_text("[]")
    with pytest.raises(HandlabError, match="source.json: it does not name a 'source'"):
        RHD(root, "evaluation")


def test_a_part_of_the_dataset_must_be_asked_for(root):
    for folder in ("color", "mask", "depth"):
        (root / f"evaluation/{folder}/00001.png").unlink()
    with pytest.raises(HandlabError) as error:
        RHD(root, "evaluation")
    assert "color: 1 of 3 images are not there, the first is 00001.png" in line(error)
    assert RHD(root, "evaluation", partial=True).frames.tolist() == [0, 2]


# ---- faulty frames


def judged(split, source="rhd", skip=(), **z):
    "What becomes of frames whose hands lie at these z (left, right), metres, None for unseen."
    entries = {
        int(key[1:]): labels(0, left_seen=seen[0], right_seen=seen[1]) for key, (values, seen) in z.items()
    }
    for key, (values, _) in z.items():
        for hand, value in enumerate(values):
            entries[int(key[1:])]["xyz"][21 * hand + 5, 2] = value
    stacked = {key: np.stack([entry[key] for entry in entries.values()]) for key in ("K", "xyz", "uv_vis")}
    return judge_frames(np.array(list(entries)), stacked, split, source, skip)


def test_hands_in_view_must_lie_before_the_camera():
    both, right = (True, True), (False, True)
    left_out, noted = judged(
        "evaluation",
        "sim-rhd",
        f0=((-0.01, 0.5), both),
        f1=((-0.01, 0.5), right),
        f2=((0.5, 0.0), right),
        f3=((0.09, 0.5), both),
        f4=((0.09, 0.5), right),
        f5=((0.11, 0.5), both),
    )
    assert sorted(left_out) == [0, 2] and "reaches behind the camera (z = -10 mm)" in left_out[0]
    assert noted == {3: "a hand in view comes as near as 90 mm"}


def test_the_known_list_is_for_official_data():
    sound = ((0.5, 0.5), (True, True))
    assert sorted(judged("training", f20500=sound, f28140=sound, f1012=sound)[0]) == [20500, 28140]
    assert sorted(judged("evaluation", f20500=sound, f1012=sound, f1324=sound)[0]) == [1012, 1324]
    assert judged("training", "sim-rhd", f20500=sound)[0] == {}
    assert judged("training", f7=sound, skip=[7])[0] == {7: "left out on request"}


def test_frames_left_out_do_not_come(root):
    entries = {number: frame(number) for number in range(3)}
    entries[1][3]["xyz"][4, 2] = -0.2
    reader = RHD(write(root, entries), "evaluation", skip=[2])
    assert [sample.name for sample in reader] == ["evaluation/00000"]
    assert [number for number, _ in reader.skipped] == [1, 2]


# ---- what is refused


def test_a_missing_folder(tmp_path):
    with pytest.raises(HandlabError) as error:
        RHD(tmp_path / "nothing", "evaluation")
    assert "nothing/evaluation: the folder is not there" in line(error)
    with pytest.raises(HandlabError) as error:
        RHD(tmp_path, "test")
    assert "split 'test': RHD has no such split; choose one of training, evaluation" in line(error)


@pytest.mark.parametrize("folder", ["color", "mask"])
def test_a_missing_image_folder(root, folder):
    import shutil

    shutil.rmtree(root / "evaluation" / folder)
    with pytest.raises(HandlabError) as error:
        RHD(root, "evaluation", partial=True)
    assert f"evaluation/{folder}: the folder is not there" in line(error)


def test_a_missing_annotation(root):
    (root / "evaluation/anno_evaluation.pickle").unlink()
    with pytest.raises(HandlabError) as error:
        RHD(root, "evaluation")
    assert "anno_evaluation.pickle: the file is not there" in line(error)


@pytest.mark.parametrize("folder", ["color", "mask", "depth"])
def test_a_missing_image(root, folder):
    (root / f"evaluation/{folder}/00002.png").unlink()
    with pytest.raises(HandlabError) as error:
        RHD(root, "evaluation")
    assert f"{folder}: 1 of 3 images are not there, the first is 00002.png" in line(error)


def test_nothing_unpacked_at_all(root):
    for path in (root / "evaluation/color").iterdir():
        path.unlink()
    with pytest.raises(HandlabError) as error:
        RHD(root, "evaluation", partial=True)
    assert "no annotated frame has its images" in line(error)


def test_an_annotation_that_misses_a_frame(root):
    (root / "evaluation/anno_evaluation.pickle").write_bytes(python2_pickle({0: labels(0), 2: labels(2)}))
    with pytest.raises(HandlabError) as error:
        RHD(root, "evaluation")
    assert "anno_evaluation.pickle: it has no label for 1 of 3 images, the first is 00001.png" in line(error)
    for folder in ("color", "mask", "depth"):
        (root / f"evaluation/{folder}/00001.png").unlink()
    with pytest.raises(HandlabError) as error:
        RHD(root, "evaluation")  # image gone as well: still a hole
    assert "it has no label for 1 of 3 images, the first is 00001.png" in line(error)
    assert len(RHD(root, "evaluation", partial=True)) == 2


@pytest.mark.parametrize("folder", ["color", "mask", "depth"])
def test_a_truncated_png(root, folder):
    path = root / f"evaluation/{folder}/00001.png"
    whole = path.read_bytes()
    reader = RHD(root, "evaluation")
    for share in (0, 0.001, 0.1, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(HandlabError) as error:
            reader[1]
        assert f"{folder}/00001.png: the image cannot be decoded" in line(error)
    path.write_bytes(whole[:-12])  # all pixels are there, only the end mark is not
    with pytest.raises(HandlabError, match="it is cut short"):
        reader[1]
    path.unlink()
    with pytest.raises(HandlabError, match="the file is not there"):
        reader[1]


def test_an_image_of_another_size_or_kind(root):
    reader = RHD(root, "evaluation")
    Image.new("RGB", (256, 320)).save(root / "evaluation/color/00000.png")
    with pytest.raises(HandlabError) as error:
        reader[0]
    assert "color/00000.png: the image is RGB 256 x 320, not RGB 320 x 320" in line(error)
    Image.new("RGB", (320, 320)).save(root / "evaluation/mask/00002.png")
    with pytest.raises(HandlabError) as error:
        reader[2]
    assert "mask/00002.png: the image is RGB 320 x 320, not L 320 x 320" in line(error)


def test_a_mask_without_a_hand(root):
    reader = RHD(root, "evaluation")
    Image.fromarray(np.ones((320, 320), np.uint8)).save(root / "evaluation/mask/00001.png")
    with pytest.raises(HandlabError) as error:
        reader[1]
    assert "evaluation/00001, mask: it has no pixel of a hand" in line(error) and "skip=" in line(error)
    Image.fromarray(np.full((320, 320), 34, np.uint8)).save(root / "evaluation/mask/00001.png")
    with pytest.raises(HandlabError, match="it holds the part id 34"):
        reader[1]


@pytest.mark.parametrize(
    "key, where", [("xyz", (3, 2)), ("uv_vis", (0, 0)), ("uv_vis", (7, 2)), ("K", (0, 0))]
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_label_that_is_no_number(root, key, where, value):
    entries = {number: frame(number) for number in range(3)}
    entries[1][3][key] = entries[1][3][key].copy()
    entries[1][3][key][where] = value
    write(root, entries)
    with pytest.raises(HandlabError) as error:
        RHD(root, "evaluation")
    assert "anno_evaluation.pickle, frame 1: a label is not a finite number" in line(error)
    assert len(RHD(root, "evaluation", skip=[1])) == 2


def test_labels_of_an_unseen_hand_may_be_anything(root):
    entries = {number: frame(number) for number in range(3)}
    entries[1] = (*frame(1, left=0)[:3], labels(1, left_seen=False))
    entries[1][3]["xyz"][4] = np.nan
    assert RHD(write(root, entries), "evaluation")[1].side == "right"


@pytest.mark.parametrize(
    "change",
    [
        dict(xyz=np.zeros((21, 3), np.float32)),
        dict(K=np.zeros((2, 2), np.float32)),
        dict(uv_vis=None),
        dict(xyz="none"),
    ],
)
def test_labels_of_another_shape(root, change):
    (root / "evaluation/anno_evaluation.pickle").write_bytes(
        pickle.dumps({0: labels(), 1: {**labels(), **change}, 2: labels()}, protocol=2)
    )
    with pytest.raises(HandlabError) as error:
        RHD(root, "evaluation")
    assert "anno_evaluation.pickle, frame 1: its labels are not K (3,3)" in line(error)


@pytest.mark.parametrize("content", [[], {}, {"a": 1}, 3])
def test_an_annotation_of_another_kind(root, content):
    (root / "evaluation/anno_evaluation.pickle").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(HandlabError) as error:
        RHD(root, "evaluation")
    assert "it does not hold labels by frame number" in line(error)


class Attack:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return __import__("os").system, (f"touch {self.marker}",)


class Evaluated(Attack):
    def __reduce__(self):
        return eval, (f'open({str(self.marker)!r}, "w")',)


@pytest.mark.parametrize("kind", [Attack, Evaluated])
def test_a_pickle_that_carries_code_is_not_run(root, tmp_path, kind):
    marker = tmp_path / "executed"
    data = pickle.dumps({0: {**labels(), "note": kind(marker)}, 1: labels(), 2: labels()}, protocol=2)
    (root / "evaluation/anno_evaluation.pickle").write_bytes(data)
    with pytest.raises(HandlabError) as error:
        RHD(root, "evaluation")
    assert "anno_evaluation.pickle: it cannot be read as arrays and plain containers" in line(error)
    assert not marker.exists()
    pickle.loads(data)  # the attack itself works
    assert marker.exists()


def test_a_pickle_cut_short(root):
    path = root / "evaluation/anno_evaluation.pickle"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(HandlabError) as error:
        RHD(root, "evaluation")
    assert "anno_evaluation.pickle: it cannot be read" in line(error)


def test_labels_that_contradict_each_other_are_left_out(root):
    entries = {number: frame(number) for number in range(3)}
    entries[0][3]["uv_vis"][7, 1] += 1.2
    entries[2][3]["uv_vis"][30, 2] = 0.5
    reader = RHD(write(root, entries), "evaluation")
    assert (
        reader.skipped
        == [(0, "a joint is 1.2 px from its own projection"), (2, "a flag of visibility is neither 0 nor 1")]
        and len(reader) == 1
    )
    entries = {number: frame(number) for number in range(3)}
    entries[1] = (*frame(1, left=0)[:3], labels(1, left_seen=False))
    entries[1][3]["uv_vis"][4, 0] += 50  # nobody sees this hand
    assert RHD(write(root, entries), "evaluation").skipped == []


def test_a_hand_behind_the_camera_is_no_sample():
    color, coded, parts, entry = frame(0)
    entry["xyz"][:21, 2] = -0.3
    with pytest.raises(HandlabError) as error:
        decode_frame("evaluation/00000", color, coded, parts, entry)
    assert "evaluation/00000, annotation: the left hand reaches behind the camera" in line(error)


# ---- the real thing

real = pytest.mark.skipif(real_root("rhd") is None, reason="no official RHD data")


@pytest.fixture(scope="module")
def official():
    return RHD(real_root("rhd"), "evaluation", partial=True)


@real
def test_real_faulty_frames_by_the_rule_alone(official):
    frames, stacked = rhd.read_annotation(rhd.annotation_path(official.root, "evaluation"))
    assert len(frames) == 2728
    nearest = nearest_in_view(stacked)
    assert frames[nearest <= 0].tolist() == [1012, 1324]  # without the known list
    assert frames[(nearest > 0) & (nearest < 0.1)].tolist() == [28, 339, 1157]
    assert [number for number, _ in official.skipped] == [1012, 1324]
    assert [number for number, _ in official.noted] == [28, 339, 1157]
    assert not rhd.disagreeing(
        frames[nearest > 0], {key: value[nearest > 0] for key, value in stacked.items()}
    )


@real
def test_real_frames_reproject(official):
    assert len(official) >= 102 and (official.has_depth or official[0].depth is None)
    for index in range(102):
        sample = official[index].check()
        uvw = sample.joints.astype(float) @ sample.K.T.astype(float)
        assert np.linalg.norm(uvw[:, :2] / uvw[:, 2:] - sample.uv, axis=1).max() < 1, sample.name
        lengths = np.linalg.norm(np.diff(sample.joints[9:13], axis=0), axis=1)  # the middle finger's bones
        assert (10 < lengths).all() and (lengths < 70).all(), sample.name


@real
def test_real_hands_lie_under_their_joints(official):
    "The visible joints of the chosen side fall on that side's mask far more often than on the other's."
    inside = []
    for index in range(102):
        sample = official[index]
        u, v = np.rint(sample.uv[sample.visible]).astype(int).clip(0, 319).T
        inside.append(sample.mask[v, u])
    assert np.concatenate(inside).mean() > 0.9
    assert [official[index].side for index in range(102)].count("left") == 53
