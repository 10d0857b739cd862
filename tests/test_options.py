"What the papers leave open is an option: each does what its name says, and its default changes nothing."

import pickle
import re
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from handlab.aligned import experiment as aligned
from handlab.aligned.decoders import HeatmapDecoder, PoseDecoder
from handlab.aligned.experiment import AlignedSettings, ViewsAt, check_aligned, labelled_parts, run_name
from handlab.core import HandlabError, read_json
from handlab.data.prepare import CropSettings, prepare
from handlab.hand.skeleton import root_of
from handlab.privileged import experiment as privileged
from handlab.privileged import experiment_2d as privileged_2d
from handlab.privileged.experiment_2d import Pi2dSettings
from handlab.privileged.figures import fig_losses
from handlab.privileged.stages import PiSettings, check_pi
from handlab.settings import make_settings, settings_table
from handlab.sim.rhd import SimRHD
from handlab.train.experiment import ExperimentData, in_order, ordered_batches
from handlab.train.files import read_losses
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
    with pytest.raises(HandlabError, match="one person would be in both training and validation"):
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
        (dict(cloud_encoder="basis", cloud_decoder="bones"), "S4-basis-bones"),
        (
            dict(cloud_decoder="bones", labelled_share=0.25, use_unlabelled=False),
            "S4-bones-labelled0.25-alone",
        ),
    ],
)
def test_every_option_trains_under_its_own_name(data, tmp_path, changes, name):
    settings = replace(ALIGNED, validation_frames=0, **changes)
    assert run_name(settings) == f"train_aligned-{name}-sim-rhd-seed0"
    finished = aligned.train_strategy(settings, data, tmp_path, report=silent)
    assert finished["steps"] == 6 and np.isfinite(read_losses(tmp_path / "losses.csv")["loss"]).all()


# ---------------------------------------------------------------- parts that start trained
def test_equal_parts_start_with_the_weights_of_a_trained_network(data, tmp_path):
    clouds = replace(ALIGNED, strategy="C2CP", cloud_encoder="basis", validation_frames=0)
    aligned.train_strategy(clouds, data, tmp_path / "clouds", report=silent)
    later = replace(clouds, strategy="S4", start_from=str(tmp_path / "clouds"))
    assert run_name(later) == "train_aligned-S4-basis-pretrained-sim-rhd-seed0"
    network, plain = aligned.make_network(later), aligned.make_network(later).state_dict()
    assert aligned.start_parts(network, later.start_from) == ["encoders.C", "decoders.C", "decoders.P"]
    trained = aligned.trained_network(clouds, tmp_path / "clouds").state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, trained[name] if name in trained else plain[name])
    assert {name.split(".")[1] for name in network.state_dict() if name not in trained} == {"R", "H"}
    aligned.train_strategy(later, data, tmp_path / "later", report=silent)
    assert read_json(tmp_path / "later/run.json")["about"]["start_from"] == later.start_from
    with pytest.raises(HandlabError, match=r"encoders.C has other layers.*widths"):
        aligned.start_parts(aligned.make_network(replace(later, cloud_encoder="respel")), later.start_from)
    with pytest.raises(HandlabError, match="no part of R2H"):
        aligned.start_parts(aligned.make_network(replace(later, strategy="R2H")), later.start_from)
    with pytest.raises(HandlabError, match="it holds no finished training"):
        aligned.train_strategy(replace(later, start_from=str(tmp_path)), data, tmp_path / "no", report=silent)


# ---------------------------------------------------------------- room for full rotations
def test_at_full_no_rotation_shows_what_was_not_stored():
    "The corners of the crop stay within the stored square at the worst rotation and shift."
    full = make_settings(AlignedSettings, "full")
    corner, shift = 2**0.5 / 2, full.shift * 2**0.5
    assert full.rotation == 180 and full.context / 2 >= (corner + shift) / full.scale_low


# ---------------------------------------------------------------- what poses are relative to
ORIGINS = ("middle_mcp", "palm", "wrist", "centroid")


class Knowing(torch.nn.Module):
    "A network that knows the answer of every frame, in the terms that it was trained in."

    def __init__(self, settings, data):
        super().__init__()
        self.encoders, self.decoders, self.place = {"R": None}, {"P": self.decode}, 0
        prepared = data.test.rooted(settings.origin)
        self.poses = in_order(prepared, lambda batch: aligned.modality_tensors(batch, "P", settings)["P"])

    def encode(self, view, letter=None):
        self.place += len(view)
        return self.poses[self.place - len(view) : self.place]

    def decode(self, code):
        return code


@pytest.mark.parametrize("origin", ORIGINS)
def test_whatever_poses_are_relative_to_the_truth_has_no_error(data, origin):
    settings = check_aligned(replace(ALIGNED, strategy="S1", origin=origin))
    truth, poses = np.asarray(data.test.joints), Knowing(settings, data).poses
    assert np.abs(aligned.predict(Knowing(settings, data), data.test, settings) - truth).max() < 0.01
    moved = Knowing(settings, data)
    moved.poses = poses + torch.tensor([0.5, -1.0, 2.0])  # the whole hand elsewhere: only its shape counts
    away = np.abs(aligned.predict(moved, data.test, settings) - truth).max()
    assert away < 0.01 if origin != "middle_mcp" else away > 10
    measured = aligned.Validation(settings, data.test.rooted(origin))(Knowing(settings, data))
    assert measured["epe"] < 0.01


@pytest.mark.parametrize("origin", ORIGINS)
def test_batches_are_relative_to_the_origin(data, origin):
    settings = replace(ALIGNED, origin=origin)
    rooted = replace(data, origin=origin)
    for prepared in (rooted.train, rooted.validation, rooted.test, rooted.test.subset([1, 3])):
        assert prepared.root == origin and pickle.loads(pickle.dumps(prepared)).root == origin
    batch = next(iter(ordered_batches(rooted.test, 8, "cpu", ("depth", "mask"), 32)))
    root = root_of(torch.as_tensor(np.asarray(data.test.joints)), origin)
    torch.testing.assert_close(batch.root, root)
    assert (batch.cloud * batch.scale[:, None, None]).norm(dim=2).max() < 200.1  # mm about the origin
    first = ViewsAt(check_aligned(settings), rooted.train)(0).tensors["P"]
    assert root_of(first, origin).abs().max() < 1e-4


@pytest.mark.parametrize("origin", ("palm", "centroid"))
def test_every_experiment_trains_about_another_origin(data, tmp_path, origin):
    rooted = replace(data, origin=origin)
    pi = make_settings(PiSettings, "smoke", batch_size=4, train_frames=24, validation_frames=0, origin=origin)
    pi = replace(pi, steps_first=2, steps_second=2)
    privileged.train_first(pi, rooted, tmp_path / "pi", show=False)
    privileged.train_second(pi, rooted, tmp_path / "pi", show=False)
    mean = privileged.predict_all(pi, rooted, tmp_path / "pi")["mean_pose"]
    true = np.asarray(data.test.joints)
    np.testing.assert_allclose(root_of(mean, origin), root_of(true, origin), atol=0.05)
    other = replace(ALIGNED, strategy="S4", validation_frames=0, origin=origin)
    aligned.train_strategy(other, rooted, tmp_path / "aligned", report=silent)
    network = aligned.trained_network(other, tmp_path / "aligned")
    for joints in aligned.predict_all(network, data.test, other, rooted).values():
        np.testing.assert_allclose(joints[:, 9], true[:, 9], atol=0.05)  # paper 2's known root


def test_at_full_poses_are_relative_to_what_the_papers_say():
    assert make_settings(PiSettings, "full").origin == "palm"
    assert make_settings(AlignedSettings, "full").origin == "centroid"
    assert PiSettings().origin == AlignedSettings().origin == "middle_mcp"
    with pytest.raises(HandlabError, match="AlignedSettings.origin"):
        check_aligned(replace(ALIGNED, origin="thumb"))


# ---------------------------------------------------------------- how decoders start
def test_decoders_start_as_they_are_told():
    for bias, level in ((-3.0, 0.0474), (0.0, 0.5)):
        maps = HeatmapDecoder(8, 0.125, map_size=16, bias=bias)
        assert (maps.maps.bias == bias).all()
        assert maps.eval()(torch.zeros(1, 8)).mean().item() == pytest.approx(level, abs=0.05)
    torch.manual_seed(0)
    he, glorot = PoseDecoder(64), PoseDecoder(64, start="glorot")
    for number, (inputs, outputs) in {0: (64, 128), 2: (128, 128), 4: (128, 128), 6: (128, 63)}.items():
        edge = (6 / (inputs + outputs)) ** 0.5
        weights = glorot[number].weight.abs()
        assert 0.98 * edge < weights.max() <= edge and (glorot[number].bias == 0).all()
        if number < 6:
            assert he[number].weight.std().item() == pytest.approx((2 / inputs) ** 0.5, rel=0.05)
    small = check_aligned(replace(ALIGNED, heat_bias=-1.0, pose_start="glorot"))
    network = aligned.make_network(small)
    assert (network.decoders["H"].maps.bias == -1).all() and (network.decoders["P"][6].bias == 0).all()
    with pytest.raises(HandlabError, match="AlignedSettings.pose_start"):
        check_aligned(replace(ALIGNED, pose_start="zero"))


@pytest.mark.parametrize("cls", [PiSettings, Pi2dSettings, AlignedSettings])
def test_the_table_of_settings_shows_what_differs_and_folds_the_rest(cls):
    settings = replace(make_settings(cls, "quick"), skip="0001|0002", crop=32)
    shown, folded = settings_table(settings, "quick").split("<details>")
    assert r"| `skip` | `'0001\|0002'` (`''` in quick) |" in shown.splitlines()
    usual = make_settings(cls, "quick").crop
    assert f"| `crop` | `32` (`{usual}` in quick) |" in shown.splitlines()
    assert re.findall(r"^\| `(\w+)`", shown, re.M) == [*cls.ESSENTIALS, "skip"]
    named = re.findall(r"^\| `(\w+)`", shown + folded, re.M)
    assert sorted(named) == sorted(field.name for field in fields(cls))
