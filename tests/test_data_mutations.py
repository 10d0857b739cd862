"""Whole sets changed by a careless conversion: each kind is refused when the set is opened, in one line."""

import io
import itertools
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image
from test_data_dexter_object import frame as dexter_frame
from test_data_dexter_object import write as write_dexter
from test_data_outside import SETS, changed, every_set, images, refused, rewritten, stb_labels

from handlab.data import rhd
from handlab.data.dexter_object import DexterObject
from handlab.data.sample import Reader, by_sequence, nearness, read_tried
from handlab.hand.orders import BIGHAND_TO_CANONICAL, RHD_TO_CANONICAL, STB_TO_CANONICAL
from handlab.hand.skeleton import disordered, example_hand, mirror_joints


def fingers(order):
    "The 21 joints with the fingers in another order."
    return np.r_[0, np.concatenate([np.arange(1 + 4 * each, 5 + 4 * each) for each in order])]


def is_depth(path):
    return "depth" in path.name.lower() or "depth" in path.parent.name or path.name.startswith("image_D")


def rewrite(paths, change):
    "Images, each changed by a function of its pixels."
    for path in paths:
        pixels = np.ascontiguousarray(change(np.asarray(Image.open(path))))
        Image.fromarray(pixels).save(path)


def shift(paths):
    "Each file gets the content of the next one, the last that of the first."
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents[1:] + contents[:1]):
        path.write_bytes(content)


def test_every_other_order_of_the_fingers_is_seen():
    hand = example_hand()
    hands = {order: hand[fingers(order)] for order in itertools.permutations(range(5))}
    sound = {order for order, joints in hands.items() if not disordered(joints)}
    assert sound == {(0, 1, 2, 3, 4), (0, 4, 3, 2, 1)}  # the second bends as the other hand, see below


@pytest.mark.parametrize("order", [(4, 1, 2, 3, 0), (0, 2, 1, 3, 4)])
@pytest.mark.parametrize("name", ["rhd", "stb", "bighand"])
def test_fingers_in_another_order_are_refused(tmp_path, name, order):
    opened, order = SETS[name](tmp_path), fingers(order)
    if name == "rhd":
        order = np.argsort(RHD_TO_CANONICAL)[order[RHD_TO_CANONICAL]]
        order = np.r_[order, 21 + order]
        changed(tmp_path, xyz=lambda xyz: xyz[order], uv_vis=lambda uv: uv[order])
    elif name == "stb":
        order = STB_TO_CANONICAL[order[np.argsort(STB_TO_CANONICAL)]]
        stb_labels(tmp_path, lambda stored: stored[:, order])
    else:
        order = BIGHAND_TO_CANONICAL[order[np.argsort(BIGHAND_TO_CANONICAL)]]
        rewritten(tmp_path, lambda joints: joints[order])
    refused(opened, "its joints are stored in another order")


def both_hands(change=lambda hands: hands):
    "Labels of three frames with bent hands, the left one changed into the right one's mirror image."
    curled = example_hand()
    curled[[7, 8, 11, 12, 15, 16, 19, 20], 2] -= 10
    hands = change(np.stack([mirror_joints(curled), curled])[:, RHD_TO_CANONICAL]).reshape(42, 3)
    uv_vis = np.ones((42, 3))
    return dict(xyz=np.stack([hands / 1000] * 3), uv_vis=np.stack([uv_vis] * 3))


@pytest.mark.parametrize("change", ["left and right", "mirror", "y axis", "four fingers"])
def test_rhd_sides_are_those_of_the_hands(change):
    rhd._check_sides("anno.pickle", both_hands())
    reverse = RHD_TO_CANONICAL[fingers((0, 4, 3, 2, 1))[RHD_TO_CANONICAL]]
    wrong = {
        "left and right": lambda hands: hands[::-1],
        "mirror": lambda hands: hands * [-1, 1, 1],
        "y axis": lambda hands: hands * [1, -1, 1],
        "four fingers": lambda hands: hands[:, reverse],
    }[change]
    refused(lambda: rhd._check_sides("anno.pickle", both_hands(wrong)), "bend as those of the other hand")


@every_set
@pytest.mark.parametrize("kind", ["moved", "tenth"])
def test_depth_that_is_not_of_these_labels(tmp_path, name, kind):
    opened = SETS[name](tmp_path)
    if name == "dexter":  # a fixture whose depth is a wall: all at the distance of the tips
        rewrite([path for path in images(tmp_path) if is_depth(path)], lambda depth: depth - 115)
    reader = opened().check()
    assert name == "dexter" or all(nearness(sample) > 0.5 for sample in reader)
    if (name, kind) in (("rhd", "tenth"), ("stb", "tenth"), ("dexter", "moved")):
        return  # depth in two bytes has no other unit, and a wall looks the same everywhere
    paths = [path for path in images(tmp_path) if is_depth(path)]
    rewrite(paths, {"moved": lambda depth: np.roll(depth, 150, 1), "tenth": lambda depth: depth // 10}[kind])
    refused(lambda: opened().check(), "another unit" if name != "dexter" else "depth")


def test_one_frame_of_other_depth_is_no_fault_of_the_set(tmp_path):
    opened = SETS["rhd"](tmp_path)
    rewrite([rhd.frame_path(tmp_path, "training", "depth", 1)], lambda depth: np.roll(depth, 150, 1))
    reader = opened().check()
    reader[0].check()
    refused(lambda: reader[1], "training/00001, depth", 'skip="training/00001"')


@pytest.mark.parametrize("name", ["rhd", "stb"])
def test_red_and_blue_exchanged(tmp_path, name):
    opened = SETS[name](tmp_path)
    rewrite([path for path in images(tmp_path) if "color" in str(path)], lambda color: color[..., ::-1])
    refused(lambda: opened().check(), "red and blue are exchanged")


@pytest.mark.parametrize("kind", ["color", "mask", "depth", "labels"])
def test_rhd_rows_and_images_of_other_frames(tmp_path, kind):
    rhd.write_drawn(tmp_path, "training", 16)
    rhd.RHD(tmp_path).check()
    if kind == "labels":
        path = rhd.annotation_path(tmp_path, "training")
        labels = rhd.read_pickle(path)
        moved = {number: labels[(number + 2) % 16] for number in labels}  # of the same side
        rhd.write_annotation(tmp_path, "training", moved, source="drawn")
    else:
        shift(images(tmp_path / "training" / kind))
    found = "do not show the hand that the mask" if kind == "color" else "the hand is not where"
    refused(lambda: rhd.RHD(tmp_path).check(), found)


class Videos(Reader):
    "Three recordings of drawn hands; of some frames another one's colours or labels."

    root, frames = "videos", [(name, number) for name in ("one", "two", "three") for number in range(6)]
    recordings = property(by_sequence)
    colours, labels = {}, {}  # {index: that of which frame}
    drawn = [rhd.decode_frame(f"drawn/{number}", *rhd.drawn_frame(number)) for number in range(0, 36, 2)]

    def __getitem__(self, index):
        image = self.drawn[self.colours.get(index, index)].image
        labels = self.drawn[self.labels.get(index, index)]
        here = replace(self.drawn[index], image=image, joints=labels.joints, uv=labels.uv)
        return replace(here, visible=labels.visible, K=labels.K)


@pytest.mark.parametrize("kind", ["colours", "labels"])
@pytest.mark.parametrize("where", ["set", "recording"])
def test_a_video_or_a_set_with_frames_of_others(kind, where):
    videos = Videos().check()
    frames = range(18) if where == "set" else range(6, 12)
    setattr(videos, kind, dict(zip(frames, [*frames[2:], *frames[:2]])))
    found = dict(colours="the colours do not show the hand", labels="")[kind]
    refused(videos.check, "videos: in", found, "frames tried of two" if where == "recording" else "tried, ")
    setattr(videos, kind, {6: 7})  # one frame says nothing of its video
    videos.check()


def test_lines_of_one_text_in_another_order(tmp_path):
    opened = SETS["bighand"](tmp_path)
    opened().check()
    text = sorted((tmp_path / "full_annotation").rglob("*.txt"))[0]
    lines = [line.split("\t", 1) for line in text.read_text().splitlines(True)]
    moved = [label for _, label in lines[1:] + lines[:1]]
    text.write_text("".join(f"{number}\t{label}" for (number, _), label in zip(lines, moved)))
    refused(opened().check, "3 frames tried of Subject_1/1 75", "fit better than its own")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (lambda flags: 0 * flags, "no joint is flagged as visible"),
        (lambda flags: 1 - flags, "a joint outside the picture is flagged as visible"),
        (lambda flags: 2 * flags, "a flag of visibility is neither 0 nor 1"),
    ],
)
def test_flags_of_visibility_that_cannot_be(tmp_path, flags, said):
    opened = SETS["rhd"](tmp_path)
    opened()
    changed(tmp_path, uv_vis=lambda uv: np.column_stack([uv[:, :2], flags(uv[:, 2])]))
    refused(opened, "all its 3 frames are left out", said)


def test_hidden_and_still_hands_are_no_fault():
    still = Videos()
    still.drawn = [still.drawn[0]] * 18
    still.check()
    behind = [np.where(each.mask, each.depth - 0.06, each.depth) for each in Videos.drawn]
    for index in range(6, 12):  # in one recording, behind an object
        still.drawn[index] = replace(Videos.drawn[index], depth=behind[index].astype(np.float32))
    still.check()


@pytest.mark.parametrize(("name", "videos"), [("rhd", 1), ("stb", 2), ("dexter", 1), ("bighand", 3)])
def test_every_set_names_its_recordings(tmp_path, name, videos):
    reader = SETS[name](tmp_path)()
    names, numbers = reader.recordings
    assert len(names) == videos and len(numbers) == len(reader)
    assert all(names[number] in reader[index].name for index, number in enumerate(numbers))


def dexter_lines(root, change):
    "The lines of a 3D annotation, each a list of groups, changed."
    path = next(root.rglob("*3D.txt"))
    lines = [line.split(";") for line in path.read_text().splitlines()]
    path.write_text("\n".join(";".join(line) for line in change(lines)) + "\n")


@pytest.mark.parametrize("kind", ["lines are shifted by one", "tips 2 and 3 are exchanged"])
def test_one_of_two_annotations_in_another_arrangement(tmp_path, kind):
    write_dexter(tmp_path, {"Grasp1": [dexter_frame(number) for number in range(8)]})
    DexterObject(tmp_path, "Grasp1")
    exchanged = [0, 2, 1, 3, 4, 5, 6, 7]
    dexter_lines(
        tmp_path,
        lambda lines: (
            lines[1:] + lines[:1]
            if kind.startswith("lines")
            else [[line[point] for point in exchanged] for line in lines]
        ),
    )
    refused(lambda: DexterObject(tmp_path, "Grasp1"), "Grasp13D.txt", f"its {kind} against Grasp12D.txt")


def encoded(pixels, kind) -> bytes:
    "A picture in a form that it does not have in the dataset."
    file = io.BytesIO()
    if kind == "16 bits":
        return cv2.imencode(".png", pixels.astype(np.uint16))[1].tobytes()
    eight = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    if kind == "4 bits":
        grey = Image.fromarray(eight if eight.ndim == 2 else eight[..., 0]).convert("P")
        grey.putpalette([value for value in range(16) for _ in range(3)])
        Image.fromarray(np.asarray(grey) % 16).convert("P").save(file, "PNG", bits=4)
        return file.getvalue()
    mode = {"JPEG": "RGB", "grey": "L", "palette": "P", "RGBA": "RGBA"}[kind]
    image = Image.fromarray(eight).convert("RGB").convert(mode)
    image.save(file, "JPEG" if kind == "JPEG" else "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["16 bits", "4 bits", "JPEG", "grey", "palette", "RGBA"])
@pytest.mark.parametrize("name", ["rhd", "stb", "dexter", "bighand"])
def test_pictures_of_another_form_are_named(tmp_path, name, kind):
    opened = SETS[name](tmp_path / "set")
    for place in images(tmp_path / "set"):
        pixels = np.asarray(Image.open(place))
        due = pixels.ndim == 2 and (kind == "16 bits") == (pixels.dtype != np.uint8)
        if due and kind in ("grey", "16 bits"):
            continue  # a mask is grey, depth has 16 bits
        shutil.copy(place, tmp_path / "kept")
        place.write_bytes(encoded(pixels, kind))
        refused(lambda: list(opened()), place.name)
        shutil.copy(tmp_path / "kept", place)


def test_a_set_of_broken_images_can_be_opened(tmp_path):
    opened = SETS["bighand"](tmp_path)
    for path in images(tmp_path):
        path.write_bytes(b"")
    reader = opened().check()  # what is broken is named when it is read
    refused(lambda: reader[0], "it is not a PNG file")
    assert read_tried(reader) == {}
