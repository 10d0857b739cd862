"What the papers leave open is an option: each does what its name says, and its default changes nothing."

from dataclasses import replace

import numpy as np
import pytest
import torch

from handlab.aligned import experiment as aligned
from handlab.aligned.experiment import AlignedSettings, ViewsAt, check_aligned, labelled_parts, run_name
from handlab.core import HandlabError, make_settings, read_json
from handlab.data.prepare import CropSettings, prepare
from handlab.privileged import experiment as privileged
from handlab.privileged import experiment_2d as privileged_2d
from handlab.privileged.experiment import PiSettings, check_pi
from handlab.privileged.experiment_2d import Pi2dSettings
from handlab.privileged.figures import fig_losses
from handlab.sim.rhd import SimRHD
from handlab.train.experiment import ExperimentData
from handlab.train.loop import read_losses
from handlab.train.sets import reader_of

ALIGNED = make_settings(AlignedSettings, "smoke", steps=6, batch_size=4, log_every=2, validate_every=2)


def silent(*_):
    pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder, crops = tmp_path_factory.mktemp("prepared"), CropSettings(size=32, context=1.25, crop="mask")
    for split, count in (("training", 24), ("evaluation", 8)):
        prepare(SimRHD(split, count), folder / split, crops, workers=1, show_progress=False)
    return str(folder / "training"), str(folder / "evaluation")


@pytest.fixture(scope="module")
def data(folders):
    return ExperimentData(*folders, 0)


# ---------------------------------------------------------------- all training frames
def test_all_training_frames_are_trained_on(data, folders):
    assert (len(data.train), len(data.validation)) == (24, 0)
    assert list(data.train.name) == [
        *ExperimentData(*folders, 8).train.name,
        *ExperimentData(*folders, 8).validation.name,
    ]
    assert data.fingerprint != ExperimentData(*folders, 8).fingerprint
    frames = {"train_frames": 41258, "validation_frames": 0}
    for cls, check in ((PiSettings, check_pi), (AlignedSettings, check_aligned)):
        settings = check(make_settings(cls, "full", **frames))
        assert len(reader_of(settings, "training")) == 41258  # no person need end there: none is held back
        with pytest.raises(HandlabError, match="validation_frames: -1 is negative"):
            check(replace(settings, validation_frames=-1))
    with pytest.raises(HandlabError, match="a person would be in training and validation"):
        reader_of(replace(settings, train_frames=41257, validation_frames=1), "training")


def test_every_experiment_trains_on_all_frames_without_a_validation_split(data, tmp_path):
    common = dict(batch_size=4, train_frames=24, validation_frames=0, steps_first=2, steps_second=2)
    pi = make_settings(PiSettings, "smoke", controls="pi_shuffled", **common)
    privileged.train_first(pi, data, tmp_path / "pi", show=False)
    privileged.train_second(pi, data, tmp_path / "pi", show=False)
    flat = make_settings(Pi2dSettings, "smoke", **common)
    for second in (False, True):
        privileged_2d.train_stages_2d(second, flat, data, tmp_path / "flat", show=False)
    settings = replace(ALIGNED, strategy="S1", validation_frames=0)
    aligned.train_strategy(settings, data, tmp_path / "aligned", report=silent)
    for place in ("pi/rgb_pi", "pi/pi_shuffled", "flat/rgb_pi", "aligned"):
        assert not read_losses(tmp_path / place / "losses.csv", "validation")
        assert read_json(tmp_path / place / "finished.json")["steps"] in (2, 6)
    fig_losses(tmp_path / "pi", 2)  # draws the training's
    values = {stage: {} for stage in privileged.stages_of(pi)}
    predictions = privileged.predict_all(pi, data, tmp_path / "pi")
    metrics = privileged.write_run(tmp_path / "pi", pi, data, predictions, values)
    assert metrics["data"]["validation"] == 0 and metrics["data"]["train"] == 24


def test_nothing_is_chosen_without_a_validation_split(data, tmp_path):
    with pytest.raises(HandlabError, match="PiSettings.search: there is no validation split"):
        check_pi(make_settings(PiSettings, "smoke", validation_frames=0, search=2))


# ---------------------------------------------------------------- which frames have labels
def test_labels_by_frames_are_spread_over_all_persons(data):
    first, frames = (
        labelled_parts(data.train, replace(ALIGNED, labelled_share=0.25, labelled_by=by))
        for by in ("first", "frames")
    )
    assert list(first["labelled"].rows) == list(range(6))  # as the paper: the first m %
    for parts in (first, frames):
        rows = [*parts["labelled"].rows, *parts["unlabelled"].rows]
        assert sorted(rows) == list(range(24)) and len(parts["labelled"]) == 6
    assert max(frames["labelled"].rows) > 6
    other = labelled_parts(data.train, replace(ALIGNED, labelled_share=0.25, labelled_by="frames", seed=1))
    assert list(other["labelled"].rows) != list(frames["labelled"].rows)
    alone = replace(ALIGNED, labelled_share=0.25, labelled_by="frames", use_unlabelled=False)
    found = labelled_parts(data.train, alone)
    assert set(found) == {"labelled"} and list(found["labelled"].rows) == list(frames["labelled"].rows)
    with pytest.raises(HandlabError, match="AlignedSettings.labelled_by"):
        check_aligned(replace(ALIGNED, labelled_by="persons"))


# ---------------------------------------------------------------- few pairs, unpaired frames before them
def test_unpaired_frames_first_and_few_pairs_then(data):
    settings = check_aligned(replace(ALIGNED, paired_share=0.25, unpaired_steps=4))
    views = ViewsAt(settings, data.train)
    seen = [views(step) for step in range(6)]
    for early in seen[:4]:  # each frame by one sensor: no product is ever formed
        assert set(early.sensor.tolist()) <= {0, 1}
    assert all(late.sensor is None for late in seen[4:])  # every frame by both
    pairs = views.batches[0]
    assert {row for step in range(9) for row in pairs.at(step).index.tolist()} <= set(range(6))
    assert {row for step in range(18) for row in views.unpaired[0].at(step).index.tolist()} == set(range(24))
    plain = ViewsAt(ALIGNED, data.train)
    default = ViewsAt(replace(ALIGNED, paired_share=1.0, unpaired_steps=0), data.train)
    assert torch.equal(plain(3).tensors["R"], default(3).tensors["R"]) and plain(3).sensor is None


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(paired_share=0.0), "paired_share: 0.0 is not a share"),
        (dict(strategy="S3", paired_share=0.5), "paired_share: RC2CHP:kl cannot learn"),
        (dict(correspondence=False, paired_share=0.5), "paired_share"),
        (dict(unpaired_steps=6), "unpaired_steps: there are 6 steps"),
    ],
)
def test_pairs_that_cannot_be(changes, words):
    with pytest.raises(HandlabError, match=f"AlignedSettings.{words}"):
        check_aligned(replace(ALIGNED, **changes))


def test_too_few_pairs_for_a_batch(data):
    with pytest.raises(HandlabError, match="paired_share: 2 paired frames are fewer than a batch"):
        ViewsAt(replace(ALIGNED, paired_share=0.1), data.train)


@pytest.mark.parametrize(
    "changes, name",
    [
        (dict(paired_share=0.25, unpaired_steps=2), "S4-pairs0.25-pretrained"),
        (dict(paired_share=0.25), "S4-pairs0.25"),
        (dict(labelled_share=0.25, labelled_by="frames"), "S4-labelled0.25-frames"),
        (
            dict(labelled_share=0.25, correspondence=False),
            "S4-labelled0.25-apart",
        ),  # section E, weakly supervised
        (dict(labelled_share=0.25, use_unlabelled=False), "S4-labelled0.25-alone"),
    ],
)
def test_every_option_trains_under_its_own_name(data, tmp_path, changes, name):
    settings = replace(ALIGNED, validation_frames=0, **changes)
    assert run_name(settings) == f"train_aligned-{name}-sim-rhd-seed0"
    finished = aligned.train_strategy(settings, data, tmp_path, report=silent)
    assert finished["steps"] == 6 and np.isfinite(read_losses(tmp_path / "losses.csv")["loss"]).all()


# ---------------------------------------------------------------- room for full rotations
def test_at_full_no_rotation_shows_what_was_not_stored():
    "The corners of the crop stay within the stored square at the worst rotation and shift."
    full = make_settings(AlignedSettings, "full")
    corner, shift = 2**0.5 / 2, full.shift * 2**0.5
    assert full.rotation == 180 and full.context / 2 >= (corner + shift) / full.scale_low
