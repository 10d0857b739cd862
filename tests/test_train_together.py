"One training by several processes: two on the CPU end where one ends; a stopped one goes on."

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from handlab.aligned import experiment as aligned
from handlab.core import HandlabError, read_json
from handlab.data.batches import own_part
from handlab.machine import process_share
from handlab.privileged.experiment import pi_data, stage_jobs
from handlab.privileged.stages import PiSettings
from handlab.settings import make_settings
from handlab.train.files import read_losses
from handlab.train.jobs import Job, run_jobs
from handlab.train.loop import TrainSettings, fit

ROOT = Path(__file__).parents[1]
SETTINGS = TrainSettings(
    steps=30, learning_rate=3e-3, log_every=5, checkpoint_every=12, validate_every=10, precision="fp32"
)


def network(dropout=0.0):
    torch.manual_seed(3)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout)
    return nn.Sequential(*layers, nn.Linear(8 * 64, 4))


def batch_at(step):
    "This process's part of the step's 16 images."
    image = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(step))
    true = image.mean((2, 3)) @ torch.arange(12.0).view(3, 4)
    return own_part(image, process_share()), own_part(true, process_share())


def loss(network, batch):
    assert len(batch[0]) == 16 // process_share()[1]
    return {"loss": (network(batch[0]).float() - batch[1]).square().mean()}


def validate(network):
    assert process_share()[0] == 0  # by the first process alone
    return {"error": network(torch.ones(1, 3, 8, 8)).mean()}


def train(folder, dropout=0.0, stop=0, report=None):
    "A training that runs out of time at step `stop`."

    def stopping(step):
        if step == stop - 1:
            os.environ["HANDLAB_STOP_AT"] = "0"
        return batch_at(step)

    with torch.random.fork_rng():
        fit(network(dropout), loss, stopping if stop else batch_at, SETTINGS, folder, validate=validate)
    return process_share()


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def largest_difference(one, two):
    one, two = weights(one), weights(two)
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def test_two_processes_end_where_one_ends(tmp_path):
    "The tolerance is that of sums in another order: 30 steps of Adam move the weights by about 0.05."
    train(tmp_path / "one")
    shares = run_jobs([Job("two", train, {"folder": tmp_path / "two"})], processes=2)
    assert shares["two"] == (0, 2)
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-5
    for split in ("training", "validation"):
        one, two = (read_losses(tmp_path / name / "losses.csv", split) for name in ("one", "two"))
        assert one.keys() == two.keys() and all(abs(one[name] - two[name]).max() < 1e-4 for name in one)
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        path.name for path in (tmp_path / "two").iterdir()
    }
    assert read_json(tmp_path / "two/finished.json")["processes"] == 2


def test_a_stopped_one_goes_on_the_same(tmp_path):
    "To the bit, also with dropout, whose numbers differ from process to process, and between checkpoints."

    def run(folder, **more):
        run_jobs([Job("a", train, {"folder": tmp_path / folder, "dropout": 0.3, **more})], processes=2)

    with pytest.raises(HandlabError, match="the time limit is reached at step 15 of 30") as stopped:
        run("stopped", stop=14)
    assert stopped.value.code == 75
    run("stopped")
    run("whole")
    assert largest_difference(tmp_path / "stopped", tmp_path / "whole") == 0
    tables = [(tmp_path / folder / "losses.csv").read_text() for folder in ("stopped", "whole")]
    assert tables[0] == tables[1]


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
from test_train_together import train
if __name__ == "__main__":
    train(sys.argv[1])
"""


def test_accelerate_launch(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu"]
    words += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    words += ["--dynamo_backend", "no", tmp_path / "script.py", tmp_path / "two", Path(__file__).parent]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train(tmp_path / "one")
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-5
    assert done.stdout.count("step 30/30") == 1  # one process reports


def test_an_experiment_by_two_processes(tmp_path):
    "RGB Net without batch norm, whose statistics each process takes of its own part on a CPU."
    settings = make_settings(PiSettings, "smoke", batch_norm=False, precision="fp32")
    data = pi_data(settings, show_progress=False)
    for name, processes in (("one", 1), ("two", 2)):
        (job,) = stage_jobs({"rgb": 0}, settings, data, tmp_path / name, "cpu")
        run_jobs([job], show=False, processes=processes)
    assert largest_difference(tmp_path / "one/rgb", tmp_path / "two/rgb") < 1e-5


def test_what_cannot_be_shared_is_named():
    with pytest.raises(HandlabError, match="a batch of 8 cannot be shared equally by 3 processes"):
        from handlab.privileged.stages import check_pi

        check_pi(replace(make_settings(PiSettings, "smoke"), num_processes=3))


ALIGNED = make_settings(aligned.AlignedSettings, "smoke", precision="fp32")


@pytest.fixture(scope="module")
def frames():
    return aligned.aligned_data(ALIGNED, show_progress=False)


@pytest.mark.parametrize(
    "changes",
    [{}, dict(labelled_share=0.5, cloud_posteriors=1), dict(correspondence=False), dict(matched_points=0)],
)
def test_the_parts_of_a_step_are_the_step(changes, frames, monkeypatch):
    "Two processes see together, to the bit, what one sees: pixels, labels, clouds, noise, matched points."
    settings, parts = replace(ALIGNED, **changes), []
    whole = aligned.ViewsAt(settings, frames.train)(3)
    for number in ("0", "1"):
        monkeypatch.setenv("RANK", number)
        monkeypatch.setenv("WORLD_SIZE", "2")
        parts.append(aligned.ViewsAt(settings, frames.train)(3))
    groups = 2 if "labelled_share" in changes else 1  # the labelled frames come first

    def joined(name, axis, groups):
        both = [getattr(each, name).unflatten(axis, (groups, -1)) for each in parts]
        return torch.cat(both, axis + 1).flatten(axis, axis + 1)

    for letter, tensor in whole.tensors.items():
        both = [each.tensors[letter].unflatten(0, (groups, -1)) for each in parts]
        assert torch.equal(torch.cat(both, 1).flatten(0, 1), tensor), letter
    clouds = whole.noise.shape[0] if not settings.cloud_posteriors else settings.cloud_posteriors
    for name, axis, count in (
        ("noise", 1, groups),
        ("drawn", 1, groups),
        ("chosen", 1, clouds * groups),
        ("labelled", 0, groups),
        ("sensor", 0, groups),
    ):
        value = getattr(whole, name)
        assert (value is None) == (getattr(parts[0], name) is None), name
        assert value is None or torch.equal(joined(name, axis, count), value), name


def test_a_strategy_by_two_processes(frames, tmp_path):
    "S4 has batch norm: on a CPU its statistics differ, so it ends near, not where one process ends."
    errors = []
    for processes in (1, 2):
        settings = replace(ALIGNED, num_processes=processes)
        folder = tmp_path / str(processes)
        done = aligned.train_strategy(settings, frames, folder, report=lambda *state: None)
        assert done["steps"] == settings.steps and done.get("processes", 1) == processes
        errors.append(read_losses(folder / "losses.csv", "validation")["epe"][-1])
    assert abs(errors[1] / errors[0] - 1) < 0.1
    aligned.train_strategy(ALIGNED, frames, tmp_path / "2")  # one process loads it
