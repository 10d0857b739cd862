"The writer of twins: stream and disk agree, workers change nothing, a stopped job leaves nothing half done."

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from kills import kills_of

from handlab.core import HandlabError, project_root
from handlab.data.bighand import BigHand
from handlab.data.dexter_object import DexterObject
from handlab.data.rhd import RHD
from handlab.data.stb import STB
from handlab.sim import write as writer
from handlab.sim.bighand import SimBigHand
from handlab.sim.dexter_object import SimDexterObject
from handlab.sim.rhd import SimRHD
from handlab.sim.stb import SimSTB
from handlab.sim.write import TWINS, TwinFiles, files_of, write

FIELDS = ("image", "depth", "mask", "joints", "uv", "visible", "K", "side", "name")
IMAGES = (".png", ".bmp")


def both(real, twin):
    "Reader of the written split, and of the stream."
    return lambda root, split, count: (real(root, split), twin(split, count, seed=5))


CASES = {
    "sim-rhd": SimpleNamespace(
        options=dict(training=84, evaluation=3),
        readers=both(RHD, SimRHD),
        some=dict(training=(0, 1, 39, 40, 79, 80, 83), evaluation=(0, 1, 2)),
        more=dict(training=85),
        part="training",
    ),
    "sim-stb": SimpleNamespace(
        options=dict(training=12, evaluation=5),
        readers=both(STB, SimSTB),
        some=dict(training=range(0, 12, 2), evaluation=range(5)),
        more=dict(training=22),
        part="B2Counting",
    ),
    "sim-bighand": SimpleNamespace(
        options=dict(training=230, evaluation=30),
        readers=both(BigHand, SimBigHand),
        some=dict(training=(0, 24, 25, 199, 200, 229), evaluation=(0, 29)),
        more=dict(training=231),
        part="training",
    ),
    "sim-dexter-object": SimpleNamespace(
        options=dict(evaluation=13, every=9),
        readers=lambda root, split, count: (DexterObject(root), SimDexterObject(count, seed=5, every=9)),
        some=dict(evaluation=range(13)),
        more=dict(evaluation=12),
        part="Grasp1",
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return SimpleNamespace(source=request.param, **vars(CASES[request.param]))


@pytest.fixture(scope="module")
def written(case, tmp_path_factory):
    root = tmp_path_factory.mktemp("twin") / "set"
    return write(case.source, root, seed=5, workers=2, show_progress=False, **case.options)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".mat"  # a .mat file states when it was written
    }


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def command(*words):
    "A process of the command line, at the project's root."
    environment = {**os.environ, "PYTHONPATH": str(project_root()), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "handlab.sim.write", *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def options_of(case):
    return [word for name, value in case.options.items() for word in (f"--{name}", value)]


def equal(one, two):
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
        assert getattr(getattr(one, field), "dtype", None) == getattr(getattr(two, field), "dtype", None)


def test_stream_and_disk_are_the_same_bit_for_bit(case, written):
    for split, some in case.some.items():
        disk, stream = case.readers(written, split, case.options[split])
        assert len(disk) == len(stream) == case.options[split] and disk.source == stream.source == case.source
        assert disk.skipped == stream.skipped == []
        for index in some:
            equal(disk[index].check(), stream[index].check())


def test_nothing_else_is_left(written):
    assert [path.name for path in written.parent.iterdir()] == ["set"]
    assert not any(path.name.startswith(".") or path.suffix == ".partial" for path in written.rglob("*"))


def wait_for(process, ready):
    until = time.monotonic() + 120
    while not ready():
        time.sleep(0.02)
        assert process.poll() is None and time.monotonic() < until


def test_a_file_that_a_killed_job_was_writing_is_not_left(case, written, tmp_path):
    "Killed within an atomic write: of the list of parts, or of labels that move along with their folder."
    root, growing = tmp_path / "killed", tmp_path / ".killed.unfinished"
    for folder in (root, growing / "files", growing / "files" / next(iter(case.some))):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f".{writer.SOURCE_FILE}.abcdefgh.partial").write_bytes(b"{")
    write(case.source, root, seed=5, workers=1, show_progress=False, **case.options)
    assert contents(written).keys() == contents(root).keys() and not growing.exists()


def test_a_killed_job_counts_for_nothing_and_goes_on(case, written, tmp_path):
    "Killed, refused to other settings, then continued: the same files as with two workers, none drawn twice."
    root, growing = tmp_path / "killed", tmp_path / ".killed.unfinished"
    process = command(case.source, root, *options_of(case), "--seed", 5, "--workers", 1)
    wait_for(process, lambda: len([*growing.rglob("*.png"), *root.rglob("*.png")]) > 8)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for split in case.some:
        with pytest.raises(HandlabError):
            case.readers(root, split, case.options[split])
    whole = list(growing.glob("labels/*/*[0-9]"))
    kept = {path: when for path, when in times(growing / "files").items() if path.suffix in IMAGES}
    for change in (dict(seed=6), case.more):
        with pytest.raises(HandlabError, match="was written with"):
            write(case.source, root, show_progress=False, **{**case.options, "seed": 5, **change})
    last = max(kept, key=kept.get, default=None)
    if last and kept[last] > max((path.stat().st_mtime_ns for path in whole), default=0):
        last.write_bytes(b"half an image")  # its frame has no label yet
    write(case.source, root, seed=5, workers=1, show_progress=False, **case.options)
    assert not growing.exists()
    one, two = contents(written), contents(root)
    assert one.keys() == two.keys() and [name for name in one if one[name] != two[name]] == []
    before = {path.relative_to(growing / "files"): when for path, when in kept.items() if path != last}
    again = sum((root / path).stat().st_mtime_ns != when for path, when in before.items())
    assert again <= 3  # the images of one frame


@dataclasses.dataclass(frozen=True)
class Numbers(TwinFiles):
    "Two parts of two frames: a file each, and a list of their labels."

    source: ClassVar[str] = "sim-numbers"

    def frames(self):
        return {"odd": 2, "even": 2}

    def first_frame(self):
        return "1"

    def places(self, part):
        return [f"images/{part}", f"{part}.txt"]

    def write_frame(self, folder, part, number):
        (folder / "images" / part).mkdir(parents=True, exist_ok=True)
        (folder / "images" / part / f"{number}.txt").write_text(f"{part} {number}")
        return str(number).encode()

    def write_labels(self, folder, part, labels):
        (folder / f"{part}.txt").write_bytes(b" ".join(labels))


class NumbersTogether(Numbers):
    whole = True


@pytest.mark.parametrize("twin", [Numbers, NumbersTogether])
def test_a_job_killed_at_any_change_of_files_goes_on(twin, tmp_path):
    def job(name):
        return write(twin, tmp_path / str(name) / "set", workers=1, show_progress=False)

    whole, killed = contents(job("whole")), list(kills_of(job))
    for call in killed:
        assert contents(job(call)) == whole, call
        assert [path.name for path in (tmp_path / str(call)).iterdir()] == ["set"], call
    assert len(killed) > 40


def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    process = command("sim-rhd", tmp_path / "set", "--training", 400, "--evaluation", 0, "--workers", 2)
    labels = tmp_path / ".set.unfinished/labels/training"
    wait_for(process, lambda: labels.is_dir() and len(list(labels.iterdir())) > 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(50):
        count = len(list(labels.iterdir()))
        time.sleep(0.5)
        if count == len(list(labels.iterdir())):
            break
    assert count < 400


def test_a_finished_twin_is_left_alone_and_others_are_refused(case, written):
    before, options = times(written), dict(**case.options, seed=5)
    write(case.source, written, show_progress=False, **options)
    assert before == times(written)
    refused = [(dict(seed=4), "written with seed 5"), (case.more, f"{case.part} was written with")]
    if "every" in options:
        refused.append((dict(every=8), "written with every 9"))
    for change, message in refused:
        with pytest.raises(HandlabError, match=message):
            write(case.source, written, show_progress=False, **{**options, **change})
    assert before == times(written)


def test_foreign_folders_are_refused(case, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/source.json").write_text('{"source": "sim-other"}')
    (tmp_path / "file").write_text("a file")
    for name, message in (
        ("mine", f"holds something other than {case.source}"),
        ("file", f"holds something other than {case.source}"),
        ("other", "it holds sim-other"),
    ):
        with pytest.raises(HandlabError, match=message):
            write(case.source, tmp_path / name, show_progress=False, **case.options)
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(
        ["mine", "notes.txt", "other", "source.json", "file"]
    )


def test_frames_of_another_simulator_are_refused(tmp_path, monkeypatch):
    root = write("sim-rhd", tmp_path / "set", training=1, evaluation=0, workers=1, show_progress=False)
    monkeypatch.setattr(files_of("sim-rhd"), "first_frame", lambda self: "changed")
    with pytest.raises(HandlabError, match="another version of the simulator"):
        write("sim-rhd", root, training=1, evaluation=0, show_progress=False)


@pytest.mark.parametrize("source, real", [("sim-rhd", RHD), ("sim-stb", STB)])
def test_a_split_can_be_added(source, real, tmp_path):
    root = write(source, tmp_path / "set", training=0, evaluation=2, workers=1, show_progress=False)
    write(source, root, training=10, evaluation=0, workers=1, show_progress=False)
    write(source, root, training=10, evaluation=2, workers=1, show_progress=False)
    assert (len(real(root, "training")), len(real(root, "evaluation"))) == (10, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_two_jobs_in_turn_keep_their_frames(tmp_path, monkeypatch):
    "A split that was begun stays begun while another one is written."
    files, drawn = files_of("sim-rhd"), []
    original = files.write_frame

    def stops(self, folder, part, number):
        drawn.append((part, number))
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return original(self, folder, part, number)

    monkeypatch.setattr(files, "write_frame", stops)
    options = dict(workers=1, show_progress=False)
    with pytest.raises(KeyboardInterrupt):
        write("sim-rhd", tmp_path / "set", training=4, evaluation=0, **options)
    write("sim-rhd", tmp_path / "set", training=0, evaluation=1, **options)
    write("sim-rhd", tmp_path / "set", training=4, evaluation=1, **options)
    assert drawn[3:] == [("evaluation", 0), ("training", 2), ("training", 3)]
    assert len(RHD(tmp_path / "set", "training")) == 4


def test_stopped_between_images_and_labels(tmp_path, monkeypatch):
    files = files_of("sim-stb")
    reference = write("sim-stb", tmp_path / "one", training=0, evaluation=4, workers=1, show_progress=False)
    real_move, moved = writer._move, []

    def stops(old, new):
        moved.append(new.name)
        if len(moved) == 2:
            raise KeyboardInterrupt
        real_move(old, new)

    monkeypatch.setattr(writer, "_move", stops)
    root = tmp_path / "two"
    with pytest.raises(KeyboardInterrupt):
        write("sim-stb", root, training=0, evaluation=4, workers=1, show_progress=False)
    assert moved == ["B1Counting", "B1Counting_SK.mat"]
    with pytest.raises(HandlabError, match="not there"):
        STB(root, "evaluation")
    drawn, original = [], files.write_frame
    monkeypatch.setattr(writer, "_move", real_move)
    monkeypatch.setattr(
        files,
        "write_frame",
        lambda self, folder, part, number: drawn.append(part) or original(self, folder, part, number),
    )
    write("sim-stb", root, training=0, evaluation=4, workers=1, show_progress=False)
    assert set(drawn) == {"B1Random"} and contents(root) == contents(reference)
    for one, two in zip(STB(root, "evaluation"), STB(reference, "evaluation")):
        equal(one, two)


def test_bad_arguments_are_one_line(case, tmp_path, capsys):
    count = next(iter(case.options))
    folder = tmp_path / "set"
    for words, message in (
        ([f"--{count}", "many"], "invalid int"),
        (["--frames", "3"], "unrecognized"),
        ([f"--{count}", "-1"], "negative"),
        (["--workers", "-2"], "not a number of 0 or more"),
    ):
        with pytest.raises(SystemExit) as stop:
            writer.main([case.source, str(folder), *words])
        printed = capsys.readouterr()
        assert stop.value.code == 2 and printed.out == ""
        assert printed.err.count("\n") == 1 and message in printed.err
    with pytest.raises(HandlabError, match="has no such option"):
        write(case.source, folder, colour=1)
    with pytest.raises(HandlabError, match="no part of the set has any|at least one frame"):
        write(case.source, folder, **{name: 0 for name in ("training", "evaluation") if name in case.options})
    assert not any(tmp_path.iterdir())


def test_bad_commands_are_one_line(capsys):
    for words, message in (
        ([], "required: twin"),
        (["sim-moon", "x"], "invalid choice"),
        (["sim-stb"], "folder"),
    ):
        with pytest.raises(SystemExit) as stop:
            writer.main(words)
        printed = capsys.readouterr()
        assert stop.value.code == 2 and printed.err.count("\n") == 1 and message in printed.err
    with pytest.raises(HandlabError, match="there is no such twin"):
        write("sim-moon", Path("x"))


@pytest.mark.parametrize("twin", TWINS)
def test_help_of_the_command_line(twin):
    process = command(twin, "--help")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    for word in ("folder", "--evaluation", "--seed", "--workers", *(["--every"] if "dexter" in twin else [])):
        assert word in out


READERS = {
    "sim-rhd": (SimRHD, ["evaluation/00000", "evaluation/00001", "evaluation/00002"]),
    "sim-stb": (
        SimSTB,
        ["evaluation/B1Counting/0000", "evaluation/B1Counting/0001", "evaluation/B1Random/0000"],
    ),
    "sim-bighand": (SimBigHand, [f"Subject_e1/1 75/image_D0000000{frame}" for frame in (1, 2, 3)]),
}


@pytest.mark.parametrize("source", READERS)
def test_reader_protocol(source):
    twin, names = READERS[source]
    reader = twin("evaluation", 3)
    with pytest.raises(IndexError):
        reader[3]
    equal(reader[-1], reader[2])
    assert [sample.name for sample in reader] == names
    equal(reader[np.int64(1)], reader[1])
    assert reader.identity() == twin("evaluation", 3).identity() != twin("evaluation", 3, seed=1).identity()
    assert pickle.loads(pickle.dumps(reader)).identity() == reader.identity()  # workers get a copy
    for arguments, message in (
        (dict(split="test"), "no such split"),
        (dict(count=0), "at least one|has 10 to"),
    ):
        with pytest.raises(HandlabError, match=message):
            twin(**arguments)
