"The twin of RHD: stream and disk agree, splits share nothing, a stopped job leaves nothing that looks finished."

import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from handlab.core import HandlabError, project_root
from handlab.data.rhd import RHD, SPLITS
from handlab.hand.camera import project
from handlab.sim import scene, twins
from handlab.sim.twins import SimRHD, write_rhd

FIELDS = ("image", "depth", "mask", "joints", "uv", "visible", "K", "side", "name")


def command(*words):
    "A process of the command line, at the project's root."
    environment = {**os.environ, "PYTHONPATH": str(project_root()), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "handlab.sim.twins", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_rhd(
        tmp_path_factory.mktemp("twin") / "set",
        training=84,
        evaluation=3,
        seed=5,
        workers=2,
        show_progress=False,
    )


@pytest.mark.parametrize(
    "split, count, some", [("training", 84, (0, 1, 39, 40, 79, 80, 83)), ("evaluation", 3, (0, 1, 2))]
)
def test_stream_and_disk_are_the_same_bit_for_bit(written, split, count, some):
    disk, stream = RHD(written, split), SimRHD(split, count, seed=5)
    assert (
        len(disk) == len(stream) == count
        and disk.source == stream.source == "sim-rhd"
        and disk.skipped == stream.skipped == []
    )
    for index in some:
        one, two = disk[index].check(), stream[index].check()
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
            assert getattr(getattr(one, field), "dtype", None) == getattr(getattr(two, field), "dtype", None)


def test_files_do_not_depend_on_the_number_of_workers(written, tmp_path):
    alone = write_rhd(tmp_path / "alone", training=84, evaluation=0, seed=5, workers=1, show_progress=False)
    many, one = contents(written / "training"), contents(alone / "training")
    assert many.keys() == one.keys() and all(many[name] == one[name] for name in many)


def test_layout_and_pickle_are_rhd_s(written):
    assert sorted(path.name for path in written.iterdir()) == ["evaluation", "source.json", "training"]
    assert sorted(path.name for path in (written / "training").iterdir()) == [
        "anno_training.pickle",
        "color",
        "depth",
        "mask",
    ]
    raw = (written / "training" / "anno_training.pickle").read_bytes()
    assert raw[:2] == b"\x80\x02"
    annotation = pickle.loads(raw)
    assert sorted(annotation) == list(range(84)) and all(type(frame) is int for frame in annotation)
    for entry in annotation.values():
        assert {key: (value.shape, value.dtype.name) for key, value in entry.items()} == {
            "K": ((3, 3), "float32"),
            "xyz": ((42, 3), "float32"),
            "uv_vis": ((42, 3), "float32"),
        }


def test_samples_are_sound(written):
    sides = set()
    for index in range(0, 84, 3):
        sample = RHD(written, "training")[index]
        sides.add(sample.side)
        assert np.abs(project(sample.joints, sample.K) - sample.uv).max() < 0.05
        assert sample.visible.sum() >= scene.FEWEST_VISIBLE and sample.mask.sum() >= scene.FEWEST_PIXELS
        assert np.abs(np.nanmedian(sample.depth[sample.mask]) * 1000 - np.median(sample.joints[:, 2])) < 80
        assert np.isnan(sample.depth).any() or (sample.depth < 5).all()
    assert sides == {"left", "right"}


def test_persons_come_in_blocks_and_splits_share_nothing():
    def scale(split, index):
        return (
            np.linalg.norm(np.diff(twins.rhd_frame(5, split, index)[3]["xyz"][[10, 11]], axis=0)) * 1000
        )  # one bone says who it is

    block = twins.FRAMES_PER_PERSON
    assert (
        abs(scale("training", 0) - scale("training", block - 1))
        < 1e-3
        < abs(scale("training", 0) - scale("training", block))
    )
    people = {
        split: [twins.actor_of(5, split, number).person.joints.tobytes() for number in range(3)]
        for split in SPLITS
    }
    places = {
        split: [scene.pool_background(5, split, number).tobytes() for number in range(5)] for split in SPLITS
    }
    for seeds in (people, places):
        assert not set(seeds["training"]) & set(seeds["evaluation"])
    one, two = (twins.rhd_frame(5, split, 0) for split in SPLITS)
    assert not np.array_equal(one[3]["xyz"], two[3]["xyz"])


def test_seeds_differ():
    assert not np.array_equal(SimRHD("training", 1, seed=0)[0].image, SimRHD("training", 1, seed=1)[0].image)


def test_a_killed_job_counts_for_nothing_and_goes_on(written, tmp_path):
    root = tmp_path / "killed"
    process = command(
        "--folder", str(root), "--training", "84", "--evaluation", "0", "--seed", "5", "--workers", "1"
    )
    labels, waited = root / twins.UNFINISHED / "training" / "labels", 0
    while not (labels.is_dir() and len(list(labels.glob("*.npz"))) > 5):
        time.sleep(0.02)
        waited += 1
        assert process.poll() is None and waited < 6000
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (root / "training").exists()
    with pytest.raises(HandlabError, match="not there"):
        RHD(root, "training")
    kept = {path.name: path.stat().st_mtime_ns for path in labels.glob("?????.npz")}
    assert 5 < len(kept) < 84
    victim = (
        root / twins.UNFINISHED / "training" / "color" / f"{len(kept):05d}.png"
    )  # the frame that was being written
    victim.write_bytes(b"half an image")
    with pytest.raises(HandlabError, match="other settings"):
        write_rhd(root, training=84, evaluation=0, seed=6, workers=1, show_progress=False)
    write_rhd(root, training=84, evaluation=0, seed=5, workers=1, show_progress=False)
    assert not (root / twins.UNFINISHED).exists()
    whole, again = contents(written / "training"), contents(root / "training")
    assert [name for name in whole if whole[name] != again.get(name)] == [] and whole.keys() == again.keys()


def test_a_finished_split_is_left_alone_and_others_are_refused(written, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    write_rhd(written, training=84, evaluation=3, seed=5, show_progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    with pytest.raises(HandlabError, match="other settings"):
        write_rhd(written, training=83, evaluation=0, seed=5, show_progress=False)
    official = tmp_path / "official"
    (official / "evaluation").mkdir(parents=True)
    with pytest.raises(HandlabError, match="not simulated"):
        write_rhd(official, training=2, evaluation=0, show_progress=False)
    assert [path.name for path in official.iterdir()] == ["evaluation"]


def test_bad_arguments_are_one_line(tmp_path, capsys):
    cases = [(dict(split="test"), "no such split"), (dict(count=0), "at least one frame")]
    for arguments, message in cases:
        with pytest.raises(HandlabError, match=message):
            SimRHD(**arguments)
    for words, message in (
        (["--training", "many"], "invalid int"),
        (["--frames", "3"], "unrecognized"),
        (["--training", "-1", "--folder", str(tmp_path)], "0 or more"),
        (["--workers", "-2", "--folder", str(tmp_path)], "0 for one a core"),
    ):
        with pytest.raises(SystemExit) as stop:
            twins.main(words)
        printed = capsys.readouterr()
        assert (
            stop.value.code == 2
            and printed.out == ""
            and printed.err.count("\n") == 1
            and message in printed.err
        )
    assert not any(tmp_path.iterdir())


def test_help_of_the_command_line():
    process = command("--help")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and all(
        word in out for word in ("--folder", "--training", "--evaluation", "--seed", "--workers")
    )


def test_reader_protocol():
    reader = SimRHD("evaluation", 3)
    with pytest.raises(IndexError):
        reader[3]
    np.testing.assert_array_equal(reader[-1].image, reader[2].image)
    assert [sample.name for sample in reader] == ["evaluation/00000", "evaluation/00001", "evaluation/00002"]
    assert (
        reader.identity() == SimRHD("evaluation", 3).identity() != SimRHD("evaluation", 3, seed=1).identity()
    )
    assert pickle.loads(pickle.dumps(reader)).identity() == reader.identity()  # workers get a copy
