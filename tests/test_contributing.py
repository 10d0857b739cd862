"What CONTRIBUTING.md says of adding a dataset, a twin, a modality, a strategy, an experiment: each is added."

import io
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from handlab.aligned import experiment as aligned
from handlab.aligned.decoders import DepthDecoder
from handlab.aligned.experiment import AlignedSettings
from handlab.aligned.losses import map_loss
from handlab.aligned.strategies import MODALITIES, STRATEGIES, Modality
from handlab.core import HandlabError, fingerprint, project_path
from handlab.data import prepare
from handlab.data.batches import Augment, Batches
from handlab.data.files import check_folder
from handlab.data.rhd import RHD, decode_frame, drawn_frame, frame_name, write_frame
from handlab.data.sample import Reader, Sample
from handlab.hand.skeleton import denormalise
from handlab.settings import make_settings
from handlab.sim import rhd as sim_rhd
from handlab.sim.write import SimReader, write
from handlab.train import experiment as shared
from handlab.train.experiment import ExperimentSettings, part_of
from handlab.train.files import read_losses
from handlab.train.loop import TrainSettings, fit
from handlab.train.scores import evaluate_on
from handlab.train.sets import READERS, TWINS, drawn_together, evaluation_reader

TINY = dict(
    train_frames=16, validation_frames=8, test_frames=8, steps=4, batch_size=4, log_every=2, precision="fp32"
)


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDLAB_ROOT", str(tmp_path))
    monkeypatch.setattr(prepare, "usable_cores", lambda: 1)  # a few frames: processes take longer to start
    return tmp_path


def drawn_sample(split, index):
    return decode_frame(frame_name(split, index), *drawn_frame(index, seed=split == "evaluation"))


def trained(**changes):
    "A few steps of paper 2's training; the loss of each row."
    settings = make_settings(AlignedSettings, "smoke", **TINY | changes)
    data = aligned.aligned_data(settings, show_progress=False)
    aligned.train_strategy(settings, data, project_path("run"), report=lambda *_: None)
    network = aligned.trained_network(settings, project_path("run"))
    predicted = aligned.predict(network, data.test, settings)
    assert predicted.shape == (len(data.test), 21, 3) and np.isfinite(predicted).all()
    return data, read_losses(project_path("run/losses.csv"), "training")


class TinySet(Reader):
    "A dataset: a folder per split, in it a picture and its labels per frame."

    name, frame_form, has_depth = "tiny", r"(training|evaluation)/\d{3}", False

    def __init__(self, root, split="training", partial=False, skip=()):
        self.root, self.split, self.source, self.missing = project_path(root), split, "tiny", 0
        check_folder(self.root / split, "training/ and evaluation/")
        names = [f"{split}/{path.stem}" for path in sorted((self.root / split).glob("*.png"))]
        self.skipped = [(name, "named in skip") for name in names if name in skip]
        self.frames = [name for name in names if name not in skip]

    def identity(self):
        return fingerprint(*[(self.root / f"{name}.npz").read_bytes() for name in self.frames])

    def __getitem__(self, index):
        name = self.frames[index]
        image = np.array(Image.open(self.root / f"{name}.png").convert("RGB"))
        with np.load(self.root / f"{name}.npz") as labels:
            known = {key: labels[key] for key in ("joints", "uv", "visible", "K")}
        return Sample(image=image, depth=None, mask=None, side="right", name=name, **known).check()


def write_tiny(root, frames=24):
    for split in ("training", "evaluation"):
        (root / split).mkdir(parents=True)
        for index in range(0, 2 * frames, 2):  # every second drawn hand is a right one
            sample = drawn_sample(split, index)
            Image.fromarray(sample.image).save(root / split / f"{index:03d}.png")
            known = {key: getattr(sample, key) for key in ("joints", "uv", "visible", "K")}
            np.savez(root / split / f"{index:03d}.npz", **known)
    return root


def test_a_dataset_is_a_reader_and_an_entry(project, monkeypatch):
    monkeypatch.setitem(READERS, "tiny", TinySet)
    root = write_tiny(project / "pictures")
    given = dict(dataset="tiny", data_root=str(root), strategy="S1", crop_by="zb")
    data, losses = trained(**given, skip="training/002")
    assert data.train.source == "tiny" and len(data.train) == 24 - 1 - 8 and len(data.test) == 24
    assert data.left_out["training"]["count"] == 1 and np.isfinite(losses["loss"]).all()
    with pytest.raises(HandlabError, match="tiny has no depth images"):
        trained(**given | dict(strategy="S4"))
    with pytest.raises(HandlabError, match="did you mean tiny"):
        trained(dataset="tinny", strategy="S1")
    assert len(set(drawn_together("tiny", np.asarray(data.test.name, str)))) == 24


class SimTiny(SimReader):
    "A twin: frames drawn when asked for."

    name, source = "rhd", "sim-tiny"

    def first_frame(self):
        return drawn_frame(0, self.seed)

    def sample(self, index):
        return drawn_sample(self.split, index)


@dataclass(frozen=True)
class TinyFiles(sim_rhd.Files):
    "The twin in the layout that RHD's reader reads."

    source: ClassVar[str] = "sim-tiny"

    def first_frame(self):
        return fingerprint(*drawn_frame(0, self.seed))

    def write_frame(self, folder, part, number):
        *images, annotation = drawn_frame(number, self.seed)
        write_frame(folder, part, number, *images)
        label = io.BytesIO()
        np.savez(label, **annotation)
        return label.getvalue()


def test_a_twin_is_a_module_and_two_entries(project, monkeypatch):
    monkeypatch.setitem(TWINS, "sim-tiny", (SimTiny, 8))
    data, losses = trained(dataset="sim-tiny", strategy="S4")
    assert data.test.source == "sim-tiny" and np.isfinite(losses["loss"]).all()
    assert len(evaluation_reader("sim-tiny", frames=5)) == 5
    folder = write(TinyFiles, "twin", workers=1, show_progress=False, training=2, evaluation=1)
    reader = RHD(folder, "training")
    assert reader.source == "sim-tiny" and len(reader) == 2
    np.testing.assert_array_equal(reader[1].joints, decode_frame("x", *drawn_frame(1)).joints)


def test_a_modality_is_two_entries(project, monkeypatch):
    "Silhouettes as something to decode: where the hand is, as a map of few cells."
    monkeypatch.setitem(TWINS, "sim-tiny", (SimTiny, 8))

    def terms(prediction, truth, settings, chosen):
        return {"silhouette": (map_loss(prediction, truth, settings.map_norm), settings.depth_weight)}

    def decoder(settings):
        return DepthDecoder(settings.latent, settings.decoder_width, settings.map_size)

    def silhouettes(batch, settings, turn):
        return F.adaptive_avg_pool2d((batch.mask > 0.5).float(), settings.map_size)

    monkeypatch.setitem(MODALITIES, "M", Modality("silhouette", "rgb", decoder=decoder, terms=terms))
    monkeypatch.setitem(aligned.TENSORS, "M", (("mask",), silhouettes))
    _, losses = trained(dataset="sim-tiny", strategy="R2MP")
    assert (losses["silhouette"] > 0).all() and losses["silhouette"][-1] < losses["silhouette"][0]


def test_a_strategy_is_an_entry(project, monkeypatch):
    monkeypatch.setitem(TWINS, "sim-tiny", (SimTiny, 8))
    with pytest.raises(HandlabError, match="S9"):
        trained(dataset="sim-tiny", strategy="S9")
    monkeypatch.setitem(STRATEGIES, "S9", "RD2DP:kl")
    _, losses = trained(dataset="sim-tiny", strategy="S9")
    assert {"pose", "depth", "align"} <= set(losses) and np.isfinite(losses["loss"]).all()


@dataclass(frozen=True)
class TinySettings(ExperimentSettings):
    "An experiment: one layer from the crop to the pose."

    steps: int = 40
    learning_rate: float = 1e-3
    protocol: str = "pooled"
    PROFILES: ClassVar[dict] = {"smoke": shared.SMOKE, "quick": {}}


class Linear(torch.nn.Module):
    def __init__(self, settings):
        super().__init__()
        torch.manual_seed(settings.seed)
        self.layer = torch.nn.Linear(3 * settings.crop**2, 63)

    def forward(self, image):
        return self.layer(image.flatten(1)).unflatten(1, (21, 3))


def squared_error(network, batch):
    return {"loss": (network(batch.image) - batch.pose).square().mean()}


def run_tiny(settings, folder):
    "Data, training, prediction, scores and the run folder."
    settings = shared.check_experiment(settings, positive=("steps", "learning_rate"))
    data = shared.experiment_data(settings, show_progress=False)
    batches = Batches(
        data.train,
        settings.batch_size,
        augment=part_of(Augment, settings),
        seed=settings.seed,
        modalities=("image",),
    )
    network = fit(
        Linear(settings),
        squared_error,
        batches.at,
        part_of(TrainSettings, settings),
        folder,
        about=shared.depends_on(settings, data, experiment="tiny"),
        report=lambda *_: None,
    )
    joints = shared.in_order(
        data.test, lambda batch: denormalise(network(batch.image), batch.root, batch.scale), ("image",)
    )
    predictions = {"linear": joints.numpy()}
    values = evaluate_on(data.test, predictions, settings.protocol)
    shared.write_predictions(folder / "predictions.npz", data.test, predictions)
    return shared.write_metrics(folder, "tiny", settings, data, values=values)


def test_an_experiment_is_a_notebook_on_the_shared_parts(project, monkeypatch):
    monkeypatch.setitem(TWINS, "sim-tiny", (SimTiny, 8))
    settings = make_settings(TinySettings, "smoke", dataset="sim-tiny", **TINY)
    metrics = run_tiny(settings, project / "runs/smoke/tiny")
    assert metrics["source"] == "sim-tiny" and metrics["values"]["linear"]["epe_mean"] > 0
    assert set(metrics["files"]) >= {"predictions.npz", "losses.csv", "model.safetensors"}
    assert run_tiny(settings, project / "runs/smoke/tiny")["values"] == metrics["values"]  # found finished
    with pytest.raises(HandlabError, match="batch_size"):
        run_tiny(replace(settings, batch_size=99), project / "other")
