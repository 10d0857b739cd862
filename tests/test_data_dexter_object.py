"""The Dexter+Object reader: cameras, missing tips, registration, mask, and what it refuses in one line."""

import io
import pickle
import shutil

import fuzzing
import numpy as np
import pytest
from PIL import Image

from handlab.core import HandlabError, write_json
from handlab.data import dexter_object as do
from handlab.data.batches import Batches
from handlab.data.dexter_object import DexterObject, decode_frame, encode_bmp, register_depth
from handlab.data.files import write_digests
from handlab.data.prepare import CropSettings, prepare
from handlab.data.rhd import RHD, write_drawn
from handlab.hand.camera import project
from handlab.hand.skeleton import denormalise

ROTATION, SHIFT = do.DEPTH_TO_COLOR[:, :3], do.DEPTH_TO_COLOR[:, 3]


def labels(seed=0, missing=()):
    "Eight points as annotated (x and y negated), some of them marked as missing."
    points = np.random.default_rng(seed).uniform((-90, -70, 350), (90, 70, 480), (8, 3)).round(2)
    for tip in missing:
        points[tip] = 0, 0, 32001
    return points


def pixels_2d(points):
    return np.stack(
        [224.502 * -points[:, 0] / points[:, 2] + 160, 230.494 * -points[:, 1] / points[:, 2] + 120], -1
    )


def frame(seed=0, missing=()):
    generator = np.random.default_rng(seed + 100)
    raw = np.rint(500 + 60 * generator.random((24, 32)).repeat(10, 0).repeat(10, 1)).astype(np.uint16)
    return generator.integers(0, 256, (480, 640, 3), np.uint8), raw, labels(seed, missing)


def write(root, sequences, source=True):
    "Frames {sequence: [frame, ...]} in the official layout, by other code than the project's."
    for sequence, frames in sequences.items():
        folder = root / "data" / sequence
        for kind in ("color", "depth", "annotations"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        for number, (color, raw, _) in enumerate(frames, 1):
            Image.fromarray(color).save(folder / f"color/Color_{number:04d}.bmp")
            Image.fromarray(raw).save(folder / f"depth/Depth_{number:04d}.png")
        for dimensions in (2, 3):
            text = ""
            for *_, points in frames:
                shown = pixels_2d(points) if dimensions == 2 else points
                text += ";".join(" , ".join(f"{value:.4f}" for value in point) for point in shown) + "\r\n"
            (folder / f"annotations/{sequence}{dimensions}D.txt").write_text(text, newline="")
    if source:
        write_json(
            root / "source.json",
            dict(
                source="sim-dexter-object",
                frames={sequence: len(frames) for sequence, frames in sequences.items()},
            ),
        )
    return root


@pytest.fixture
def root(tmp_path):
    return write(
        tmp_path / "do", {"Grasp1": [frame(0), frame(1, (2,)), frame(2)], "Rotate": [frame(3), frame(4)]}
    )


BOTH = ("Grasp1", "Rotate")


def line(error):
    text = str(error.value)
    assert isinstance(error.value, HandlabError) and "\n" not in text and ": " in text and "; " in text
    return text


def replaced(path, number, change):
    "Change one line (from 1) of a text file."
    lines = path.read_text().splitlines()
    lines[number - 1] = change(lines[number - 1])
    path.write_text("\n".join(lines) + "\n")


# ---- what is read


def test_a_frame_comes_back_as_it_was_stored(root):
    reader, (color, raw, points) = DexterObject(root, BOTH), frame(1, (2,))
    sample = reader[1].check()
    assert (
        len(reader),
        reader.source,
        reader.name,
        reader.split,
        reader.skipped,
        sample.name,
        sample.side,
    ) == (5, "sim-dexter-object", "dexter-object", "evaluation", [], "Grasp1/0002", "left")
    assert np.array_equal(sample.image, color) and np.array_equal(
        sample.depth, register_depth(raw), equal_nan=True
    )
    expected = ROTATION @ (points[:5] * [-1, -1, 1]).T + SHIFT[:, None]  # thumb to little
    for tip, joint in enumerate((4, 8, 12, 16, 20)):
        if tip == 2:
            assert (
                np.isnan(sample.joints[joint]).all()
                and np.isnan(sample.uv[joint]).all()
                and not sample.visible[joint]
            )
        else:
            x, y, z = expected[:, tip]
            assert np.allclose(sample.joints[joint], (x, y, z), atol=1e-3) and sample.visible[joint]
            assert np.allclose(
                sample.uv[joint], (587.45209 * x / z + 325, 600.67456 * y / z + 249), atol=1e-3
            )
    others = np.setdiff1d(np.arange(21), (4, 8, 12, 16, 20))
    assert (
        np.isnan(sample.joints[others]).all()
        and np.isnan(sample.uv[others]).all()
        and not sample.visible[others].any()
    )
    assert np.allclose(sample.K, [[587.45209, 0, 325], [0, 600.67456, 249], [0, 0, 1]])


def test_corners_of_the_box(root):
    reader = DexterObject(root, BOTH)
    assert np.allclose(reader.corners(3), (labels(3)[5:] * [-1, -1, 1]) @ ROTATION.T + SHIFT, atol=1e-3)
    replaced(
        root / "data/Rotate/annotations/Rotate3D.txt", 1, lambda text: text.rsplit(",", 1)[0] + ", 32001"
    )
    assert np.isnan(DexterObject(root, BOTH).corners(3)[2]).all()


def test_registration_by_hand():
    raw = np.zeros((240, 320), np.uint16)
    raw[60, 100], raw[200, 250] = 700, 450
    depth = register_depth(raw)
    for v, u, z in ((60, 100, 700.0), (200, 250, 450.0)):
        x, y, z = ROTATION @ [(u - 160) / 224.502 * z, (v - 120) / 230.494 * z, z] + SHIFT
        column, row = round(587.45209 * x / z + 325), round(600.67456 * y / z + 249)
        patch = depth[row - 1 : row + 2, column - 1 : column + 2]
        assert np.allclose(patch, z / 1000, atol=1e-6)
        depth[row - 1 : row + 2, column - 1 : column + 2] = np.nan
    assert np.isnan(depth).all()


def test_near_patches_cover_far_ones():
    raw = np.full((240, 320), 900, np.uint16)
    raw[80:160, 100:200] = 400
    depth = register_depth(raw)
    near = np.abs(depth - 0.4) < 0.02
    assert near.sum() > 80 * 100 * 2.6**2 * 0.95 and near[200:300, 250:400].all()  # a closed area
    assert np.isnan(depth).sum() < 0.25 * depth.size  # border, and the strip that only the colour camera sees
    columns = np.flatnonzero(near[240])
    assert (
        np.ptp(columns) + 1 == len(columns) and abs(len(columns) - 100 * 587.45 / 224.5) < 6
    )  # up to its edges, where far points lie behind it
    shadow = np.isnan(depth[240])
    assert 5 < shadow[150:560].sum() < 60


@pytest.mark.parametrize("value", [0, 32001, 32002, 65535])
def test_what_was_not_measured_is_nan(value):
    assert np.isnan(register_depth(np.full((240, 320), value, np.uint16))).all()


def test_patches_over_the_border_do_not_wrap():
    for v, u in ((120, 0), (120, 319), (0, 160), (239, 160)):
        raw = np.zeros((240, 320), np.uint16)
        raw[v, u] = 800
        depth = register_depth(raw)
        rows, columns = np.nonzero(np.isfinite(depth))
        assert len(rows) <= 9 and (len(rows) == 0 or (np.ptp(rows) <= 2 and np.ptp(columns) <= 2))


def test_the_mask_is_what_touches_the_tips():
    depth = np.full((480, 640), np.nan, np.float32)
    depth[150:300, 250:400], depth[:, 500:520], depth[320:400, 250:400] = (
        0.4,
        0.4,
        0.7,
    )  # hand, something as near, something behind
    K = do.COLOR_K
    tips = np.array(
        [
            [(u - K[0, 2]) * 400 / K[0, 0], (v - K[1, 2]) * 400 / K[1, 1], 400]
            for u, v in ((260, 160), (390, 290))
        ]
    )
    mask = do.mask_near_tips(depth, tips, K)
    assert mask[150:300, 250:400].mean() > 0.99 and mask.sum() == mask[150:300, 250:400].sum()
    assert not do.mask_near_tips(depth, tips + [0, 0, 300.0], K)[150:300].any()


def test_no_depth_folder_means_no_depth_and_no_mask(root):
    for sequence in BOTH:
        shutil.rmtree(root / f"data/{sequence}/depth")
    reader = DexterObject(root, BOTH)
    sample = reader[0].check()
    assert not reader.has_depth and sample.depth is None and sample.mask is None
    write(root, {"Rotate": [frame(3), frame(4)]}, source=False)
    with pytest.raises(HandlabError) as error:
        DexterObject(root, BOTH)  # depth in one, none in the other
    assert "data/Grasp1/depth: the folder is not there" in line(error)


def test_a_tip_out_of_the_picture_is_not_visible():
    points = labels(0)
    points[0] = -300, 0, 400
    sample = decode_frame("x", *frame(0)[:2], points)
    assert (
        not sample.visible[4]
        and np.isfinite(sample.joints[4]).all()
        and sample.visible[[8, 12, 16, 20]].all()
    )


def test_frames_without_tips_are_left_out_with_a_reason(tmp_path):
    behind = labels(7)
    behind[3, 2] = -40
    root = write(tmp_path / "do", {"Pinch": [frame(0, range(5)), frame(1), (*frame(2)[:2], behind)]})
    reader = DexterObject(root, "Pinch")
    assert reader.frames == [("Pinch", 2)]
    assert (
        [name for name, _ in reader.skipped] == ["Pinch/0001", "Pinch/0003"]
        and "no tip" in reader.skipped[0][1]
        and "behind the camera" in reader.skipped[1][1]
    )
    for points in (labels(0, range(5)), behind):
        with pytest.raises(HandlabError):
            decode_frame("Pinch/0001", *frame(0)[:2], points)


def test_annotations_that_disagree_are_noted(root):
    replaced(root / "data/Rotate/annotations/Rotate2D.txt", 2, lambda text: "9, 9" + text[text.index(";") :])
    reader = DexterObject(root, BOTH)
    assert [name for name, _ in reader.noted] == ["Rotate/0002"] and len(reader) == 5
    assert DexterObject(root, "Grasp1").noted == []


def test_official_counts_are_asked_for(tmp_path):
    assert do.FRAMES == dict(Grasp1=356, Grasp2=648, Occlusion=354, Pinch=458, Rigid=531, Rotate=798)
    root = write(tmp_path / "do", {"Grasp1": [frame(0)]}, source=False)
    with pytest.raises(HandlabError) as error:
        DexterObject(root, "Grasp1")
    assert "Grasp13D.txt: it has 1 lines, the sequence 356 frames" in line(error)
    assert DexterObject(root, partial=True).source == "dexter-object"


def test_partial_takes_what_is_there(root):
    (root / "data/Grasp1/color/Color_0002.bmp").unlink()
    with pytest.raises(HandlabError):
        DexterObject(root)
    reader = DexterObject(root, partial=True)
    assert reader.frames == [("Grasp1", 1), ("Grasp1", 3), ("Rotate", 1), ("Rotate", 2)]
    assert np.allclose(
        reader[1].joints[4], ROTATION @ (labels(2)[0] * [-1, -1, 1]) + SHIFT, atol=1e-3
    )  # labels stay with their images


def test_a_reader_travels_and_names_its_content(root, tmp_path):
    reader = DexterObject(root, BOTH)
    assert np.array_equal(pickle.loads(pickle.dumps(reader))[4].image, frame(4)[0])
    names = [reader.identity(), DexterObject(root, "Grasp1").identity()]
    replaced(root / "data/Rotate/annotations/Rotate3D.txt", 2, lambda text: text.replace("1", "2", 1))
    names.append(DexterObject(root, BOTH).identity())
    assert len(set(names)) == 3 and reader.identity() == names[0]
    with pytest.raises(IndexError):
        reader[5]


# ---- what is refused

LABELS = "data/Grasp1/annotations/Grasp13D.txt"


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda text: text.rsplit(";", 1)[0], "it has groups of 3, 3, 3, 3, 3, 3, 3 numbers, not 8 of 3"),
        (lambda text: text.rsplit(",", 1)[0], "3, 3, 3, 3, 3, 3, 3, 2 numbers"),
        (lambda text: text + "; 1, 2, 3", "not 8 of 3"),
        (lambda text: "", "not 8 of 3"),
        (lambda text: text.replace(".", "o", 1), "is not a number"),
        (lambda text: "nan" + text[text.index(",") :], "'nan' is not a number"),
        (lambda text: "inf" + text[text.index(",") :], "'inf' is not a number"),
        (lambda text: "1_0" + text[text.index(",") :], "'1_0' is not a number"),
        (lambda text: "1e999" + text[text.index(",") :], "a number is too large"),
    ],
)
def test_a_bad_line(root, change, said):
    replaced(root / LABELS, 2, change)
    with pytest.raises(HandlabError) as error:
        DexterObject(root, BOTH)
    assert f"{LABELS}, line 2: " in line(error) and said in line(error)


def test_two_numbers_where_three_are_due(root):
    shutil.copy(root / "data/Grasp1/annotations/Grasp12D.txt", root / LABELS)
    with pytest.raises(HandlabError) as error:
        DexterObject(root, BOTH)
    assert "Grasp13D.txt, line 1: it has groups of 2, 2" in line(error)


def test_annotations_of_different_lengths(root):
    path = root / LABELS
    path.write_text("".join(path.read_text().splitlines(True)[:2]))
    with pytest.raises(HandlabError) as error:
        DexterObject(root, BOTH)
    assert "Grasp12D.txt: it has 3 lines, Grasp13D.txt has 2" in line(error)
    path = root / "data/Grasp1/annotations/Grasp12D.txt"
    path.write_text("".join(path.read_text().splitlines(True)[:2]))
    with pytest.raises(HandlabError) as error:
        DexterObject(root, BOTH)  # both cut alike
    assert "Grasp13D.txt: it has 2 lines, the sequence 3 frames" in line(error)


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "it is empty"),
        (b"\n \n", "it is empty"),
        (b"\xff\xfe1", "it is not plain text"),
        (None, "the file is not there"),
    ],
)
def test_an_annotation_that_is_none(root, data, said):
    if data is None:
        (root / LABELS).unlink()
    else:
        (root / LABELS).write_bytes(data)
    with pytest.raises(HandlabError) as error:
        DexterObject(root, BOTH)
    assert f"{LABELS}: {said}" in line(error)


@pytest.mark.parametrize("kind, file", [("color", "Color_0003.bmp"), ("depth", "Depth_0003.png")])
def test_a_missing_image(root, kind, file):
    reader = DexterObject(root, BOTH)
    (root / f"data/Grasp1/{kind}/{file}").unlink()
    with pytest.raises(HandlabError) as error:
        reader[2]
    assert f"{file}: the file is not there" in line(error)
    with pytest.raises(HandlabError) as error:
        DexterObject(root, BOTH)
    assert f"{kind}: 1 of 3 images are not there, the first is {file}" in line(error)
    shutil.rmtree(root / f"data/Grasp1/{kind}")
    with pytest.raises(HandlabError) as error:
        DexterObject(root, BOTH)
    assert f"Grasp1/{kind}: the folder is not there" in line(error)


def test_an_image_without_a_line(root):
    shutil.copy(root / "data/Grasp1/color/Color_0003.bmp", root / "data/Grasp1/color/Color_0004.bmp")
    with pytest.raises(HandlabError) as error:
        DexterObject(root, BOTH)
    assert "it has no label for 1 of 4 images, the first is Color_0004.bmp" in line(error)


def bmp(image, mode="RGB"):
    out = io.BytesIO()
    image.convert(mode).save(out, "bmp")
    return out.getvalue()


def test_a_bmp_that_is_not_whole_or_another(root):
    path = root / "data/Grasp1/color/Color_0001.bmp"
    reader, whole = DexterObject(root, BOTH), path.read_bytes()
    picture = Image.fromarray(frame(0)[0])
    cases = [
        (whole[: int(len(whole) * share)], "cut short" if share < 0.00006 else "the image cannot be decoded")
        for share in (0, 0.00005, 0.001, 0.5, 0.999)
    ] + [
        (whole + b"12345", "the image cannot be decoded"),
        (bmp(picture.resize((640, 320))), "the image is RGB 640 x 320, not RGB 640 x 480"),
        (bmp(picture, "L"), "the image is L 640 x 480, not RGB"),
        (whole[:10] + b"\x40" + whole[11:], "the image cannot be decoded"),
        (whole[:30] + b"\1" + whole[31:], "the image cannot be decoded"),
        (b"\x89PNG" + whole[4:], "it is not a readable BMP file"),
    ]
    for data, said in cases:
        path.write_bytes(data)
        with pytest.raises(HandlabError) as error:
            reader[0]
        assert "Color_0001.bmp: " in line(error) and said in line(error), (said, line(error))


def test_other_kinds_of_bmp_that_are_fine(root):
    picture = Image.fromarray(frame(0)[0])
    whole = bmp(picture)
    down = (
        whole[:22]
        + (-480).to_bytes(4, "little", signed=True)
        + whole[26:54]
        + frame(0)[0][..., ::-1].tobytes()
    )  # rows from the top
    alpha = np.dstack([frame(0)[0], np.full((480, 640), 255, np.uint8)])
    for data in (whole, down, whole + b"\0\0", bmp(Image.fromarray(alpha), "RGBA"), encode_bmp(frame(0)[0])):
        assert np.array_equal(do.decode_bmp("x", data), frame(0)[0])


def test_a_depth_png_that_is_not_whole_or_another(root):
    path = root / "data/Rotate/depth/Depth_0002.png"
    reader, whole, raw = DexterObject(root, BOTH), path.read_bytes(), frame(4)[1]

    def png(array):
        out = io.BytesIO()
        Image.fromarray(array).save(out, "png")
        return out.getvalue()

    cases = [
        (whole[: int(len(whole) * share)], "the image cannot be decoded") for share in (0, 0.01, 0.5, 0.99)
    ] + [
        (whole[:-1], "it is cut short"),
        (whole + b"1", "has bytes after its end"),
        (whole[:60] + bytes([whole[60] ^ 1]) + whole[61:], "a checksum is wrong"),
        (png((raw >> 8).astype(np.uint8)), "the image is L 320 x 240, not I;16 320 x 240"),
        (
            png(np.dstack([raw >> 8, raw & 255, raw * 0]).astype(np.uint8)),
            "the image is RGB 320 x 240, not I;16",
        ),
        (png(raw[:, :160]), "the image is I;16 160 x 240, not I;16 320 x 240"),
        (whole[:8], "the image cannot be decoded"),
    ]
    for data, said in cases:
        path.write_bytes(data)
        with pytest.raises(HandlabError) as error:
            reader[4]
        assert "Depth_0002.png: " in line(error) and said in line(error), (said, line(error))


def test_missing_folders_and_unknown_names(tmp_path, root):
    for arguments, said in (
        ((tmp_path / "none",), "none/data: the folder is not there"),
        ((root, "Juggle"), "Dexter+Object has no such sequence"),
        ((root, "Pinch"), "Pinch2D.txt: the file is not there"),
    ):
        with pytest.raises(HandlabError) as error:
            DexterObject(*arguments)
        assert said in line(error)
    with pytest.raises(HandlabError) as error:
        DexterObject(root, "Pinch", partial=True)
    assert "none of the sequences is there" in line(error)
    for path in (root / "data/Rotate/color").iterdir():
        path.unlink()
    with pytest.raises(HandlabError) as error:
        DexterObject(root, "Rotate", partial=True)
    assert "no frame has" in line(error)


@pytest.mark.parametrize("text", ["[]", "{}", '{"source": 3}', '{"source": "x", "frames": 3}', "no json"])
def test_a_twin_that_does_not_say_what_it_is(root, text):
    (root / "source.json").write_text(text)
    with pytest.raises(HandlabError) as error:
        DexterObject(root, BOTH)
    assert "source.json" in line(error)


# ---- on to crops and batches


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crops")
    reader = DexterObject(write(folder / "do", {"Grasp1": [frame(0), frame(1, (2,)), frame(2)]}), "Grasp1")
    return prepare(
        reader, folder / "crops", CropSettings(size=48, crop="tips"), workers=1, show_progress=False
    )


def test_tips_are_cropped_and_folded(prepared, root):
    sample = decode_frame("Grasp1/0002", *frame(1, (2,)))
    assert (
        prepared.mirrored.all()
        and np.isnan(prepared.joints[1, 12]).all()
        and np.array_equal(prepared.visible[1], sample.visible)
    )
    u, v = sample.uv[sample.visible].T
    box = prepared.box[1]
    assert np.isclose(box[0], 639 - (u.min() + u.max()) / 2, atol=1e-3) and np.isclose(
        box[1], (v.min() + v.max()) / 2, atol=1e-3
    )
    assert (
        np.allclose(prepared.joints[1, [4, 8, 16, 20]], sample.joints[[4, 8, 16, 20]] * [-1, 1, 1])
        and prepared.mask.any()
        and prepared.depth.any()
    )
    with pytest.raises(HandlabError, match="Grasp1/0001, crop_zb: the middle MCP has no pixel"):
        prepare(DexterObject(root, BOTH), root / "zb", CropSettings(size=48), workers=1, show_progress=False)


def test_batches_of_tips(prepared):
    with pytest.raises(HandlabError) as error:
        Batches(prepared, 3, augment=None, shuffle=False)
    assert (
        "has no middle_mcp, and depth is relative to it; leave depth and clouds out, or pass root='tips'"
        in line(error)
    )
    with pytest.raises(HandlabError, match="no middle_mcp"):
        Batches(prepared, 3, modalities=("image",), cloud_points=8)
    plain = next(iter(Batches(prepared, 3, augment=None, shuffle=False, modalities=("image", "mask"))))
    assert plain.image.isfinite().all() and plain.root.isnan().all()
    batch = next(iter(Batches(prepared, 3, augment=None, shuffle=False, root="tips")))
    truth = np.nanmean(prepared.joints[:, [4, 8, 12, 16, 20]], 1)
    assert (
        np.allclose(batch.root, truth, atol=1e-2)
        and np.allclose(batch.scale, 33)
        and batch.depth.isfinite().all()
        and batch.depth.min() < 0.5
    )
    placed = denormalise(batch.pose, batch.root, batch.scale).numpy()
    assert np.allclose(placed, prepared.joints, atol=1e-2, equal_nan=True)
    assert np.allclose(project(placed, batch.K.numpy())[0, [4, 8, 12]], batch.uv[0, [4, 8, 12]], atol=0.02)


# ---- digests


def test_digests_find_what_nothing_else_can(root):
    path = root / "data/Grasp1/color/Color_0001.bmp"
    whole = path.read_bytes()
    changed = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    path.write_bytes(changed)
    assert DexterObject(root, BOTH)[0].image.sum() != frame(0)[0].sum()  # a BMP has no checksum of its own
    path.write_bytes(whole)
    write_digests(root)
    reader = DexterObject(root, BOTH)
    assert np.array_equal(reader[0].image, frame(0)[0])
    path.write_bytes(changed)
    with pytest.raises(HandlabError) as error:
        reader[0]
    assert "Color_0001.bmp: its bytes are not those noted in digests.json" in line(error)
    replaced(root / LABELS, 1, lambda text: text.replace("1", "2", 1))
    with pytest.raises(HandlabError) as error:
        DexterObject(root, BOTH)
    assert "Grasp13D.txt: its bytes are not those noted" in line(error)
    (root / "digests.json").write_text("[1]")
    with pytest.raises(HandlabError, match="does not hold digests"):
        DexterObject(root, BOTH)


def test_a_twin_that_lost_its_name_does_not_pass_for_the_official_set(root):
    write_digests(root)
    (root / "source.json").unlink()
    with pytest.raises(HandlabError) as error:
        DexterObject(root, BOTH, partial=True)
    assert "source.json: the file is not there" in line(error)


# ---- files damaged at random


def test_damaged_files_with_digests(tmp_path):
    root = write(tmp_path / "do", {"Grasp1": [frame(0), frame(1, (2,))]})
    write_digests(root)
    found = fuzzing.counts(
        fuzzing.fuzz(root, lambda folder: list(DexterObject(folder, "Grasp1")), rounds=160)
    )
    assert found["refused"] > 110  # the rest changes nothing that counts


def test_damaged_files_of_the_bare_download(tmp_path):
    "Without digests, pixels of BMPs and digits of labels cannot be checked; all else is; nothing crashes."
    root = write(tmp_path / "do", {"Grasp1": [frame(0), frame(1, (2,))]})

    def bare(got, reference):
        return len(got) <= len(reference) and all(sample.check() for sample in got)

    fuzzing.fuzz(root, lambda folder: list(DexterObject(folder, "Grasp1")), rounds=70, seed=1, same=bare)
    fuzzing.fuzz(
        root,
        lambda folder: list(DexterObject(folder, "Grasp1")),
        rounds=30,
        seed=2,
        choose=lambda path: path.suffix == ".png",
        kinds=[*fuzzing.DAMAGES, "missing", "a folder"],
    )


def read_rhd(folder):
    "Samples by name, and the names that the reader itself says it has left out."
    reader = RHD(folder, "evaluation")
    return {sample.name: sample for sample in reader}, {
        f"evaluation/{frame:05d}" for frame, _ in reader.skipped
    }


def rhd_fits(got, reference):
    "Pixels and flags to the bit, joints to a pixel of their projection; what is not there is named."
    (samples, skipped), (whole, _) = got, reference
    if set(samples) | skipped != set(whole):
        return False
    for name, one in samples.items():
        two = whole[name]
        if not all(
            fuzzing.same_field(getattr(one, field), getattr(two, field))
            for field in ("image", "depth", "mask", "visible", "side", "name")
        ):
            return False
        uvw = one.joints.astype(float) @ one.K.T
        if not (np.abs(uvw[:, :2] / uvw[:, 2:] - two.uv).max() < 2 and np.abs(one.uv - two.uv).max() < 2):
            return False
    return True


def test_damaged_files_of_rhd(tmp_path):
    write_drawn(tmp_path, "evaluation", 3)
    kinds = [*fuzzing.DAMAGES, "missing", "a folder"]  # two images that change places would not be noticed
    found = fuzzing.counts(
        fuzzing.fuzz(
            tmp_path,
            lambda folder: list(RHD(folder, "evaluation")),
            rounds=200,
            choose=lambda path: path.suffix == ".png",
            kinds=kinds,
        )
    )
    assert found["refused"] > 180
    fuzzing.fuzz(
        tmp_path,
        read_rhd,
        rounds=300,
        seed=1,
        choose=lambda path: path.suffix != ".png",
        same=rhd_fits,
        kinds=kinds,
    )


def test_the_fuzzer_sees_what_it_should(tmp_path):
    (tmp_path / "a.txt").write_text("7" * 40)
    (tmp_path / "b.txt").write_text("8" * 40)

    def read(answer):
        def reader(folder):
            if any(
                not path.is_file() or set(path.read_bytes()) != {ord(digit)}
                for path, digit in ((folder / "a.txt", "7"), (folder / "b.txt", "8"))
            ):
                return answer()
            return 7

        return reader

    def equal(one, two):
        return one == two

    def refuse():
        raise HandlabError("a.txt", "it is not sevens", "write it again")

    def crash():
        raise ValueError("crash")

    assert fuzzing.counts(fuzzing.fuzz(tmp_path, read(refuse), rounds=60, same=equal))["refused"] > 40
    for answer, said in ((lambda: 8, "a silent wrong sample: "), (crash, "another exception: ValueError")):
        with pytest.raises(AssertionError, match=said):
            fuzzing.fuzz(tmp_path, read(answer), rounds=60, same=equal)
    assert (tmp_path / "a.txt").read_text() == "7" * 40  # put back
