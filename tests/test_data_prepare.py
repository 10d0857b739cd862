"""Prepared crops: right pixels, bounded work, and nothing that looks finished unless it is."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from kills import kills_of
from scipy.ndimage import map_coordinates

from handlab.core import HandlabError, write_json
from handlab.data import arrays
from handlab.data import prepare as module
from handlab.data.prepare import (
    CropSettings,
    crop_colour,
    crop_nearest,
    crop_sample,
    mirror_sample,
    open_prepared,
    prepare,
)
from handlab.data.rhd import RHD, decode_frame, drawn_frame, write_drawn
from handlab.data.sample import Sample
from handlab.hand.camera import crop_matrix
from handlab.machine import WorkerDied

SMALL = CropSettings(size=24)
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(module.__file__).parents[2]),
}  # for scripts that lie elsewhere


class Drawn:
    "A reader of drawn frames that may fail or be slow."

    source = "drawn"

    def __init__(self, count=6, fail_at=None, identity="one", pause=0.0):
        self.count, self.fail_at, self.name, self.pause, self.read = count, fail_at, identity, pause, []

    def identity(self):
        return self.name

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.fail_at:
            raise HandlabError(
                f"drawn/{index:05d}", "the image cannot be decoded", "unpack the dataset again"
            )
        self.read.append(index)
        time.sleep(self.pause)
        return decode_frame(f"drawn/{index:05d}", *drawn_frame(index))


def quiet(reader, folder, settings=SMALL, **options):
    return prepare(reader, folder, settings, **{"workers": 1, "show_progress": False, **options})


def zoom(factor, shift=(0.0, 0.0)):
    return np.array([[factor, 0, shift[0]], [0, factor, shift[1]], [0, 0, 1.0]])


# ---- resampling


@pytest.mark.parametrize("factor, shift", [(1.7, (3.3, -2.1)), (1.0, (0.5, 0.25)), (3.0, (-20.0, -31.0))])
def test_enlarging_is_bilinear(factor, shift):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    v, u = np.mgrid[:60, :60]
    where = [(v - shift[1]) / factor, (u - shift[0]) / factor]
    expected = np.stack(
        [
            map_coordinates(image[..., c].astype(float), where, order=1, mode="constant", cval=128)
            for c in range(3)
        ],
        -1,
    )
    inside = (where[0] >= 0) & (where[0] <= 39) & (where[1] >= 0) & (where[1] <= 49)
    difference = np.abs(crop_colour(image, zoom(factor, shift), 60) - expected)[inside]
    assert difference.max() <= 255 / 32 + 1 and difference.mean() < 2  # OpenCV places samples on 1/32 px


def test_shrinking_averages():
    image = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    for factor in (2, 3, 5):
        matrix = crop_matrix(np.array([29.5, 29.5, 60.0]), 60 // factor)
        blocks = image.reshape(60 // factor, factor, 60 // factor, factor, 3).mean((1, 3))
        assert np.abs(crop_colour(image, matrix, 60 // factor).astype(float) - blocks).max() <= 1


def test_shrinking_does_not_skip_pixels():
    board = np.repeat((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, -1)
    crop = crop_colour(board, crop_matrix(np.array([31.5, 31.5, 64.0]), 20), 20)  # 3.2 px a px
    assert np.abs(crop.astype(int) - 127).max() < 30


@given(st.floats(0.3, 4), st.floats(-20, 20), st.floats(-20, 20))
@hypothesis_settings(max_examples=30, deadline=None)
def test_nearest_takes_the_nearest(factor, shift_u, shift_v):
    pixels = np.arange(1, 30 * 20 + 1, dtype=np.uint16).reshape(30, 20)
    crop = crop_nearest(pixels, zoom(factor, (shift_u, shift_v)), 16)
    for j in range(0, 16, 3):
        for i in range(0, 16, 3):
            u, v = (i - shift_u) / factor, (j - shift_v) / factor
            if min(abs(u % 1 - 0.5), abs(v % 1 - 0.5)) < 1e-6:
                continue  # a tie
            column, row = round(u), round(v)
            assert crop[j, i] == (pixels[row, column] if 0 <= row < 30 and 0 <= column < 20 else 0)


def test_depth_and_mask_never_mix():
    sample = Drawn()[0]
    for size in (16, 48, 200):
        row = crop_sample(sample, CropSettings(size=size))
        allowed = {
            0,
            *np.unique(np.rint(sample.depth[np.isfinite(sample.depth)] * 10000).astype(int)).tolist(),
        }
        assert set(np.unique(row["depth"]).tolist()) <= allowed and set(np.unique(row["mask"]).tolist()) <= {
            0,
            1,
        }


# ---- geometry


def spot(u, v, K=None, side="right"):
    "A black frame with one bright spot, at which all joints lie."
    grid_v, grid_u = np.mgrid[:240, :320]
    image = np.repeat(
        (255 * np.exp(-((grid_u - u) ** 2 + (grid_v - v) ** 2) / 18)).astype(np.uint8)[..., None], 3, -1
    )
    K = np.float32([[300, 0, 150], [0, 300, 110], [0, 0, 1]]) if K is None else K
    joints = np.tile(np.float32([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], 1]) * 500, (21, 1))
    joints *= 1 + np.float32(0.06) * (np.arange(21) % 2)[:, None].astype(
        np.float32
    )  # bones of 30 mm, along the ray
    mask = np.hypot(grid_u - u, grid_v - v) < 9
    return Sample(
        image,
        np.where(mask, 0.5, np.nan).astype(np.float32),
        mask,
        joints,
        np.tile(np.float32([u, v]), (21, 1)),
        np.ones(21, bool),
        K,
        side,
        "spot/0",
    )


def centroid(picture):
    weight = picture.astype(float)
    v, u = np.indices(picture.shape)
    return np.array([(u * weight).sum(), (v * weight).sum()]) / weight.sum()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [16, 64, 96])
@pytest.mark.parametrize("crop", ["zb", "mask"])
def test_pixels_go_where_labels_go(side, size, crop):
    sample, settings = spot(171.3, 96.8, side=side), CropSettings(size=size, crop=crop, context=1.5)
    row = crop_sample(sample, settings)
    assert bool(row["mirrored"]) == (side == "left")
    edge, (u, v, length) = settings.stored, row["box"].astype(float)
    expected = (row["uv"][9] - [u, v]) * size / length + (
        edge - 1
    ) / 2  # the box's centre is the array's centre
    tolerance = 0.05 * size / length * 16 + 0.1
    assert np.abs(centroid(row["mask"]) - expected).max() < tolerance + 0.5
    assert np.abs(centroid(row["image"][..., 0] * (row["mask"] > 0)) - expected).max() < tolerance + 0.5
    assert set(np.unique(row["depth"]).tolist()) == {0, 5000}


def test_the_centre_of_the_stored_array_is_the_crop_without_context():
    sample = Drawn()[0]
    for size in (16, 50, 65):
        wide, tight = (
            crop_sample(sample, CropSettings(size=size, context=context)) for context in (1.4, 1.0)
        )
        margin = (len(wide["image"]) - size) // 2
        assert margin > 0 and len(tight["image"]) == size
        for key in ("image", "depth", "mask"):
            difference = np.abs(wide[key][margin:-margin, margin:-margin].astype(int) - tight[key])
            assert difference.max() <= (2 if key == "image" else 0)


def test_mirroring_by_hand():
    sample = spot(100.0, 50.0, side="left")
    mirrored = mirror_sample(sample)
    assert (
        np.allclose(mirrored.uv[0], [219, 50])
        and np.allclose(mirrored.K, [[300, 0, 169], [0, 300, 110], [0, 0, 1]])
        and mirrored.side == "right"
    )
    assert np.allclose(mirrored.joints, sample.joints * [-1, 1, 1])
    assert np.array_equal(mirrored.image, sample.image[:, ::-1]) and np.array_equal(
        mirrored.depth, sample.depth[:, ::-1], equal_nan=True
    )
    uvw = mirrored.joints @ mirrored.K.T
    assert np.allclose(uvw[:, :2] / uvw[:, 2:], mirrored.uv, atol=1e-3)


def test_hands_are_folded_only_when_asked():
    assert bool(crop_sample(spot(100.0, 50.0, side="left"), CropSettings(size=16))["mirrored"])
    row = crop_sample(spot(100.0, 50.0, side="left"), CropSettings(size=16, fold="none"))
    assert not row["mirrored"] and np.allclose(row["uv"][0], [100, 50])


def test_outside_the_photograph():
    row = crop_sample(spot(3.0, 3.0), CropSettings(size=32))
    assert (row["image"][0, 0] == 128).all() and row["mask"][0, 0] == 0 and row["depth"][0, 0] == 0


# ---- the folder


def same_arrays(one, two):
    assert one.arrays.keys() == two.arrays.keys()
    for key in one.arrays:
        assert np.array_equal(one.arrays[key], two.arrays[key]), key


def test_files_and_stream_and_any_number_of_workers_agree(tmp_path, capfd):
    write_drawn(tmp_path / "rhd", "evaluation", 10)
    reader = RHD(tmp_path / "rhd", "evaluation")
    one, two = quiet(reader, tmp_path / "one"), prepare(reader, tmp_path / "two", SMALL, workers=2)
    assert "10/10" in capfd.readouterr().out  # the progress bar

    class Stream(Drawn):
        def __getitem__(self, index):
            return decode_frame(f"evaluation/{index:05d}", *drawn_frame(index))

    stream = quiet(Stream(10), tmp_path / "stream")
    same_arrays(one, two), same_arrays(one, stream)
    assert one.fingerprint == two.fingerprint == stream.fingerprint
    assert (one.source, len(one), one.settings) == ("drawn", 10, SMALL)
    row = crop_sample(reader[7], SMALL)
    for key in one.arrays:
        assert np.array_equal(getattr(one, key)[7], row[key]), key
    assert one.image.dtype == np.uint8 and one.depth.dtype == np.uint16 and one.joints.dtype == np.float32
    assert isinstance(one.image, np.memmap)


def test_the_fingerprint_follows_the_content(tmp_path):
    names = [
        quiet(Drawn(4), tmp_path / "a").fingerprint,
        quiet(Drawn(4), tmp_path / "b", CropSettings(size=26)).fingerprint,
        quiet(Drawn(3), tmp_path / "c").fingerprint,
    ]

    class Brighter(Drawn):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            sample.image[150, 150] += 1 if index == 2 else 0
            return sample

    names.append(quiet(Brighter(4), tmp_path / "d", CropSettings(size=300)).fingerprint)
    names.append(quiet(Drawn(4), tmp_path / "e", CropSettings(size=300)).fingerprint)
    assert len(set(names)) == 5


def test_asked_again_nothing_is_read(tmp_path):
    first = quiet(Drawn(), tmp_path / "crops")
    before = {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    again = Drawn(fail_at=0)
    assert quiet(again, tmp_path / "crops").fingerprint == first.fingerprint
    assert (
        again.read == [] and {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before
    )


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(size=32), "size=24, not 32"),
        (dict(crop="mask"), "crop='zb', not 'mask'"),
        (dict(fold="none"), "fold='right', not 'none'"),
        (dict(context=1.5), "context=1.25, not 1.5"),
    ],
)
def test_other_settings_are_named(tmp_path, change, said):
    quiet(Drawn(), tmp_path / "crops")
    from dataclasses import replace

    with pytest.raises(HandlabError) as error:
        quiet(Drawn(), tmp_path / "crops", replace(SMALL, **change))
    assert f"crops: it was prepared with {said}; name another folder, or delete this one" in str(error.value)


def test_other_data_is_named(tmp_path):
    quiet(Drawn(), tmp_path / "crops")
    with pytest.raises(HandlabError, match="crops: it was prepared from other data"):
        quiet(Drawn(identity="two"), tmp_path / "crops")


def test_identity_of_a_reader_without_one(tmp_path):
    class Plain:
        def __init__(self, brightness):
            self.brightness = brightness

        def __len__(self):
            return 3

        def __getitem__(self, index):
            color, *rest = drawn_frame(index)
            return decode_frame(f"plain/{index}", np.clip(color + np.uint8(self.brightness), 0, 255), *rest)

    quiet(Plain(0), tmp_path / "crops")
    assert quiet(Plain(0), tmp_path / "crops").source == "Plain"
    with pytest.raises(HandlabError, match="other data"):
        quiet(Plain(3), tmp_path / "crops")


def left_in(folder):
    "The names in a folder; an empty lock file may stay."
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_failing_frame_leaves_nothing(tmp_path):
    with pytest.raises(HandlabError, match="drawn/00004: the image cannot be decoded; unpack"):
        quiet(Drawn(fail_at=4), tmp_path / "crops")
    assert left_in(tmp_path) == []


def test_a_broken_file_in_a_worker_is_named(tmp_path):
    write_drawn(tmp_path / "rhd", "evaluation", 8)
    broken = tmp_path / "rhd/evaluation/color/00005.png"
    broken.write_bytes(broken.read_bytes()[:1000])
    with pytest.raises(HandlabError, match="color/00005.png: the image cannot be decoded"):
        quiet(RHD(tmp_path / "rhd", "evaluation"), tmp_path / "crops", workers=2)
    assert left_in(tmp_path) == ["rhd"]


def test_frames_must_have_the_same_fields(tmp_path):
    class Uneven(Drawn):
        def __getitem__(self, index):
            color, depth, *rest = drawn_frame(index)
            return decode_frame(f"drawn/{index}", color, None if index == 3 else depth, *rest)

    with pytest.raises(HandlabError, match="drawn/3: it has image, mask, the first frame image, depth, mask"):
        quiet(Uneven(), tmp_path / "crops")


def test_no_frames_at_all(tmp_path):
    with pytest.raises(HandlabError, match="Drawn has no frame|drawn has no frame"):
        quiet(Drawn(0), tmp_path / "crops")


@pytest.mark.parametrize(
    "settings, said",
    [
        (CropSettings(size=4), "size: 4 is not possible"),
        (CropSettings(context=0.5), "context: 0.5 is not possible"),
        (CropSettings(crop="box"), "crop: 'box'"),
        (CropSettings(fold="left"), "fold: 'left'"),
        (CropSettings(size="64"), "'64' is not int"),
    ],
)
def test_settings_that_cannot_be(tmp_path, settings, said):
    with pytest.raises(HandlabError, match=said):
        quiet(Drawn(), tmp_path / "crops", settings)


def test_folders_that_are_not_prepared(tmp_path):
    (tmp_path / "crops").mkdir()
    assert len(quiet(Drawn(2), tmp_path / "crops")) == 2  # an empty folder may be filled
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(HandlabError, match="other: it is not a prepared folder"):
        quiet(Drawn(2), tmp_path / "other")
    assert (tmp_path / "other/notes.txt").read_text() == "mine"
    with pytest.raises(HandlabError, match="nowhere: it is not a prepared folder"):
        open_prepared(tmp_path / "nowhere")


def test_folders_that_were_damaged(tmp_path):
    folder = quiet(Drawn(4), tmp_path / "crops").folder
    meta = json.loads((folder / "meta.json").read_text())
    for change, said in (
        (dict(finished=False), "it was never finished"),
        (dict(version=0), "another version"),
        (dict(settings=dict(colour=1)), "it is not what this version writes"),
    ):
        write_json(folder / "meta.json", {**meta, **change}, sealed=True)
        with pytest.raises(HandlabError, match=said):
            open_prepared(folder)
    write_json(folder / "meta.json", meta, sealed=True)
    np.save(folder / "uv.npy", np.zeros((3, 21, 2), np.float32))  # a frame too few
    with pytest.raises(HandlabError, match="uv.npy: the file is missing or cut short"):
        open_prepared(folder)
    folder = quiet(Drawn(4), tmp_path / "again").folder
    whole = (folder / "image.npy").read_bytes()
    (folder / "image.npy").write_bytes(whole[:-1])
    with pytest.raises(HandlabError, match="image.npy: the file is missing or cut short"):
        open_prepared(folder)
    (folder / "image.npy").unlink()
    with pytest.raises(HandlabError, match="image.npy: the file is missing or cut short"):
        open_prepared(folder)


# ---- views


def test_subsets_are_views(tmp_path):
    whole = quiet(Drawn(8), tmp_path / "crops")
    tail = whole.subset(slice(5, None))
    assert (
        len(tail) == 3
        and np.array_equal(tail.uv, whole.uv[5:])
        and np.shares_memory(tail.image, whole.subset(slice(0, 8)).image) is False
    )
    assert isinstance(tail.image, np.memmap) and tail.image.base is not None  # a run is not copied
    odd = whole.subset(np.arange(8) % 2 == 1)
    assert odd.name.tolist() == [f"drawn/{index:05d}" for index in (1, 3, 5, 7)]
    assert odd.subset([3, 0]).name.tolist() == ["drawn/00007", "drawn/00001"]
    assert len({prepared.fingerprint for prepared in (whole, tail, odd)}) == 3
    assert whole.subset(range(2, 4)).name.tolist() == ["drawn/00002", "drawn/00003"]
    assert len(whole.subset([])) == 0 and len(whole.subset([]).uv) == 0
    with pytest.raises(AttributeError):
        whole.colour


def test_prepared_travels_light(tmp_path):
    tail = quiet(Drawn(8), tmp_path / "crops").subset(slice(5, None))
    data = pickle.dumps(tail)
    assert len(data) < 2000 and np.array_equal(pickle.loads(data).image, tail.image)


# ---- killed, and out of room

SCRIPT = """
import sys, time
from handlab.data.prepare import CropSettings, prepare
from handlab.data.rhd import RHD
class Slow(RHD):
    def __getitem__(self, index):
        time.sleep(.15)
        return super().__getitem__(index)
if __name__ == '__main__':
    crops = CropSettings(size=24)
    prepare(Slow(sys.argv[1], 'evaluation'), sys.argv[2], crops, int(sys.argv[3]), show_progress=False)
"""


def alive(pid):
    "Whether a process still runs (a zombie does not)."
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def children(pid):
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def wait_for(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.02)


def rows_written(folder):
    "How many frames of an unfinished folder have their digest, which is written last."
    for path in folder.glob(".crops.*.partial/digests.npy"):
        if path.stat().st_size == 128 + 16 * 16:
            return int((np.frombuffer(path.read_bytes()[128:], np.uint8).reshape(16, 16) > 0).any(1).sum())
    return 0


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_half_way_nothing_counts_as_done(tmp_path, workers):
    write_drawn(tmp_path / "rhd", "evaluation", 16)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py", tmp_path / "rhd", tmp_path / "crops", str(workers)]
    process = subprocess.Popen(command, env=ENVIRONMENT)
    wait_for(lambda: rows_written(tmp_path) > 2)
    workers_ids = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "crops").exists() and len(list(tmp_path.glob(".crops.*.partial"))) == 1
    with pytest.raises(HandlabError):
        open_prepared(tmp_path / "crops")
    with pytest.raises(HandlabError):
        open_prepared(next(tmp_path.glob(".crops.*.partial")))
    wait_for(lambda: not any(map(alive, workers_ids)))  # no orphan goes on writing
    done = int(np.load(next(tmp_path.glob(".crops.*.partial")) / "digests.npy").any(1).sum())
    reader = Recording(tmp_path / "rhd", "evaluation")
    whole = quiet(reader, tmp_path / "crops")
    assert (
        0 < done < 16 and len(reader.read) == 1 + 16 - done
    )  # the first to know it again, then what is missing
    assert len(whole) == 16 and not list(tmp_path.glob(".crops.*.partial"))  # and what was left is gone
    fresh = quiet(RHD(tmp_path / "rhd", "evaluation"), tmp_path / "fresh")
    same_files(whole.folder, fresh.folder)


def test_killed_at_any_change_of_files_it_goes_on(tmp_path):
    def job(name):
        return quiet(Drawn(3), tmp_path / str(name) / "crops").folder

    whole, killed = job("whole"), list(kills_of(job))
    for call in killed:
        folder = job(call)
        same_files(folder, whole)
        left, without = (sorted(path.name for path in each.parent.iterdir()) for each in (folder, whole))
        assert left == without, call
    assert len(killed) > 20


class Recording(RHD):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


def same_files(one, two):
    "Hidden files note the dates of the others."
    files = [
        {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}
        for folder in (one, two)
    ]
    assert (
        "digests.npy" not in files[0]
        and files[0].keys() == files[1].keys()
        and [name for name in files[0] if files[0][name] != files[1][name]] == []
    )


class Interrupted(Drawn):
    "A reader at whose frame somebody presses Ctrl-C."

    def __getitem__(self, index):
        if index == self.fail_at:
            raise KeyboardInterrupt
        return super().__getitem__(index)


def interrupt(folder, at=30, count=40, **options):
    "A run that is stopped at a frame; its growing folder."
    with pytest.raises(KeyboardInterrupt):
        quiet(Interrupted(count, fail_at=at), folder, **options)
    return next(folder.parent.glob(f".{folder.name}.*.partial"))


def test_an_interrupted_run_goes_on(tmp_path):
    growing = interrupt(tmp_path / "crops")
    assert sorted(np.flatnonzero(np.load(growing / "digests.npy").any(1))) == list(
        range(30)
    )  # runs of 10 here
    with pytest.raises(HandlabError):
        open_prepared(growing)
    reader = Drawn(40)
    crops = quiet(reader, tmp_path / "crops", workers=1)
    assert reader.read == [0, *range(30, 40)] and left_in(tmp_path) == ["crops"]
    same_files(crops.folder, quiet(Drawn(40), tmp_path / "fresh").folder)
    again = interrupt(tmp_path / "twice", 12)
    with pytest.raises(KeyboardInterrupt):
        quiet(Interrupted(40, fail_at=25), tmp_path / "twice")  # stopped twice
    assert sorted(np.flatnonzero(np.load(again / "digests.npy").any(1))) == list(range(20))
    same_files(crops.folder, quiet(Drawn(40), tmp_path / "twice").folder)


def test_what_is_torn_is_made_again(tmp_path):
    "Power was cut: rows are half on disk, or their digests are."
    fresh = quiet(Drawn(40), tmp_path / "fresh")
    growing = interrupt(tmp_path / "crops")
    for file, row in (("image", 3), ("uv", 7), ("name", 12), ("digests", 15), ("mirrored", 17)):
        array = np.load(growing / f"{file}.npy", mmap_mode="r+")
        array[row] = array[row + 1] if file != "mirrored" else ~array[row]
        array.flush()
    reader = Drawn(40)
    same_files(fresh.folder, quiet(reader, tmp_path / "crops").folder)
    assert reader.read == [0, 3, 7, 12, 15, 17, *range(30, 40)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "image.npy").unlink(),
        lambda folder: (folder / "uv.npy").write_bytes(b"x"),
        lambda folder: (folder / "digests.npy").unlink(),
        lambda folder: (folder / "K.npy").write_bytes((folder / "K.npy").read_bytes()[:-4]),
        lambda folder: np.save(folder / "joints.npy", np.zeros((39, 21, 3), np.float32)),
    ],
)
def test_a_damaged_rest_is_made_anew(tmp_path, damage):
    damage(interrupt(tmp_path / "crops"))
    same_files(quiet(Drawn(40), tmp_path / "crops").folder, quiet(Drawn(40), tmp_path / "fresh").folder)


def test_other_work_does_not_go_on_with_it(tmp_path):
    for number, (reader, settings) in enumerate(
        ((Drawn(40), CropSettings(size=26)), (Drawn(40, identity="two"), SMALL), (Drawn(41), SMALL))
    ):
        folder = tmp_path / str(number) / "crops"
        folder.parent.mkdir()
        interrupt(folder)
        assert len(quiet(reader, folder, settings)) == len(reader) and len(reader.read) == len(reader) + 1
        assert left_in(folder.parent) == ["crops"]

    class Darker(Drawn):  # the same identity, but frames are decoded otherwise now
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            sample.image[:] //= 2
            return sample

    interrupt(tmp_path / "crops")
    same_files(quiet(Darker(40), tmp_path / "crops").folder, quiet(Darker(40), tmp_path / "fresh").folder)


def test_a_dead_worker_loses_nothing(tmp_path, monkeypatch):
    def dying(function, spans, workers):
        yield function(spans[0])
        raise WorkerDied("worker processes", "one was killed", "call it again")

    with monkeypatch.context() as patch:
        patch.setattr(module, "in_processes", dying)
        with pytest.raises(HandlabError, match="one was killed; call it again"):
            quiet(Drawn(40), tmp_path / "crops")
    reader = Drawn(40)
    quiet(reader, tmp_path / "crops")
    assert reader.read == [0, *range(10, 40)]


def test_the_rest_counts_as_room_that_is_there(tmp_path, monkeypatch):
    growing = interrupt(tmp_path / "crops")
    taken, need = (
        sum(path.stat().st_blocks * 512 for path in growing.iterdir()),
        40 * sum(array.nbytes for array in crop_sample(Drawn()[0], SMALL).values()),
    )
    monkeypatch.setattr(arrays.shutil, "disk_usage", lambda path: SimpleNamespace(free=need - taken + 4096))
    assert taken > 30 * 1000 and len(quiet(Drawn(40), tmp_path / "crops")) == 40


def test_names_of_any_length(tmp_path):
    class Named(Drawn):
        def __getitem__(self, index):
            return decode_frame("a" * (index + 60), *drawn_frame(index))

    assert (
        quiet(Named(6), tmp_path / "crops").name.tolist() == ["a" * (index + 60) for index in range(6)]
        and open_prepared(tmp_path / "crops").name.dtype == "<U65"
    )
    with pytest.raises(HandlabError, match="its name is longer than 96 letters"):
        quiet(Named(38), tmp_path / "long")


MEMORY = """
import sys
from handlab.data import batches as held
from handlab.data.prepare import CropSettings, prepare
from handlab.data.batches import Batches
from handlab.data.rhd import decode_frame, drawn_frame
held._HELD = 400  # above it labels stay on the disk
SAMPLE = decode_frame('drawn/0', *drawn_frame(0))
class Same:
    source = 'same'
    def __init__(self, count): self.count = count
    def identity(self): return 'same'
    def __len__(self): return self.count
    def __getitem__(self, index): return SAMPLE
def anonymous():
    return int(next(line for line in open('/proc/self/status') if line.startswith('RssAnon')).split()[1])
def work(count):
    crops = CropSettings(size=8, context=1.)
    prepared = prepare(Same(count), f'{sys.argv[1]}/{count}', crops, workers=1, show_progress=False)
    batches = Batches(prepared, 32)
    for step in range(20): batches.at(step)
    return anonymous(), batches
if __name__ == '__main__':
    work(200)
    before, kept = work(500)
    print(work(20000)[0] - before)
"""


def test_memory_does_not_grow_with_the_set(tmp_path):
    "20 000 frames have 10 MB of labels and 6 MB of pixels even at this size; a large set keeps none of it."
    (tmp_path / "script.py").write_text(MEMORY)
    frees = {
        **ENVIRONMENT,
        "MALLOC_TRIM_THRESHOLD_": "131072",
    }  # else glibc keeps a freed block of labels once a compiler has freed larger ones
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path],
        env=frees,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 3000  # kB


_HELD = """
import sys, time
from pathlib import Path
from handlab.data.prepare import CropSettings, prepare
from handlab.data.rhd import RHD
class Held(RHD):
    def __getitem__(self, index):
        while index == 5 and not Path(sys.argv[3]).exists(): time.sleep(.02)
        return super().__getitem__(index)
if __name__ == '__main__':
    crops = CropSettings(size=24)
    prepare(Held(sys.argv[1], 'evaluation'), sys.argv[2], crops, workers=1, show_progress=False)
"""


def test_two_processes_that_ask_for_the_same_folder_share_the_work(tmp_path):
    write_drawn(tmp_path / "rhd", "evaluation", 16)
    (tmp_path / "script.py").write_text(_HELD)
    command = [sys.executable, tmp_path / "script.py", tmp_path / "rhd", tmp_path / "crops", tmp_path / "go"]
    first = subprocess.Popen(command, env=ENVIRONMENT)
    wait_for(lambda: rows_written(tmp_path) > 2, seconds=120)
    second = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert "waiting" in second.stdout.readline()  # the first is held back until it has said so
    assert len(list(tmp_path.glob(".crops.*.partial"))) == 1  # the second has not begun its own
    (tmp_path / "go").touch()
    assert (first.wait(), second.wait()) == (0, 0)
    assert len(open_prepared(tmp_path / "crops")) == 16 and not list(tmp_path.glob(".crops.*.partial"))


LIMITED = """
import resource, sys
from handlab.core import one_line_errors
from handlab.data.prepare import CropSettings, prepare
from handlab.data.rhd import RHD
if __name__ == '__main__':
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),)*2)
    reader, crops = RHD(sys.argv[1], 'evaluation'), CropSettings(size=64)
    with one_line_errors():
        prepare(reader, sys.argv[2], crops, workers=1, show_progress=False)
"""


def test_a_full_disk_ends_in_one_line(tmp_path):
    "Files may not grow beyond 100 kB here, which fails as a full disk does."
    write_drawn(tmp_path / "rhd", "evaluation", 8)
    (tmp_path / "script.py").write_text(LIMITED)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path / "rhd", tmp_path / "crops", "100000"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and "image.npy: it could not be written" in done.stderr
        and "free some space" in done.stderr
    )
    assert left_in(tmp_path) == ["rhd", "script.py"]


def test_a_disk_that_fills_up_on_the_way(tmp_path, monkeypatch):
    def full(path, *_, **__):
        raise OSError(28, "No space left on device", str(path))

    for place, name in ((module, "write_rows"), (arrays, "create_array"), (module, "write_json")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            with pytest.raises(HandlabError) as error:
                quiet(Drawn(3), tmp_path / "crops")
        assert "it could not be written (No space left on device)" in str(error.value) and "\n" not in str(
            error.value
        )
        assert left_in(tmp_path) == []


def test_too_little_room_is_seen_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    reader = Drawn(3)
    with pytest.raises(HandlabError, match="0.0 MB are free; free some space or name another folder"):
        quiet(reader, tmp_path / "crops")
    assert reader.read == [0] and left_in(tmp_path) == []


# ---- several crops of the same frames

KINDS = {"joints": SMALL, "mask": CropSettings(size=16, crop="mask")}


def kinds(folder):
    return {folder / name: settings for name, settings in KINDS.items()}


def each(reader, folder):
    return module.prepare_each(reader, kinds(folder), workers=1, show_progress=False)


def test_several_crops_are_those_of_one_at_a_time(tmp_path):
    both, reader = each(Drawn(9), tmp_path / "both"), Drawn(9)
    for prepared, (folder, settings) in zip(both, kinds(tmp_path / "one").items()):
        alone = quiet(Drawn(9), folder, settings)
        assert prepared.fingerprint == alone.fingerprint and all(
            np.array_equal(prepared.arrays[key], alone.arrays[key], equal_nan=key in ("joints", "uv"))
            for key in alone.arrays
            if key != "name"
        )
    assert [prepared.fingerprint for prepared in each(reader, tmp_path / "both")] == [
        prepared.fingerprint for prepared in both
    ] and reader.read == []  # opened


def test_what_is_there_of_several_crops_stays(tmp_path):
    quiet(Drawn(9), tmp_path / "joints")
    before, reader = (tmp_path / "joints" / "meta.json").stat().st_mtime_ns, Drawn(9)
    assert [len(prepared) for prepared in each(reader, tmp_path)] == [9, 9] and reader.read == [0, *range(9)]
    assert (tmp_path / "joints" / "meta.json").stat().st_mtime_ns == before


def test_several_crops_fail_or_go_on_together(tmp_path):
    with pytest.raises(HandlabError, match="drawn/00035: the image cannot be decoded"):
        each(Drawn(40, fail_at=35), tmp_path)
    assert not any(path.is_dir() for path in tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        each(Interrupted(40, fail_at=30), tmp_path)
    reader = Drawn(40)
    assert [len(prepared) for prepared in each(reader, tmp_path)] == [40, 40] and reader.read == [
        0,
        *range(30, 40),
    ]
    assert [prepared.fingerprint for prepared in each(Drawn(40), tmp_path)] == [
        prepared.fingerprint for prepared in each(Drawn(40), tmp_path / "anew")
    ]


def test_large_crops_say_what_they_take(capsys):
    "RHD for the papers' 256 px: 41,258 crops with margin, in three modalities."
    row = {key: np.zeros((320, 320, *more), kind) for key, *more, kind in ROWS}
    module._say_size(Path("rhd-training"), 41258, row)
    assert "41,258 crops of 320 px with their margin take 25.3 GB" in capsys.readouterr().out
    module._say_size(Path("small"), 10, row)
    assert capsys.readouterr().out == ""


ROWS = (("image", 3, np.uint8), ("depth", np.uint16), ("mask", np.uint8))
