"""Data from outside, as people have them: other names, other units, damaged cameras, hostile files.

Each kind is tried with every reader that it can happen to."""

import pickle
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data_dexter_object import frame as dexter_frame
from test_data_dexter_object import write as write_dexter

from handlab.core import HandlabError, read_pickle
from handlab.data import bighand, rhd, stb
from handlab.data.dexter_object import DexterObject
from handlab.data.files import check_folder, file_states, names_in
from handlab.data.mat import read_mat
from handlab.data.prepare import CropSettings, crop_sample
from handlab.data.sample import camera_faults, share_on_mask
from handlab.hand.metrics import scores_2d, scores_3d
from handlab.hand.orders import BIGHAND_TO_CANONICAL
from handlab.hand.skeleton import example_hand, mirror_joints
from handlab.train.experiment import ExperimentSettings, check_experiment, settings_given
from handlab.train.sets import open_real, skip_of


def write_rhd(root):
    rhd.write_drawn(root, "training", 3)
    (root / "source.json").unlink()
    return lambda **more: rhd.RHD(root, "training", **more)


def write_stb(root):
    stb.write_drawn(root, "evaluation", 3)
    return lambda **more: stb.STB(root, "evaluation", **more)


def write_tips(root):
    write_dexter(root, {"Grasp1": [dexter_frame(number) for number in range(3)]})
    return lambda **more: DexterObject(root, "Grasp1", **more)


def write_bighand(root):
    bighand.write_drawn(root)
    return lambda **more: bighand.BigHand(root, "all", **more)


SETS = dict(rhd=write_rhd, stb=write_stb, dexter=write_tips, bighand=write_bighand)
every_set = pytest.mark.parametrize("name", SETS)


def refused(call, *words):
    with pytest.raises(HandlabError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text
    return text


def images(root, suffix=".png"):
    return sorted(path for path in Path(root).rglob(f"*{suffix}") if not path.name.startswith("."))


def same(one, two):
    assert [sample.name for sample in one] == [sample.name for sample in two]
    for field in ("image", "depth", "mask", "joints", "uv", "K"):
        for first, second in zip(one, two):
            first, second = getattr(first, field), getattr(second, field)
            assert (first is None and second is None) or np.array_equal(first, second, equal_nan=True)


# ---- names


@every_set
def test_upper_case_and_other_padding_are_read(tmp_path, name):
    opened = SETS[name](tmp_path)
    before = list(opened())
    for path in [*images(tmp_path), *images(tmp_path, ".bmp")]:
        stem, number = (
            path.stem.rstrip("0123456789"),
            int(path.stem.removeprefix(path.stem.rstrip("0123456789"))),
        )
        path.rename(path.with_name(f"{stem}{number:03d}{path.suffix.upper()}"))
    reader = opened()
    same(list(reader), before)
    assert reader.identity()


@every_set
def test_hidden_files_are_no_data(tmp_path, name):
    opened = SETS[name](tmp_path)
    before = list(opened())
    for path in list(tmp_path.rglob("*")):
        if path.is_file():
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7" + bytes(100))
            (path.parent / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / "__MACOSX").mkdir()
    same(list(opened()), before)


@every_set
def test_a_link_that_leads_nowhere(tmp_path, name):
    opened, count = SETS[name](tmp_path), 3
    count = len(opened())
    path = images(tmp_path)[1]
    path.unlink()
    path.symlink_to("../../.git/annex/objects/gone.png")
    refused(opened, path.name, "a link that leads nowhere")
    reader = opened(partial=True)
    assert len(reader) == count - 1 and reader.missing == 1
    path.unlink()
    path.symlink_to(path.name)  # to itself
    refused(opened, path.name)


@every_set
def test_two_names_for_one_frame(tmp_path, name):
    opened = SETS[name](tmp_path)
    path = images(tmp_path)[0]
    stem = path.stem.rstrip("0123456789")
    number = int(path.stem.removeprefix(stem))
    for padding in ("000000000"[: 9 - len(str(number))], "0000000"[: 6 - len(str(number))]):
        shutil.copy(path, path.with_name(f"{stem}{padding}{number}.png"))
    same(list(opened()), list(opened()))  # the official one goes before
    path.unlink()
    refused(opened, f"are both frame {number}", path.name)


def test_stb_unpacked_without_its_folder_of_images(tmp_path):
    opened = write_stb(tmp_path)
    before = list(opened())
    for path in (tmp_path / "images").iterdir():
        path.rename(tmp_path / path.name)
    (tmp_path / "images").rmdir()
    same(list(opened()), before)


def test_what_the_system_refuses_is_one_line(tmp_path, monkeypatch):
    refused(lambda: check_folder(tmp_path / ("x" * 300), "data/"), "File name too long")
    refused(lambda: file_states([tmp_path / "gone.png"]), "gone.png")

    def denied(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("os.scandir", denied)
    refused(lambda: names_in(tmp_path), "Permission denied")


# ---- cameras and units

K = np.array([[280, 0, 160], [0, 280, 160], [0, 0, 1.0]])
BAD_CAMERAS = dict(
    transposed=K.T,
    zeros=0 * K,
    halved=np.diag([0.5, 0.5, 1]) @ K,
    negative=K * [[-1, 1, 1], [1, 1, 1], [1, 1, 1]],
    lower=K + [[0, 0, 0], [9, 0, 0], [0, 0, 0]],
    metres=K / 1000 + [[0, 0, 0], [0, 0, 0], [0, 0, 0.999]],
)


def rhd_labels(root):
    return read_pickle(root / "training/anno_training.pickle")


def write_labels(root, labels):
    (root / "training/anno_training.pickle").write_bytes(pickle.dumps(labels, protocol=2))


def changed(root, **changes):
    "The labels of all frames with some of them changed by functions."
    write_labels(
        root,
        {
            number: {key: changes.get(key, np.asarray)(np.asarray(value)) for key, value in entry.items()}
            for number, entry in rhd_labels(root).items()
        },
    )


@pytest.mark.parametrize("kind", BAD_CAMERAS)
def test_no_camera(tmp_path, kind):
    assert list(camera_faults(np.stack([K, BAD_CAMERAS[kind]]), (320, 320))) == [1]
    opened = write_rhd(tmp_path)
    changed(tmp_path, K=lambda _: BAD_CAMERAS[kind].astype(np.float32))
    refused(opened, "all its 3 frames are left out, the first is 0: K is no camera of these pictures")


def test_cameras_of_all_sets_are_cameras(tmp_path):
    for name, write in SETS.items():
        for sample in write(tmp_path / name)():
            sample.check()


@pytest.mark.parametrize("factor, unit", [(1000, "millimetres"), (100, "centimetres")])
def test_rhd_in_another_unit(tmp_path, factor, unit):
    opened = write_rhd(tmp_path)
    changed(tmp_path, xyz=lambda xyz: xyz * factor)
    refused(opened, "all its 3 frames are left out", f"the labels are in {unit}, not in metres")


def test_one_frame_in_another_unit_is_left_out(tmp_path):
    opened = write_rhd(tmp_path)
    labels = rhd_labels(tmp_path)
    labels[1] = {**labels[1], "xyz": np.asarray(labels[1]["xyz"]) * 1000}
    labels[2] = {**labels[2], "xyz": np.asarray(labels[2]["xyz"]) * 0 + np.float32([0, 0, 0.5])}
    write_labels(tmp_path, labels)
    reader = opened()
    assert reader.frames.tolist() == [0] and "millimetres" in dict(reader.skipped)[1]
    assert "one point" in dict(reader.skipped)[2]


def test_a_copy_whose_cameras_were_forgotten(tmp_path):
    opened = write_rhd(tmp_path)
    changed(tmp_path, uv_vis=lambda uv: (uv * [0.5, 0.5, 1]).astype(np.float32))
    refused(opened, "uv is 0.5 times K's projection, as of resized images without their K")


@every_set
def test_resized_images(tmp_path, name):
    opened = SETS[name](tmp_path)
    for path in [*images(tmp_path), *images(tmp_path, ".bmp")]:
        with Image.open(path) as image:
            half = image.resize((image.width // 2, image.height // 2), Image.NEAREST)
        half.save(path)
    refused(lambda: opened()[0], "this copy was resized to 0.5 of the size")


def test_tips_and_bighand_in_metres(tmp_path):
    opened = write_tips(tmp_path / "tips")
    path = next((tmp_path / "tips").rglob("*3D.txt"))
    lines = [
        ";".join(
            ",".join(f"{float(value) / 1000:.7f}" for value in point.split(",")) for point in line.split(";")
        )
        for line in path.read_text().splitlines()
    ]
    path.write_text("\n".join(lines) + "\n")
    refused(opened, "Grasp13D.txt", "the labels are in metres, not in millimetres")
    opened = write_bighand(tmp_path / "bighand")
    for path in (tmp_path / "bighand").rglob("*.txt"):
        rows = [line.split() for line in path.read_text().splitlines()]
        path.write_text(
            "".join("\t".join([row[0], *(f"{float(x) / 1000:.7f}" for x in row[1:])]) + "\n" for row in rows)
        )
    refused(opened, "the labels are in metres, not in millimetres")


def test_scores_in_another_unit_are_refused():
    true = np.repeat(example_hand()[None], 9, 0)
    pred = true + np.random.default_rng(0).normal(0, 20, true.shape)
    assert 0 < scores_3d(pred, true)["auc_0_50"] < 1
    refused(lambda: scores_3d(pred / 1000, true / 1000), "true joints", "in metres, not in millimetres")
    refused(lambda: scores_3d(pred / 10, true / 10), "in centimetres, not in millimetres")
    refused(lambda: scores_3d(pred / 1000, true), "predicted joints", "they are in metres")
    refused(lambda: scores_2d(pred[..., :2] / 640, true[..., :2] / 640), "shares of a picture, not pixels")


# ---- frames to leave out


NAMES = dict(
    rhd="training/00001", stb="B1Random/1", dexter="Grasp1/0002", bighand="Subject_1/ego/image_D00000002"
)


@every_set
def test_the_advice_of_a_broken_image_works(tmp_path, name):
    opened = SETS[name](tmp_path)
    names = [sample.name for sample in opened()]
    reader = opened(skip=NAMES[name])
    assert len(reader) == len(names) - 1 and [reason for _, reason in reader.skipped] == [
        "left out on request"
    ]
    kinds = dict(rhd="color/00001.png", stb="B1Random/SK_color_1.png", bighand="ego/image_D00000002.png")
    if name in kinds:
        path = next(path for path in images(tmp_path) if path.as_posix().endswith(kinds[name]))
        path.write_bytes(path.read_bytes()[:-50])
        text = refused(lambda: list(opened()), f'skip="{NAMES[name]}"', "it is cut short")
        list(opened(skip=text.split('skip="')[1].split('"')[0]))
    refused(lambda: opened(skip="nothing at all"), "it names no frame")


def test_skip_goes_to_the_set_it_names(tmp_path):
    every = ", ".join(NAMES.values())
    for dataset, name in zip(("rhd", "stb", "dexter-object", "bighand"), SETS):
        assert skip_of(dataset, every) == [NAMES[name]]
    write_rhd(tmp_path)
    assert open_real("rhd", tmp_path, "training", skip=every).frames.tolist() == [0, 2]
    refused(lambda: open_real("rhd", tmp_path, "training", skip=7), "training has no such frame")
    refused(lambda: check_experiment(ExperimentSettings(skip="frame seven")), "names no frame of any dataset")


def test_a_notebook_may_give_numbers_or_lists():
    from handlab.privileged.stages import PiSettings

    for given, text in ((3, "3"), ([3, "training/4"], "3, training/4"), ("", ""), (None, "")):
        assert (
            settings_given(PiSettings, "smoke", {"skip": given, "steps_first": None, "out": ""}).skip == text
        )


@every_set
def test_everything_left_out_is_an_error_with_a_reason(tmp_path, name):
    opened = SETS[name](tmp_path)
    reader = opened()
    names = [str(sample.name) for sample in reader]
    refused(lambda: opened(skip=names), f"all its {len(names)} frames are left out", "left out on request")


# ---- hostile files


def crafted(body):
    return b"\x80\x02" + body + b"."


DTYPE = b"cnumpy\ndtype\n(U\x02%sI0\nI1\ntR"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I4\nt"
HOSTILE = dict(
    objects_from_bytes=ARRAY
    + DTYPE % b"O8"
    + b"(I3\nU\x01|NNNI-1\nI-1\nI0\ntbI00\nU\x20"
    + b"A" * 32
    + b"tb",
    short_list=ARRAY + DTYPE % b"O8" + b"(I3\nU\x01|NNNI-1\nI-1\nI63\ntbI00\n]tb",
    records=ARRAY + DTYPE % b"V8" + b"(I3\nU\x01|NNNI8\nI1\nI0\ntbI00\nU\x20" + b"A" * 32 + b"tb",
    disguised=ARRAY + DTYPE % b"f8" + b"(I3\nU\x01<N(U\x01at}I8\nI8\nI63\ntbI00\nU\x20" + b"A" * 32 + b"tb",
    too_few_bytes=ARRAY + DTYPE % b"f8" + b"(I3\nU\x01<NNNI-1\nI-1\nI0\ntbI00\nU\x08" + b"A" * 8 + b"tb",
    huge_array=b"cnumpy\nndarray\n((I1000000000000\nttR",
    unset=b"cnumpy.core.multiarray\nscalar\n(" + DTYPE % b"O8" + b"U\x08AAAAAAAAtR",
)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_crafted_pickle_is_refused(tmp_path, kind):
    path = tmp_path / "anno.pickle"
    path.write_bytes(crafted(HOSTILE[kind]))
    refused(lambda: read_pickle(path), "it cannot be read as arrays and plain containers")


@pytest.mark.parametrize("number", [2**31, 2**70, -1])
def test_a_frame_number_beyond_all_bounds(tmp_path, number):
    opened = write_rhd(tmp_path)
    labels = rhd_labels(tmp_path)
    write_labels(tmp_path, {**labels, number: labels[0]})
    refused(opened, "frames have numbers from 0 to")
    write_labels(tmp_path, {**labels, 10**8 - 1: labels[0]})  # allowed, and no array of that length is made
    refused(opened, "1 of 4 images are not there")
    (tmp_path / "training/color" / f"{'9' * 40}.png").touch()
    refused(opened, "1 of 4 images are not there")


def test_a_mat_bomb_is_bounded():
    opened = 1 << 24  # bytes of zeros in 16 kB
    packed = zlib.compress(struct.pack("<II", 14, opened) + bytes(opened), 9)
    header = b"MATLAB 5.0".ljust(124) + b"\0\1IM"
    with pytest.raises(ValueError, match="too large|no flags"):
        read_mat(header + (struct.pack("<II", 15, len(packed)) + packed) * 500, "handPara")
    with pytest.raises(ValueError, match="more than"):
        read_mat(header + struct.pack("<II", 1, 0) * 100_000, "handPara")


def test_a_png_that_promises_a_huge_picture(tmp_path):
    opened = write_tips(tmp_path)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(bytes(10**6))
    for edge in (16_000, 200_000):
        header = struct.pack(">IIBBBBB", edge, edge, 16, 0, 0, 0, 0)
        png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
        images(tmp_path)[0].write_bytes(png)
        refused(lambda: opened()[0], "Depth_0001.png")


def test_a_mask_of_one_pixel_is_no_crop():
    color, _, parts, annotation = rhd.drawn_frame(0)
    row, column = np.argwhere(parts > 17)[0]
    dot = np.zeros_like(parts)
    dot[row, column] = parts[row, column]
    sample = rhd.decode_frame("training/00000", color, None, dot, annotation)
    refused(
        lambda: crop_sample(sample, CropSettings(32, crop="mask")), "training/00000, mask: it is 1 px wide"
    )
    assert crop_sample(sample, CropSettings(32))["image"].shape == (40, 40, 3)


def test_depth_of_another_code_or_none_at_the_hand(tmp_path):
    opened = write_rhd(tmp_path)
    path = rhd.frame_path(tmp_path, "training", "depth", 0)
    code = np.asarray(Image.open(path))
    for wrong in (code[..., [1, 0, 2]], np.full_like(code, 255), np.zeros_like(code)):
        Image.fromarray(np.ascontiguousarray(wrong)).save(path)
        refused(lambda: opened()[0], "training/00000, depth", "it is not this frame's depth")


# ---- the right numbers, of another hand


TIP_FIRST = [0, 4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13, 20, 19, 18, 17]


def rewritten(root, change):
    "The texts of a BigHand set, their joints (21,3) changed."
    for path in Path(root).rglob("*.txt"):
        rows = [line.split() for line in path.read_text().splitlines()]
        path.write_text(
            "".join(
                "\t".join([row[0], *map(str, change(np.array(row[1:], float).reshape(21, 3)).ravel())]) + "\n"
                for row in rows
            )
        )


def stb_labels(root, change):
    "The labels (3,21,N) of an STB set changed."
    for sequence in stb.SPLITS["evaluation"]:
        stb.write_labels(root, sequence, change(stb.read_labels(stb.label_path(root, sequence))))


@pytest.mark.parametrize("name", ["rhd", "stb", "bighand"])
def test_joints_in_another_order_are_refused(tmp_path, name):
    opened = SETS[name](tmp_path)
    if name == "rhd":
        order = np.r_[TIP_FIRST, 21 + np.array(TIP_FIRST)]
        changed(tmp_path, xyz=lambda xyz: xyz[order], uv_vis=lambda uv: uv[order])
    elif name == "stb":
        stb_labels(tmp_path, lambda stored: stored[:, TIP_FIRST])
    else:
        rewritten(tmp_path, lambda joints: joints[BIGHAND_TO_CANONICAL])
    refused(opened, "its joints are stored in another order")


@pytest.mark.parametrize("name, axis", [("stb", 0), ("stb", 1), ("bighand", 0), ("bighand", 1)])
def test_hands_in_a_mirror_are_refused(tmp_path, name, axis):
    opened, mirror = SETS[name](tmp_path), np.ones(3)
    mirror[axis] = -1
    curl = np.zeros((21, 3))
    curl[[7, 8, 11, 12, 15, 16, 19, 20], 2] = -8  # mm: the fingers bend towards the camera, as the palm looks
    for fault in (False, True):
        flip = mirror if fault else np.ones(3)
        if name == "stb":
            bent = stb.stored_joints(mirror_joints(example_hand()) + curl)  # (3,21)
            stb_labels(tmp_path, lambda stored: np.repeat((bent * flip[:, None])[..., None], 3, 2))
        else:
            bent = (example_hand() + curl)[np.argsort(BIGHAND_TO_CANONICAL)]
            rewritten(tmp_path, lambda joints: bent * flip)
        if fault:
            refused(opened, "its fingers bend as those of the other hand")
        else:
            opened()


@pytest.mark.parametrize("change", ["one tenth", "ten times", "nothing"])
def test_depth_of_another_unit_at_the_tips(tmp_path, change):
    opened = write_tips(tmp_path)
    opened()
    for path in images(tmp_path):
        raw = np.asarray(Image.open(path)).astype(np.uint16)
        changed = {"one tenth": raw // 10, "ten times": raw * 10, "nothing": raw * 0}[change]
        Image.fromarray(changed.astype(np.uint16)).save(path)
    refused(opened, "depth", "no depth is near the tips")


@pytest.mark.parametrize("change", [(-1, -1, 1), (-1, 1, 1), (1, -1, 1)])
def test_tips_that_are_not_where_the_pixels_have_them(tmp_path, change):
    opened = write_tips(tmp_path)
    path = next(tmp_path.rglob("*3D.txt"))
    points = [[point.split(",") for point in line.split(";")] for line in path.read_text().splitlines()]
    points = np.array(points, float) * change
    path.write_text("\n".join(";".join(",".join(map(str, p)) for p in line) for line in points) + "\n")
    refused(opened, "Grasp13D.txt", "not where Grasp12D.txt has them")


def test_a_hand_that_is_too_far_away_is_no_hand(tmp_path):
    sample = write_stb(tmp_path)()[0]
    far = replace(sample, joints=sample.joints + np.float32([0, 0, 31_000]))
    refused(far.check, "31.5 metres away")


def test_a_mask_of_another_frame(tmp_path):
    opened = write_rhd(tmp_path)
    reader = opened()
    assert all(share_on_mask(sample.mask, sample.uv[sample.visible]) > 0.9 for sample in reader)
    shutil.rmtree(tmp_path / "training/depth")
    path = rhd.frame_path(tmp_path, "training", "mask", 0)
    Image.fromarray(np.roll(np.asarray(Image.open(path)), 150, 0)).save(path)
    refused(lambda: opened()[0], "training/00000, mask", "it is not this hand's", 'skip="training/00000"')


# ---- no images there


@pytest.mark.parametrize("name", ["rhd", "stb", "dexter"])
def test_a_folder_of_depth_without_images_is_no_depth(tmp_path, name):
    opened = SETS[name](tmp_path)
    assert opened().has_depth
    for path in images(tmp_path):
        if "depth" in str(path.relative_to(tmp_path)).lower():
            path.with_name("Thumbs.db").touch()
            path.unlink()
    reader = opened()
    assert not reader.has_depth and reader[0].depth is None


@pytest.mark.parametrize("name", ["stb", "dexter", "bighand"])
def test_images_of_another_format_are_named(tmp_path, name):
    opened = SETS[name](tmp_path)
    for path in [*images(tmp_path), *images(tmp_path, ".bmp")]:
        path.rename(path.with_suffix(".jpg"))
    refused(opened, "images are not there, the first is ", ", but ", ".jpg is there")


@every_set
def test_too_many_open_files_are_no_fault_of_the_set(tmp_path, name, monkeypatch):
    opened = SETS[name](tmp_path)
    reader = opened()

    def too_many(*arguments, **options):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", too_many)
        assert "unpack" not in refused(opened, "Too many open files", "ulimit -n")
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_bytes", too_many)
        patch.setattr("builtins.open", too_many)
        assert "unpack" not in refused(lambda: reader[0], "Too many open files", "ulimit -n")
