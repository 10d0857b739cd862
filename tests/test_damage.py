"Damage to what handlab itself wrote: a changed bit is noticed, and the advice leads on."

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from kills import kills_of
from test_data_dexter_object import frame as dexter_frame
from test_data_dexter_object import write as write_dexter

from handlab.core import HandlabError, MachineError, read_arrays, read_json, write_arrays, write_json
from handlab.data import arrays, bighand, dexter_object, rhd, stb
from handlab.data import prepare as preparing
from handlab.data.prepare import CropSettings, open_prepared, prepare
from handlab.results.runs import RunFolder, seeds_in
from handlab.train.experiment import close_run, prepared_folder
from handlab.train.files import load_checkpoint, load_network, read_losses, weights_fingerprint
from handlab.train.loop import TrainSettings, fit

SMALL = CropSettings(size=24)


def flip(path, place: float = 0.7, bit: int = 1):
    "Change one bit of a file."
    content = bytearray(Path(path).read_bytes())
    content[int(place * len(content))] ^= bit
    Path(path).write_bytes(content)


def no_more_files(*arguments, **options):
    raise OSError(24, os.strerror(24))


# ---- JSON and arrays


def test_every_changed_digit_of_a_sealed_file_is_noticed(tmp_path):
    path, content = tmp_path / "a.json", {"epe": 12.25, "names": ["a", "b"], "inner": {"seed": 3}}
    write_json(path, content, sealed=True)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (1, 4, 64):
            flipped = bytearray(whole)
            flipped[place] ^= bit
            path.write_bytes(flipped)
            try:
                value = read_json(path)
            except HandlabError as error:
                assert "delete it" in str(error)
            else:  # white space, or the name of the digest itself
                assert {name: value.get(name) for name in content} == content


def test_an_archive_of_arrays_is_whole_or_an_error(tmp_path):
    path, content = tmp_path / "a.npz", {"true": np.arange(300.0), "name": np.array(["x", "y"])}
    write_arrays(path, content)
    whole = path.read_bytes()
    for damaged in (b"", whole[:40], whole[:-1], whole[:100] + bytes([whole[100] ^ 8]) + whole[101:]):
        path.write_bytes(damaged)
        with pytest.raises(HandlabError, match="a.npz: it is not a whole .npz"):
            read_arrays(path)
    with pytest.raises(HandlabError, match="b.npz: the file is not there; run the step"):
        read_arrays(tmp_path / "b.npz")


def test_too_many_open_files_are_not_the_files_fault(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {})
    monkeypatch.setattr(Path, "read_text", no_more_files)
    with pytest.raises(MachineError, match="Too many open files") as error:
        read_json(tmp_path / "a.json")
    assert "ulimit -n" in str(error.value) and "delete" not in str(error.value)


# ---- prepared crops


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    rhd.write_drawn(root, "evaluation", 6)
    rhd.write_drawn(root, "training", 6)
    return root


def crops(reader, folder, settings=SMALL, show=False):
    return prepare(reader, folder, settings, workers=1, show_progress=show)


ARRAYS = ("image", "depth", "mask", "joints", "uv", "visible", "K", "box", "mirrored", "name")


@pytest.mark.parametrize("whole", [arrays.WHOLE, 0])  # compared each time, or when a date has changed
@pytest.mark.parametrize("name", ARRAYS)
def test_a_flipped_bit_in_prepared_arrays_is_noticed(drawn, tmp_path, monkeypatch, name, whole):
    monkeypatch.setattr(arrays, "WHOLE", whole)
    reader, folder = rhd.RHD(drawn, "evaluation"), tmp_path / "crops"
    before = crops(reader, folder).fingerprint
    flip(folder / f"{name}.npy", 0.99)
    for look in (open_prepared, lambda folder: crops(reader, folder)):
        with pytest.raises(HandlabError, match=f"{name}.npy: its bytes are not those .* delete the folder"):
            look(folder)
    shutil.rmtree(folder)  # as advised
    assert crops(reader, folder).fingerprint == before


def test_arrays_of_another_folder_are_noticed(drawn, tmp_path):
    for split in ("training", "evaluation"):
        reader = rhd.RHD(drawn, split)
        order = np.arange(5) if split == "training" else np.arange(5)[::-1]
        reader.frames, reader.labels = reader.frames[order], {k: v[order] for k, v in reader.labels.items()}
        crops(reader, tmp_path / split)
    for name in ("name", "image"):
        shutil.copy(tmp_path / f"training/{name}.npy", tmp_path / f"evaluation/{name}.npy")
        with pytest.raises(HandlabError, match="its bytes are not those"):
            open_prepared(tmp_path / "evaluation")
    assert len(open_prepared(tmp_path / "training")) == 5


def test_large_arrays_are_compared_when_a_date_has_changed_only(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "WHOLE", 0)
    folder = crops(rhd.RHD(drawn, "evaluation"), tmp_path / "crops").folder
    compared = []
    real = arrays.check_noted
    monkeypatch.setattr(
        arrays, "check_noted", lambda path, *a, **k: compared.append(path.name) or real(path, *a, **k)
    )
    open_prepared(folder)
    assert compared == []
    os.utime(folder / "image.npy")
    open_prepared(folder)
    assert compared == ["image.npy"]  # once
    open_prepared(folder)
    assert compared == ["image.npy"]
    (folder / arrays.CHECKED).write_text("[1")  # a damaged note is no note
    open_prepared(folder)
    assert len(compared) == 1 + len(ARRAYS)


@pytest.mark.parametrize("damage", ["deleted", "cut", "empty", "a digit", "not an object"])
def test_a_damaged_description_has_a_way_out(drawn, tmp_path, damage):
    reader, folder = rhd.RHD(drawn, "evaluation"), tmp_path / "crops"
    before, meta = crops(reader, folder).fingerprint, folder / "meta.json"
    text = meta.read_text()
    changed = {"cut": text[:100], "empty": "", "a digit": text.replace('"count": 6', '"count": 5')}
    meta.write_text(changed.get(damage, "[]"))
    if damage == "deleted":
        meta.unlink()
    for look in (open_prepared, lambda folder: crops(reader, folder)):
        with pytest.raises(HandlabError, match="crops.*; delete the folder crops, and what needs it"):
            look(folder)
    shutil.rmtree(folder)  # as advised
    assert crops(reader, folder).fingerprint == before


def test_crops_without_notes_are_still_opened(drawn, tmp_path):
    folder = crops(rhd.RHD(drawn, "evaluation"), tmp_path / "crops").folder
    meta = read_json(folder / "meta.json")
    write_json(folder / "meta.json", {name: meta[name] for name in meta if name != "files"})
    assert len(open_prepared(folder)) == 6


def test_too_many_open_files_do_not_cost_the_crops(drawn, tmp_path, monkeypatch):
    reader, folder = rhd.RHD(drawn, "evaluation"), tmp_path / "crops"
    crops(reader, folder)
    with monkeypatch.context() as patch:
        patch.setattr(preparing.np, "load", no_more_files)
        with pytest.raises(MachineError, match="Too many open files") as error:
            open_prepared(folder)
    assert "delete" not in str(error.value)

    def interrupted(function, spans, workers):
        yield function(spans[0])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "in_processes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            crops(reader, tmp_path / "grown")
    growing = next(tmp_path.glob(".grown.*.partial"))
    done = np.load(growing / "digests.npy")
    assert done.any()
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "rows_done", no_more_files)
        with pytest.raises(MachineError, match="Too many open files"):
            crops(reader, tmp_path / "grown")
    assert np.array_equal(np.load(growing / "digests.npy"), done)  # the work stays
    assert len(crops(reader, tmp_path / "grown")) == 6


# ---- the files that crops were made of


def small_dexter(root):
    write_dexter(root, {"Grasp1": [dexter_frame(index) for index in range(3)]})
    return dexter_object.DexterObject(root, "Grasp1")


def small_rhd(root):
    rhd.write_drawn(root, "evaluation", 3)
    return rhd.RHD(root, "evaluation")


def small_stb(root):
    stb.write_drawn(root, "evaluation", 2)
    return stb.STB(root, "evaluation")


def small_bighand(root):
    bighand.write_drawn(root)
    return bighand.BigHand(root, "all")


@pytest.mark.parametrize("make", [small_rhd, small_stb, small_dexter, small_bighand])
def test_a_corrected_file_of_the_same_size_is_cropped_again(make, tmp_path, capsys):
    reader = make(tmp_path / "set")
    first = crops(reader, tmp_path / "crops", CropSettings(size=24, crop="tips"), show=True)
    capsys.readouterr()
    assert crops(reader, first.folder, first.settings, show=True).fingerprint == first.fingerprint
    assert f"{reader.source}: {len(reader)} frames prepared before are used: crops" in capsys.readouterr().out
    images = [path for path in (tmp_path / "set").rglob("*.*") if path.suffix in (".png", ".bmp")]
    image = max(sorted(images), key=lambda path: path.stat().st_size)
    other = next(p for p in sorted(images) if p != image and p.stat().st_size <= image.stat().st_size)
    before, size = reader.identity(), image.stat().st_size
    image.write_bytes(other.read_bytes().ljust(size, b"\0"))  # pictures are not opened for a name
    assert image.stat().st_size == size and reader.identity() != before
    assert reader.identity().split(" ")[0] == before.split(" ")[0]  # the same frames


def test_the_new_picture_is_in_the_crops(tmp_path, capsys):
    reader = small_dexter(tmp_path / "set")
    settings = CropSettings(size=24, crop="tips")
    crops(reader, tmp_path / "crops", settings)
    path = dexter_object.image_path(reader.root, "Grasp1", "color", 1)
    path.write_bytes(dexter_object.encode_bmp(np.full((480, 640, 3), 200, np.uint8)))
    assert (crops(reader, tmp_path / "crops", settings).image[0] == 200).all()
    assert "crops: the files of its frames have changed; they are prepared again" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")] == []


def test_other_labels_are_other_data(tmp_path):
    reader = small_rhd(tmp_path / "set")
    crops(reader, tmp_path / "crops")
    reader.labels["uv_vis"][0, 0] += 1
    with pytest.raises(HandlabError, match="it was prepared from other data"):
        crops(reader, tmp_path / "crops")


# ---- what a folder states about itself


@pytest.mark.parametrize(
    "source", ["../../elsewhere", "a/b", "..", "", "sim rhd", "x" * 90, "C:\\x", "sim-rhd\n"]
)
def test_a_source_is_a_name_and_no_path(tmp_path, source, monkeypatch):
    monkeypatch.setenv("HANDLAB_ROOT", str(tmp_path))
    rhd.write_drawn(tmp_path / "set", "evaluation", 2)
    write_json(tmp_path / "set/source.json", {"source": source})
    with pytest.raises(HandlabError, match="source.json: its source .* is no name of a dataset"):
        rhd.RHD(tmp_path / "set", "evaluation")
    reader = small_rhd(tmp_path / "other")
    reader.source = source
    with pytest.raises(HandlabError, match="no name of a dataset"):
        prepared_folder(reader, SMALL)


def test_no_flipped_bit_changes_what_is_read(drawn, tmp_path):
    "Anywhere in any file of the folder: an error, or the very same arrays."
    whole = crops(rhd.RHD(drawn, "evaluation"), tmp_path / "crops")
    true, random = {key: np.array(value) for key, value in whole.arrays.items()}, np.random.default_rng()
    files = sorted(path for path in whole.folder.iterdir() if path.is_file())
    for _ in range(150):
        path = files[random.integers(len(files))]
        content = path.read_bytes()
        flip(path, random.random() ** 3, 1 << int(random.integers(8)))  # headers more often
        try:
            found = open_prepared(whole.folder)
        except HandlabError:
            pass
        else:
            assert all(
                np.array_equal(found.arrays[key], true[key], equal_nan=key != "name") for key in true
            ), path
            assert found.fingerprint == whole.fingerprint and found.source == whole.source
        path.write_bytes(content)


# ---- a training


def settled(**changes):
    return TrainSettings(steps=12, log_every=4, checkpoint_every=4, precision="fp32", **changes)


def points(step):
    x = torch.rand(8, 1, generator=torch.Generator().manual_seed(step))
    return x, 2 * x + 1


def squared(network, batch):
    return {"loss": (network(batch[0]) - batch[1]).square().mean()}


def line(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Linear(1, 1)


def train(folder, stop=99, about="a"):
    def batch_at(step):
        if step == stop:
            raise KeyboardInterrupt
        return points(step)

    return fit(line(), squared, batch_at, settled(), folder, about={"of": about}, report=lambda *state: None)


def half_trained(folder, about="a"):
    with pytest.raises(KeyboardInterrupt):
        train(folder, 6, about)
    return folder / "checkpoint.pt"


def kept(folder):
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "losses.csv")}


def test_a_training_killed_at_any_change_of_files_goes_on(tmp_path):
    def job(name):
        return weights_fingerprint(train(tmp_path / str(name)))

    true, killed = job("whole"), list(kills_of(job))
    for call in killed:
        assert job(call) == true and kept(tmp_path / str(call)) == kept(tmp_path / "whole"), call
    assert len(killed) > 20


def test_a_file_that_was_half_written_goes_when_it_is_old(tmp_path):
    def job(name):
        return train(tmp_path / str(name))

    job("whole")
    left = {path for call in kills_of(job) for path in (tmp_path / str(call)).glob(".*.partial")}
    for path in left:
        os.utime(path, (0, 0))
    for folder in {path.parent for path in left}:
        job(folder.name)
        assert names_in(folder) == names_in(tmp_path / "whole"), folder.name
    assert len(left) > 2


def test_a_file_that_was_just_written_to_stays(tmp_path):
    tmp_path.joinpath("run").mkdir()
    tmp_path.joinpath("run", ".checkpoint.pt.abcdefgh.partial").write_bytes(b"half")
    train(tmp_path / "run")
    assert ".checkpoint.pt.abcdefgh.partial" in names_in(tmp_path / "run")


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


FILES = ("model.safetensors", "losses.csv", "finished.json", "run.json", "checkpoint.pt")


@pytest.mark.parametrize(
    "gone", [FILES[:1], FILES[1:2], FILES[2:3], FILES[3:4], FILES[4:], FILES[::4], FILES[:3]]
)
def test_whatever_is_deleted_of_a_training_is_made_again(tmp_path, gone, capsys):
    train(tmp_path)
    before = kept(tmp_path)
    for name in gone:
        (tmp_path / name).unlink()
    train(tmp_path)
    assert kept(tmp_path) == before and (tmp_path / "finished.json").exists()
    if gone[0] in before:
        assert ("; the training " in capsys.readouterr().out) == ("finished.json" not in gone)


@pytest.mark.parametrize("name", FILES[:4])
def test_no_flipped_bit_changes_a_finished_training(tmp_path, name):
    true = weights_fingerprint(train(tmp_path))
    whole, before = (tmp_path / name).read_bytes(), kept(tmp_path)
    for place in np.random.default_rng().integers(0, len(whole), 25):
        flip(tmp_path / name, place / len(whole), 1 << int(place % 8))
        try:
            assert weights_fingerprint(train(tmp_path)) == true
            read_losses(tmp_path / "losses.csv")
        except HandlabError as error:
            assert "delete" in str(error) or "name another folder" in str(error)
        (tmp_path / name).write_bytes(whole)
    flip(tmp_path / name, 0.5, 4)
    if name != "run.json":
        with pytest.raises(HandlabError, match=f"{name}: .*delete it and run its training again"):
            train(tmp_path)
    (tmp_path / name).unlink()  # as advised
    train(tmp_path)
    assert kept(tmp_path) == before


def test_no_flipped_bit_changes_where_a_training_goes_on(tmp_path):
    train(tmp_path / "whole")
    true = kept(tmp_path / "whole")
    whole = half_trained(tmp_path / "run").read_bytes()
    noticed = 0
    for place in np.random.default_rng().integers(0, len(whole), 40):
        shutil.rmtree(tmp_path / "run")
        path = half_trained(tmp_path / "run")
        flip(path, place / len(whole), 1 << int(place % 8))
        try:
            train(tmp_path / "run")
        except HandlabError as error:
            noticed += 1
            assert "checkpoint.pt: " in str(error) and "delete the file to train from the start" in str(error)
            path.unlink()
            train(tmp_path / "run")
        assert kept(tmp_path / "run") == true
    assert noticed


def test_every_changed_byte_of_a_checkpoints_structure_is_noticed(tmp_path):
    path = half_trained(tmp_path)
    whole, names = path.read_bytes(), ("network", "optimiser", "random", "progress", "of")

    def content() -> str:
        state = torch.load(path, map_location="cpu")
        return repr([state[name] for name in names])

    true = content()
    members = sorted(zipfile.ZipFile(path).infolist(), key=lambda member: member.header_offset)
    inside = [member.filename for member in members].index("archive/data.pkl")
    first, end = (member.header_offset for member in members[inside : inside + 2])
    noticed = 0
    for place in range(first, end):
        flip(path, (place + 0.5) / len(whole), 1 << place % 8)
        try:
            load_checkpoint(path, line(), torch.optim.Adam(line().parameters()))
        except HandlabError as error:
            noticed += 1
            assert "delete the file to train from the start" in str(error)
        else:
            assert content() == true, place
        path.write_bytes(whole)
    assert noticed > members[inside].file_size / 2


@pytest.mark.parametrize("name", [b"sums", b"digest"])  # of an empty dict, and of the digest itself
def test_a_changed_name_in_a_checkpoint_is_noticed(tmp_path, name):
    path = half_trained(tmp_path)
    flip(path, (path.read_bytes().index(name) + 0.5) / path.stat().st_size, 2)
    with pytest.raises(HandlabError, match="checkpoint.pt: the checkpoint is damaged: .*; delete the file"):
        train(tmp_path)


def test_an_empty_or_anothers_checkpoint_is_not_taken_up(tmp_path):
    path, other = half_trained(tmp_path / "one"), half_trained(tmp_path / "two", about="b")
    path.write_bytes(other.read_bytes())
    with pytest.raises(HandlabError, match="checkpoint.pt: it is the checkpoint of another training; delete"):
        train(tmp_path / "one")
    path.write_bytes(b"")
    with pytest.raises(
        HandlabError, match="checkpoint.pt: the checkpoint cannot be read .*; delete the file"
    ):
        train(tmp_path / "one")
    path.unlink()
    train(tmp_path / "one")
    train(tmp_path / "two", about="b")
    assert kept(tmp_path / "one") == kept(tmp_path / "two")


def test_weights_of_another_training_are_noticed(tmp_path):
    train(tmp_path / "one")
    fit(line(1), squared, points, settled(seed=1), tmp_path / "two", report=lambda *state: None)
    shutil.copy(tmp_path / "two/model.safetensors", tmp_path / "one")
    for read in (
        lambda: train(tmp_path / "one"),
        lambda: load_network(tmp_path / "one/model.safetensors", line()),
    ):
        with pytest.raises(HandlabError, match="model.safetensors: its bytes are not those"):
            read()
    shutil.copy(tmp_path / "two/finished.json", tmp_path / "one")
    with pytest.raises(HandlabError, match="finished.json: it belongs to another training than run.json"):
        load_network(tmp_path / "one/model.safetensors", line())


def test_a_machines_limits_cost_no_training(tmp_path, monkeypatch):
    path = half_trained(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", no_more_files)
        with pytest.raises(MachineError, match="Too many open files") as error:
            train(tmp_path)
    assert "delete" not in str(error.value)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr("handlab.core.os.fsync", full)
        with pytest.raises(
            HandlabError, match="could not be written .No space left on device.; free some space"
        ):
            train(tmp_path)
    assert path.read_bytes() == before and not list(tmp_path.glob(".*.partial"))
    train(tmp_path)  # the last good checkpoint is there


# ---- a run


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "quick/train_x-sim-rhd-seed3"
    train(folder / "rgb")
    write_arrays(folder / "predictions.npz", {"true": np.zeros((2, 21, 3))})
    shutil.copy(folder / "rgb/losses.csv", folder)
    close_run(folder, {"experiment": "train_x", "source": "sim-rhd", "seed": 3, "values": {"epe": 12.5}})
    return folder


def test_a_whole_run_is_opened(run):
    opened = RunFolder(run)
    assert opened.metrics["values"] == {"epe": 12.5} and opened.lacking == []
    assert opened.predictions["true"].shape == (2, 21, 3) and len(opened.losses("rgb")["loss"]) == 3
    assert set(opened.metrics["files"]) == {
        "predictions.npz",
        "losses.csv",
        "rgb/losses.csv",
        "rgb/model.safetensors",
    }


@pytest.mark.parametrize("name", ["predictions.npz", "losses.csv", "rgb/losses.csv", "metrics.json"])
def test_a_changed_file_of_a_run_is_noticed(run, name):
    def read():
        opened = RunFolder(run)
        return opened.metrics, opened.predictions, opened.losses(), opened.losses("rgb")

    flip(run / name, 0.6, 4)
    with pytest.raises(HandlabError, match=f"{name}: .*; delete it and run its notebook again"):
        read()
    (run / name).unlink()
    assert RunFolder(run).lacking == ([] if name == "metrics.json" else [name])
    with pytest.raises(HandlabError, match=f"{name}: the file is not there; run its notebook again"):
        read()


def test_the_results_of_another_seed_are_noticed(run):
    shutil.copytree(run, run.with_name("train_x-sim-rhd-seed4"))
    with pytest.raises(HandlabError, match="metrics.json: it is of seed 3: another run's"):
        _ = RunFolder(run.with_name("train_x-sim-rhd-seed4")).metrics


@pytest.mark.parametrize("name", ["train_aligned-S4-sim-rhd-seed0", "train_aligned-S1-sim-stb-seed0"])
def test_the_results_of_another_training_are_noticed(tmp_path, name):
    settings = {"strategy": "S1", "dataset": "sim-rhd", "labelled_share": 1.0}
    about = {"experiment": "train_aligned", "source": "sim-rhd", "seed": 0, "settings": settings}
    for folder in (name, "train_aligned-S1-sim-rhd-seed0", "train_aligned-S1-same_time-sim-rhd-seed0"):
        close_run(tmp_path / folder, about)
    with pytest.raises(HandlabError, match="metrics.json: it is of (S1|rhd): another run's; delete it and"):
        _ = RunFolder(tmp_path / name).metrics
    assert RunFolder(tmp_path / "train_aligned-S1-sim-rhd-seed0").metrics["source"] == "sim-rhd"
    assert RunFolder(tmp_path / "train_aligned-S1-same_time-sim-rhd-seed0").metrics["source"] == "sim-rhd"
    settings["labelled_share"] = 0.25
    close_run(tmp_path / "train_aligned-S1-sim-rhd-seed0", about)
    with pytest.raises(HandlabError, match="it is of labelled0.25: another run's"):
        _ = RunFolder(tmp_path / "train_aligned-S1-sim-rhd-seed0").metrics


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("train_aligned-S4-sim-rhd", "not of sim"),
        ("train_aligned-S4-labelled0.25-rhd", "not of labelled0.25"),
        ("train_aligned-S4-batch3-alone-rhd", "not of alone, batch3"),
        ("train_aligned-S1-apart-rhd", "of S4 and it is not of apart"),
    ],
)
def test_a_copy_of_a_run_is_not_taken_for_what_its_name_says(tmp_path, name, said):
    settings = {"strategy": "S4", "dataset": "rhd"}  # a run of the real set, with all its labels
    about = {"experiment": "train_aligned", "source": "rhd", "seed": 0, "settings": settings}
    for folder in (f"{name}-seed0", "train_aligned-S4-rhd-seed0", "train_aligned-S4-mine-rhd-seed0"):
        close_run(tmp_path / folder, about)
    with pytest.raises(HandlabError, match=f"metrics.json: it is {said}: another run's; delete it and"):
        _ = RunFolder(tmp_path / f"{name}-seed0").metrics
    for folder in ("train_aligned-S4-rhd-seed0", "train_aligned-S4-mine-rhd-seed0"):
        assert RunFolder(tmp_path / folder).metrics["source"] == "rhd"


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"source": ', "\0\0"])
def test_a_run_without_its_content_is_one_line(run, content):
    (run / "metrics.json").write_text(content)
    with pytest.raises(HandlabError, match="metrics.json: it .*; delete it and run its notebook again"):
        _ = RunFolder(run).metrics


def test_copies_of_runs_by_other_names_are_left_out(run):
    for name in ("train_x-sim-rhd-seed3 (copy)", "train_x-sim-rhd-seed3-old", "train_x-sim-rhd-seed"):
        shutil.copytree(run, run.with_name(name))
    assert seeds_in(run.parent) == 4


def test_runs_without_notes_are_still_opened(run):
    write_json(run / "metrics.json", {"source": "sim-rhd", "seed": 3})
    assert RunFolder(run).predictions["true"].shape == (2, 21, 3) and RunFolder(run).lacking == []
