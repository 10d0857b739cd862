"""The BigHand reader: both forms of the layout, what it costs to open, and what it refuses in one line."""

import pickle
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from small_hands import hand_between

from handlab.core import HandlabError
from handlab.data import bighand
from handlab.data.batches import Augment, Batches
from handlab.data.bighand import ANNOTATION, BigHand, image_name, threshold_mask
from handlab.data.files import SIGNATURE, decode_png
from handlab.data.prepare import CropSettings, crop_sample, mirror_sample, prepare

K = np.array([[475.065948, 0, 315.944855], [0, 475.065857, 245.287079], [0, 0, 1]])
STORED_TO_CANONICAL = [0, 1, 6, 7, 8, 2, 9, 10, 11, 3, 12, 13, 14, 4, 15, 16, 17, 5, 18, 19, 20]


def numbers(seed=0):
    "21 joints (21,3) mm of a hand in the dataset's order, each at its own place, all in the picture."
    hand = hand_between(np.random.default_rng(seed), (-40, -40, 400), (40, 40, 440))
    return hand[np.argsort(STORED_TO_CANONICAL)].round(4)


def depth_of(seed=0):
    "A wall of noise around the hand's distance, u16 mm, with holes."
    depth = np.random.default_rng(seed).integers(300, 600, (480, 640)).astype(np.uint16)
    depth[::7, ::5] = 0
    return depth


def text_line(first, joints):
    return "\t".join([first, *(f"{value:.4f}" for value in joints.ravel())])


def write_part(root, part, seeds, first=1, text=None):
    "A folder of the official layout; frame numbers count from `first`."
    folder = root / part
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        Image.fromarray(depth_of(seed)).save(folder / f"image_D{first + number:08d}.png")
    path = root / ANNOTATION / f"{part}_loc_shift_v2.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        text
        if text is not None
        else "\n".join(text_line(f"{first + number:08d}", numbers(seed)) for number, seed in enumerate(seeds))
        + "\n"
    )
    return path


@pytest.fixture
def root(tmp_path):
    write_part(tmp_path / "big", "Subject_1/76 150", [0, 1, 2], first=5)
    write_part(tmp_path / "big", "Subject_1/ego", [3, 4])
    write_part(tmp_path / "big", "Subject_2/1 75", [5, 6])
    write_part(tmp_path / "big", "Subject_10/1 75", [7, 8])
    return tmp_path / "big"


def text_of(root, part):
    return root / ANNOTATION / f"{part}_loc_shift_v2.txt"


def refused(call):
    "The one line of an error."
    with pytest.raises(HandlabError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and ": " in text and "; " in text
    return text


# ---- what is read


def test_a_frame_comes_back_as_it_was_stored(root):
    reader = BigHand(root, "all")
    sample, stored, depth = reader[1].check(), numbers(1), depth_of(1)
    assert (len(reader), reader.source, reader.name, sample.name, sample.side, sample.image) == (
        9,
        "bighand",
        "bighand",
        "Subject_1/76 150/image_D00000006",
        "right",
        None,
    )
    assert np.allclose(sample.joints, stored[STORED_TO_CANONICAL], atol=1e-4)
    uvw = stored[STORED_TO_CANONICAL] @ K.T
    assert np.allclose(sample.uv, uvw[:, :2] / uvw[:, 2:], atol=1e-3) and np.allclose(sample.K, K)
    assert np.array_equal(np.isnan(sample.depth), depth == 0) and np.allclose(
        np.nan_to_num(sample.depth) * 1000, depth, atol=1e-3
    )
    assert sample.visible.all()


def test_order_of_frames_is_natural(root):
    names = [BigHand(root, "all").sample_name(index) for index in range(9)]
    assert [name.rsplit("/", 1)[0] for name in names] == ["Subject_1/76 150"] * 3 + ["Subject_1/ego"] * 2 + [
        "Subject_2/1 75"
    ] * 2 + ["Subject_10/1 75"] * 2
    assert [sample.name for sample in BigHand(root, "all")] == names


def test_lines_may_come_in_any_order(root):
    path = text_of(root, "Subject_1/76 150")
    path.write_text("\n\n".join(reversed(path.read_text().split("\n"))) + "\r\n")
    reader = BigHand(root, "all")
    assert reader.frames[:3].tolist() == [5, 6, 7]
    for index in range(3):
        assert np.allclose(reader[index].joints, numbers(index)[STORED_TO_CANONICAL], atol=1e-4)


def test_the_form_of_2017(tmp_path):
    (tmp_path / "images").mkdir()
    for seed in range(3):
        Image.fromarray(depth_of(seed)).save(tmp_path / f"images/image_D{seed + 1:08d}.png")
    (tmp_path / "Training_Annotation.txt").write_text(
        "\n".join(text_line(f"image_D{seed + 1:08d}.png", numbers(seed)) for seed in range(3))
    )
    reader = BigHand(tmp_path)
    assert (
        len(reader) == 3
        and reader[2].name == "images/image_D00000003"
        and np.allclose(reader[2].joints, numbers(2)[STORED_TO_CANONICAL], atol=1e-4)
    )
    assert "none of 1 subject(s) is left" in refused(lambda: BigHand(tmp_path, "evaluation"))


def test_splits_are_by_subject(root):
    def subjects(*arguments, **options):
        return sorted({part.subject for part in BigHand(root, *arguments, **options).parts})

    assert subjects("evaluation") == ["Subject_10"] and subjects("training") == ["Subject_1", "Subject_2"]
    assert subjects("evaluation", held_out=["Subject_1"]) == ["Subject_1"] and subjects(
        "training", held_out=["Subject_1"]
    ) == ["Subject_10", "Subject_2"]
    assert "held_out 'Subject_3': there is no such subject" in refused(
        lambda: BigHand(root, held_out=["Subject_3"])
    )
    assert "split 'test': BigHand has no such split" in refused(lambda: BigHand(root, "test"))
    (root / "source.json").write_text('{"source": "sim-bighand", "evaluation": ["Subject_2"]}')
    assert subjects("evaluation") == ["Subject_2"] and BigHand(root).source == "sim-bighand"


def test_other_files_do_not_matter(root):
    (root / ANNOTATION / "Subject_1/README.txt").write_text("hello")
    (root / "Subject_1/ego/Thumbs.db").write_text("x")
    (root / "Subject_1/ego/image_D1.png").write_text("x")
    assert len(BigHand(root, "all")) == 9


def test_the_index_is_small_and_opens_no_image(root, monkeypatch):
    monkeypatch.setattr(bighand, "_read_depth", lambda path: pytest.fail(f"{path} was opened"))
    reader = BigHand(root, "all")
    assert sum(value.nbytes for value in vars(reader).values() if isinstance(value, np.ndarray)) == 14 * len(
        reader
    )


def test_a_reader_travels(root):
    reader = pickle.loads(pickle.dumps(BigHand(root, "all")))
    assert np.array_equal(np.nan_to_num(reader[8].depth), depth_of(8) * np.float32(0.001))
    with pytest.raises(IndexError):
        reader[9]


def test_identity_follows_the_content(root):
    first = BigHand(root, "all").identity()
    assert BigHand(root, "all").identity() == first != BigHand(root).identity()
    path = text_of(root, "Subject_1/ego")
    path.write_text(path.read_text().replace("00000001\t", "00000001\t1", 1))
    second = BigHand(root, "all").identity()
    Image.fromarray(depth_of(99) // 2).save(root / "Subject_1/ego" / image_name(1))
    assert len({first, second, BigHand(root, "all").identity()}) == 3


def test_frames_left_out(root):
    reader = BigHand(root, "all", skip=["Subject_1/ego/image_D00000001"])
    assert (
        len(reader) == 8
        and reader.skipped == [("Subject_1/ego/image_D00000001", "left out on request")]
        and reader[3].name == "Subject_1/ego/image_D00000002"
    )
    assert "there is no such frame" in refused(
        lambda: BigHand(root, "all", skip=["Subject_1/ego/image_D00000009"])
    )


def test_joints_outside_the_picture_are_not_visible(root):
    joints = numbers(0)
    joints[17], joints[20], joints[14] = (  # tips
        (290.0, 0, 400),
        (0.0, -220, 400),
        ((-0.4 - K[0, 2]) / K[0, 0] * 400, 0, 400),
    )  # right of it, above it, on its first pixel
    write_part(
        root,
        "Subject_1/ego",
        [0, 1],
        text="\n".join(text_line(f"{frame}", values) for frame, values in ((1, joints), (2, numbers(1)))),
    )
    sample = BigHand(root, "all")[3]
    assert sample.name.endswith("ego/image_D00000001") and np.flatnonzero(~sample.visible).tolist() == [
        16,
        20,
    ]


# ---- the mask


def test_the_mask_is_a_box_in_space():
    "Against every pixel's own point, one by one."
    generator = np.random.default_rng(0)
    depth = generator.uniform(0.3, 0.6, (48, 64)).astype(np.float32)
    depth[generator.random(depth.shape) < 0.1] = np.nan
    small = np.array([[47.5, 0, 31.6], [0, 47.5, 24.5], [0, 0, 1]])
    for seed, scale in ((0, 1.0), (1, 0.4), (2, 3.0)):
        joints = (
            np.random.default_rng(seed).uniform((-60, -60, -50), (60, 60, 50), (21, 3)) * scale
            + [20, -30, 420]
        ).astype(np.float32)
        expected = np.zeros(depth.shape, bool)
        for v in range(48):
            for u in range(64):
                point = np.array([(u - 31.6) / 47.5, (v - 24.5) / 47.5, 1]) * depth[v, u] * 1000
                expected[v, u] = ((point >= joints.min(0) - 25) & (point <= joints.max(0) + 25)).all()
        assert (threshold_mask(depth, joints, small) != expected).sum() <= 1 and expected.sum() > 5


def test_a_hand_outside_the_picture_has_no_mask():
    assert not threshold_mask(np.full((480, 640), 0.4, np.float32), numbers(0) + [900, 0, 0], K).any()


# ---- through prepare and batches


def test_depth_alone_goes_all_the_way(root, tmp_path):
    reader = BigHand(root, "all")
    prepared = prepare(reader, tmp_path / "crops", CropSettings(size=32), workers=1, show_progress=False)
    assert (
        "image" not in prepared.arrays
        and prepared.depth.shape == (9, 40, 40)
        and prepared.source == "bighand"
        and not prepared.mirrored.any()
    )
    batch = Batches(prepared, 4, modalities=("depth",), augment=Augment.paper2(), cloud_points=16).at(0)
    assert (
        batch.image is None
        and batch.mask is None
        and batch.depth.shape == (4, 1, 32, 32)
        and batch.cloud.shape == (4, 16, 3)
    )
    assert (
        "bighand was prepared without image; leave image out of modalities, or read data that has it"
        in refused(lambda: Batches(prepared, 4))
    )
    assert "bighand was prepared without image" in refused(
        lambda: Batches(prepared, 4, modalities=("image",))
    )


def test_a_mirror_without_an_image(root):
    sample = BigHand(root, "all")[0]
    mirrored = mirror_sample(sample).check()
    assert np.array_equal(mirrored.depth, sample.depth[:, ::-1], equal_nan=True) and np.allclose(
        mirrored.uv[:, 0], 639 - sample.uv[:, 0]
    )
    back = crop_sample(mirrored, CropSettings(size=24))
    assert back["mirrored"] and np.array_equal(
        back["depth"], crop_sample(sample, CropSettings(size=24))["depth"]
    )


def test_a_sample_needs_image_or_depth(root):
    sample = BigHand(root, "all")[0]
    assert "field image: it is missing" in refused(replace(sample, depth=None).check)
    assert "field mask: its shape is (479, 640), not (480, 640)" in refused(
        replace(sample, mask=sample.mask[1:]).check
    )


# ---- what is refused: texts


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.rsplit("\t", 1)[0],
        lambda line: line + "\t1.0",
        lambda line: line.replace("\t", "\tnan\t", 1),
        lambda line: "x" + line,
        lambda line: line.replace(".", ",", 1),
        lambda line: line.replace("\t", "\tnan", 1),
        lambda line: line.split("\t", 1)[1],
        lambda line: "\x00\x01",
        lambda line: line * 30,
    ],
)
def test_lines_that_are_no_labels(root, change):
    path = text_of(root, "Subject_1/76 150")
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[0], change(lines[1]), *lines[2:]]))
    assert "76 150_loc_shift_v2.txt, line 2: it is not a frame and 63 numbers; " in refused(
        lambda: BigHand(root, "all")
    )


@pytest.mark.parametrize("number", ["1.2.3", "--5", "1e", "1e999", "-"])
def test_numbers_that_only_look_like_numbers(root, number):
    path = text_of(root, "Subject_1/ego")
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[0].rsplit("\t", 1)[0] + "\t" + number, lines[1]]))
    reader = BigHand(root, "all")
    assert "ego_loc_shift_v2.txt, frame 1: " in refused(lambda: reader[3])
    reader[4]


def test_an_empty_text(root):
    for content in ("", "\n \n"):
        text_of(root, "Subject_1/ego").write_text(content)
        assert "ego_loc_shift_v2.txt: the file is empty" in refused(lambda: BigHand(root, "all"))


def test_a_frame_twice(root):
    path = text_of(root, "Subject_1/ego")
    path.write_text(path.read_text() + text_line("00000002", numbers(9)) + "\n")
    assert "ego_loc_shift_v2.txt: frame 2 is listed twice" in refused(lambda: BigHand(root, "all"))


def test_two_texts_for_one_folder(root):
    path = text_of(root, "Subject_1/ego")
    path.with_name("ego_other.txt").write_text(path.read_text())
    assert "ego_other.txt: ego_loc_shift_v2.txt annotates the same images; keep one" in refused(
        lambda: BigHand(root, "all")
    )


def test_a_text_that_changes_under_the_reader(root):
    reader, path = BigHand(root, "all"), text_of(root, "Subject_1/ego")
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[1], lines[0]]))
    assert "it has changed since it was opened" in refused(lambda: reader[3])
    path.unlink()
    assert "the file is not there" in refused(lambda: reader[3])


def test_a_hand_behind_the_camera(root):
    joints = numbers(3)
    joints[7, 2] = -1
    path = text_of(root, "Subject_1/ego")
    path.write_text(text_line("1", joints) + "\n" + text_line("2", numbers(4)))
    reader = BigHand(root, "all")
    assert "Subject_1/ego/image_D00000001, annotation: the hand reaches behind the camera" in refused(
        lambda: reader[3]
    )


# ---- what is refused: images


def test_what_is_missing(root):
    (root / "Subject_1/ego" / image_name(2)).unlink()
    assert "ego: 1 of 2 images are not there, the first is image_D00000002.png; unpack" in refused(
        lambda: BigHand(root, "all")
    )
    assert (
        len(BigHand(root, "all", partial=True)) == 8 and len(BigHand(root, "evaluation")) == 2
    )  # the other subjects are whole
    path = text_of(root, "Subject_1/76 150")
    path.write_text(path.read_text().split("\n", 1)[1])
    (root / "Subject_1/ego" / image_name(1)).rename(root / "Subject_1/ego" / image_name(2))
    (root / "Subject_1/ego" / image_name(2)).rename(root / "Subject_1/ego" / image_name(1))
    assert (
        "76 150_loc_shift_v2.txt: it has no label for 1 of 3 images, the first is image_D00000005.png"
        in refused(lambda: BigHand(root, "all"))
    )
    reader = BigHand(root, "all", partial=True)
    assert reader.frames.tolist() == [6, 7, 1, 1, 2, 1, 2] and np.allclose(
        reader[0].joints, numbers(1)[STORED_TO_CANONICAL], atol=1e-4
    )


def test_missing_folders(root, tmp_path):
    import shutil

    shutil.rmtree(root / "Subject_1/ego")
    assert "Subject_1/ego: the folder is not there" in refused(lambda: BigHand(root, "all"))
    assert len(BigHand(root, "all", partial=True)) == 7
    assert "nowhere: the folder is not there" in refused(lambda: BigHand(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "it holds neither full_annotation/ nor one text file" in refused(
        lambda: BigHand(tmp_path / "empty")
    )
    for path in (root / "Subject_2/1 75").iterdir():
        path.unlink()
    assert "no frame has both image and label" in refused(
        lambda: BigHand(root, "evaluation", partial=True, held_out=["Subject_2"])
    )


def test_eight_bits_where_sixteen_are_due(root):
    path = root / "Subject_1/ego" / image_name(1)
    reader = BigHand(root, "all")
    Image.fromarray((depth_of(3) >> 8).astype(np.uint8)).save(path)
    assert "image_D00000001.png: the image is L 640 x 480, not I;16 640 x 480" in refused(lambda: reader[3])
    Image.fromarray(depth_of(3)[:, :320]).save(path)
    assert "the image is I;16 320 x 480" in refused(lambda: reader[3])
    Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(path)
    assert "the image is RGB 640 x 480" in refused(lambda: reader[3])
    path.unlink()
    assert "image_D00000001.png: the file is not there" in refused(lambda: reader[3])


def test_an_image_of_something_else(root):
    reader = BigHand(root, "all")
    Image.fromarray(np.full((480, 640), 1400, np.uint16)).save(root / "Subject_1/ego" / image_name(1))
    assert "Subject_1/ego/image_D00000001: the image shows nothing where the label has a hand" in refused(
        lambda: reader[3]
    )


def test_a_truncated_png(root):
    reader, path = BigHand(root, "all"), root / "Subject_1/ego" / image_name(1)
    whole = path.read_bytes()
    for length in (0, 3, 8, 20, 33, len(whole) // 2, len(whole) - 12, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "image_D00000001.png: the image cannot be decoded (" in refused(lambda: reader[3])
    path.write_bytes(whole)
    reader[3]


@given(st.data())
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_png_with_a_flipped_bit_never_passes_for_another_image(root, data):
    reader, path = BigHand(root, "all"), root / "Subject_1/ego" / image_name(1)
    Image.fromarray(depth_of(3)).save(path)
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    assert "image_D00000001.png: the image cannot be decoded (" in refused(lambda: reader[3])


def test_right_checksums_around_nonsense():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 640, 480, 16, 0, 0, 0, 0))
    for body in (b"", b"no pixels", zlib.compress(b"\0" * 100)):
        data = SIGNATURE + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")
        with pytest.raises(HandlabError, match="the image cannot be decoded"):
            decode_png("a.png", data, "I;16", (640, 480))


# ---- a folder that is not finished


def test_a_twin_that_was_not_finished(root):
    (root / "source.json").write_text('{"source": "sim-bighand", "evaluation": [], "finished": false}')
    assert "it was never finished" in refused(lambda: BigHand(root))
    (root / "source.json").write_text("[]")
    assert "it does not name a 'source'" in refused(lambda: BigHand(root))
