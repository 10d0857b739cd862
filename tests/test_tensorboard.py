"The setting `tensorboard`: the rows of losses.csv as events, also over an interruption; all else stays."

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from handlab.core import HandlabError
from handlab.train.experiment import ExperimentSettings, part_of
from handlab.train.files import read_losses, weights_fingerprint
from handlab.train.loop import TrainSettings, fit

SETTINGS = TrainSettings(
    steps=12, log_every=2, validate_every=3, checkpoint_every=5, precision="fp32", tensorboard=True
)


def train(folder, settings=SETTINGS, stop_at=None):
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 1)

    def batch_at(step):
        if step == stop_at:
            raise KeyboardInterrupt
        return torch.tensor([[step / 12, 1.0]])

    def loss(network, batch):
        return {"loss": (network(batch) - batch.sum()).square().mean()}

    def validate(network):
        return {"error": network(torch.ones(1, 2)).abs().sum()}

    return fit(network, loss, batch_at, settings, folder, validate=validate, report=lambda *_: None)


def test_events_are_the_rows_of_the_table_after_an_interruption_too(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "shown", stop_at=9)  # rows up to step 8, a checkpoint at 5
    shown = train(tmp_path / "shown")
    plain = train(tmp_path / "plain", replace(SETTINGS, tensorboard=False))
    assert weights_fingerprint(shown) == weights_fingerprint(plain)
    for name in ("run.json", "losses.csv"):
        assert (tmp_path / "shown" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert not (tmp_path / "plain/tensorboard").exists()
    board = events.EventAccumulator(str(tmp_path / "shown/tensorboard")).Reload()
    for split, name in (("training", "loss"), ("training", "learning_rate"), ("validation", "error")):
        table = read_losses(tmp_path / "shown/losses.csv", split)
        curve = board.Scalars(f"{name}/{split}")
        assert [each.step for each in curve] == table["step"].tolist()
        np.testing.assert_allclose([each.value for each in curve], table[name], rtol=1e-6)


def test_a_missing_package_is_one_line_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(HandlabError, match="pip install -c constraints.txt tensorboard"):
        train(tmp_path)
    assert not (tmp_path / "losses.csv").exists()


def test_every_experiment_has_the_setting():
    assert part_of(TrainSettings, ExperimentSettings(tensorboard=True)).tensorboard
    assert not ExperimentSettings().tensorboard
