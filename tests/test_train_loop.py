"The training loop: schedules by hand, exact resume after SIGKILL, refusals."

import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from handlab.core import HandlabError, read_json
from handlab.settings import make_settings
from handlab.train import loop
from handlab.train.files import load_network, read_losses, save_network, weights_fingerprint
from handlab.train.loop import TrainSettings, fit, learning_rate

# A network with everything that carries state: batch statistics, dropout (torch's generator), Adam's moments.
TINY = """
import sys, time
import torch
from torch import nn
from handlab.train.files import weights_fingerprint
from handlab.train.loop import TrainSettings, fit

def tiny():
    torch.manual_seed(3)
    convolution = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
    return nn.Sequential(*convolution, nn.Flatten(), nn.Dropout(0.3), nn.Linear(8 * 64, 4))

def batch_at(step):
    generator = torch.Generator().manual_seed(step)
    image = torch.randn(16, 3, 8, 8, generator=generator)
    return image, image.mean((2, 3)) @ torch.arange(12.0).view(3, 4)

def loss(network, batch):
    error = network(batch[0]).float() - batch[1]
    return {"loss": error.square().mean(), "largest": error.abs().max()}

def validate(network):
    image, true = batch_at(10_000)
    return {"error": (network(image).float() - true).abs().mean()}

SETTINGS = TrainSettings(
    steps=150, learning_rate=3e-3, warm_up=10, log_every=7, validate_every=20, checkpoint_every=13,
    precision="bf16", clip_gradient=1.0, weight_decay=1e-3, seed=5)

def train(folder, pause=0.0, settings=SETTINGS):
    torch.set_num_threads(1)
    def slowly(step):
        time.sleep(pause)
        return batch_at(step)
    return fit(tiny(), loss, slowly, settings, folder, validate=validate, report=lambda *state: None)
"""
namespace = {}
exec(TINY, namespace)
train, tiny, batch_at, SETTINGS = (namespace[name] for name in ("train", "tiny", "batch_at", "SETTINGS"))


def quiet(*state):
    pass


def line(step):
    x = torch.rand(8, 1, generator=torch.Generator().manual_seed(step))
    return x, 2 * x + 1


def line_loss(network, batch):
    return {"loss": (network(batch[0]).float() - batch[1]).square().mean()}


def new_line():
    torch.manual_seed(0)
    return nn.Linear(1, 1)


# ---------------------------------------------------------------- settings and schedules
def test_unknown_setting_is_named():
    with pytest.raises(HandlabError, match="no such setting"):
        make_settings(TrainSettings, "quick", step=3)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"schedule": "linear"}, "schedule"),
        ({"optimiser": "sgd"}, "optimiser"),
        ({"precision": "fp16"}, "precision"),
        ({"steps": 0}, "steps"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"warm_up": -1}, "warm_up"),
        ({"steps": 2.5}, "steps"),
    ],
)
def test_bad_value_is_named(change, words, tmp_path):
    with pytest.raises(HandlabError, match=f"TrainSettings.{words}"):
        fit(new_line(), line_loss, line, replace(TrainSettings(), **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_schedules_by_hand():
    cosine = TrainSettings(steps=40, learning_rate=0.1, warm_up=0, final_fraction=0.0)
    assert learning_rate(0, cosine) == pytest.approx(0.1)
    assert learning_rate(20, cosine) == pytest.approx(0.05)
    assert learning_rate(10, cosine) == pytest.approx(0.05 * (1 + 2**-0.5))  # cos 45 degrees
    assert learning_rate(40, cosine) == pytest.approx(0.0)
    warm = TrainSettings(steps=40, learning_rate=0.1, warm_up=4, schedule="constant")
    assert [learning_rate(step, warm) for step in (0, 1, 2, 3, 4, 39)] == pytest.approx(
        [0.025, 0.05, 0.075, 0.1, 0.1, 0.1]
    )
    drops = TrainSettings(steps=10, learning_rate=1.0, schedule="step", drop_first=0.5, drop_second=0.8)
    assert [learning_rate(step, drops) for step in (4, 5, 7, 8)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_cosine_agrees_with_torch():
    settings = TrainSettings(steps=25, learning_rate=0.3, final_fraction=0.1)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=25, eta_min=0.03)
    for step in range(25):
        assert learning_rate(step, settings) == pytest.approx(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()


# ---------------------------------------------------------------- the loop against plain torch
def test_fit_is_plain_adam(tmp_path):
    settings = TrainSettings(
        steps=12, learning_rate=0.05, schedule="constant", precision="fp32", channels_last=False
    )
    trained = fit(new_line(), line_loss, line, settings, tmp_path, report=quiet)
    network = new_line()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.05)
    losses = []
    for step in range(12):
        optimiser.zero_grad()
        loss = line_loss(network, line(step))["loss"]
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert torch.equal(trained.weight, network.weight) and torch.equal(trained.bias, network.bias)
    table = read_losses(tmp_path / "losses.csv")
    assert table["step"].tolist() == [12] and table["loss"][0] == pytest.approx(sum(losses) / 12)


def test_frozen_parameters_stay(tmp_path):
    network = tiny()
    network[0].weight.requires_grad_(False)
    before = network[0].weight.clone()
    trained = fit(network, namespace["loss"], batch_at, replace(SETTINGS, steps=5), tmp_path, report=quiet)
    assert torch.equal(trained[0].weight, before)
    assert not torch.equal(trained[5].weight, tiny()[5].weight)


def test_clipping_bounds_the_gradient():
    network = new_line()
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0)
    before = torch.cat([p.detach().clone().flatten() for p in network.parameters()])
    loop.train_step(
        network,
        optimiser,
        lambda n, b: {"loss": 1e4 * n(b[0]).sum()},
        line(0),
        1.0,
        TrainSettings(precision="fp32", clip_gradient=0.5),
        torch.device("cpu"),
    )
    after = torch.cat([p.detach().flatten() for p in network.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_global_random_state_is_left_alone(tmp_path):
    network = tiny()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    fit(network, namespace["loss"], batch_at, replace(SETTINGS, steps=3), tmp_path, report=quiet)
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------- stopping and going on
def results(folder):
    return (folder / "model.safetensors").read_bytes(), (folder / "losses.csv").read_text()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return results(folder)


def start(folder, pause):
    code = TINY + f"\ntrain({str(folder)!r}, {pause})\n"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(loop.__file__).parents[2], stderr=subprocess.PIPE
    )


def test_sigkill_at_random_moments_changes_nothing(tmp_path, uninterrupted):
    chance, kills, seen = random.Random(), 0, []  # another moment in every run
    while not (tmp_path / "finished.json").exists():
        process = start(tmp_path, 0.01 if kills < 2 else 0.0)
        if kills < 2:
            before = (
                (tmp_path / "checkpoint.pt").stat().st_mtime_ns
                if (tmp_path / "checkpoint.pt").exists()
                else 0
            )
            while process.poll() is None and not (
                (tmp_path / "checkpoint.pt").exists()
                and (tmp_path / "checkpoint.pt").stat().st_mtime_ns > before
            ):
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.35))
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        if kills >= 2 and process.returncode not in (0, -signal.SIGKILL):
            raise AssertionError(process.stderr.read().decode())
        seen.append(process.returncode)
    assert -signal.SIGKILL in seen
    weights, table = results(tmp_path)
    assert weights == uninterrupted[0]  # batch statistics included
    assert table == uninterrupted[1]  # no double, no missing row


@pytest.mark.parametrize("step", [1, 12, 13, 14, 20, 91, 149])
def test_an_error_at_any_step_changes_nothing(step, tmp_path, uninterrupted):
    def broken(at):
        if at == step:
            raise KeyboardInterrupt
        return batch_at(at)

    torch.set_num_threads(1)
    with pytest.raises(KeyboardInterrupt):
        fit(
            tiny(),
            namespace["loss"],
            broken,
            SETTINGS,
            tmp_path,
            validate=namespace["validate"],
            report=quiet,
        )
    assert not (tmp_path / "model.safetensors").exists() and not (tmp_path / "finished.json").exists()
    train(tmp_path)
    assert results(tmp_path) == uninterrupted


def test_killed_between_last_checkpoint_and_the_weights(tmp_path, uninterrupted, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "finish", lambda run: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    train(tmp_path)
    assert results(tmp_path) == uninterrupted


def test_the_test_can_fail(tmp_path, uninterrupted, monkeypatch):
    "If the random state were not restored, dropout would differ and so would the weights."
    real = loop.load_checkpoint

    def forgetful(path, network, optimiser):
        state = real(path, network, optimiser)
        torch.manual_seed(0)
        return state

    def broken(at):
        if at == 50:
            raise KeyboardInterrupt
        return batch_at(at)

    with pytest.raises(KeyboardInterrupt):
        fit(
            tiny(),
            namespace["loss"],
            broken,
            SETTINGS,
            tmp_path,
            validate=namespace["validate"],
            report=quiet,
        )
    monkeypatch.setattr(loop, "load_checkpoint", forgetful)
    train(tmp_path)
    assert results(tmp_path)[0] != uninterrupted[0]


def test_finished_run_is_loaded_not_redone(tmp_path):
    settings = replace(SETTINGS, steps=6)
    first = train(tmp_path, settings=settings)

    def never(step):
        raise AssertionError("a step was made")

    again = fit(tiny(), namespace["loss"], never, settings, tmp_path, report=quiet)
    assert weights_fingerprint(first) == weights_fingerprint(again) and not again.training
    assert read_json(tmp_path / "finished.json")["steps"] == 6


def test_rows_are_where_they_belong(uninterrupted, tmp_path):
    (tmp_path / "losses.csv").write_text(uninterrupted[1])
    training, validation = (
        read_losses(tmp_path / "losses.csv"),
        read_losses(tmp_path / "losses.csv", "validation"),
    )
    assert training["step"].tolist() == [*range(7, 150, 7), 150]
    assert validation["step"].tolist() == [0, *range(20, 150, 20), 150]
    assert training["learning_rate"][0] == pytest.approx(3e-3 * 7 / 10) and set(training) == {
        "step",
        "learning_rate",
        "loss",
        "largest",
    }


# ---------------------------------------------------------------- refusals
def test_other_settings_start_or_data_are_refused(tmp_path):
    settings = TrainSettings(steps=2, precision="fp32")
    fit(new_line(), line_loss, line, settings, tmp_path, about={"data": "a"}, report=quiet)
    for words, arguments in {
        r"settings.weight_decay = 0.0, now it is 0.1": dict(
            settings=replace(settings, weight_decay=0.1), about={"data": "a"}
        ),
        r"about.data = 'a', now it is 'b'": dict(settings=settings, about={"data": "b"}),
    }.items():
        with pytest.raises(HandlabError, match=words):
            fit(new_line(), line_loss, line, folder=tmp_path, report=quiet, **arguments)
    with pytest.raises(HandlabError, match="start ="):
        fit(nn.Linear(1, 1), line_loss, line, settings, tmp_path, about={"data": "a"}, report=quiet)


@pytest.mark.parametrize(
    "every, stops, kept", [(25, 40, 25), (17, 34, 17)]
)  # noticed at a row, or before a checkpoint is written
def test_a_loss_that_is_no_number_stops(every, stops, kept, tmp_path):
    def explodes(network, batch):
        return {
            "loss": line_loss(network, batch)["loss"]
            * (float("nan") if batch[0][0, 0] == line(33)[0][0, 0] else 1)
        }

    settings = TrainSettings(steps=80, log_every=10, checkpoint_every=every, precision="fp32")
    with pytest.raises(HandlabError, match=f"is not finite at step {stops}"):
        fit(new_line(), explodes, line, settings, tmp_path, report=quiet)
    assert read_losses(tmp_path / "losses.csv")["step"].tolist() == [10, 20, 30]
    assert not (tmp_path / "finished.json").exists()
    last = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert last["progress"]["step"] == kept and all(
        value.isfinite().all() for value in last["network"].values()
    )


def test_device_that_is_not_there(tmp_path):
    with pytest.raises(HandlabError, match="device 'cuda:9'"):
        fit(new_line(), line_loss, line, TrainSettings(), tmp_path / "run", device="cuda:9")
    assert not (tmp_path / "run").exists()


def test_damaged_files_are_named(tmp_path):
    settings = TrainSettings(steps=4, checkpoint_every=2, log_every=2, precision="fp32")
    fit(new_line(), line_loss, line, settings, tmp_path, report=quiet)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:20])
    with pytest.raises(HandlabError, match="model.safetensors: it is not a complete safetensors file"):
        fit(new_line(), line_loss, line, settings, tmp_path, report=quiet)
    (tmp_path / "finished.json").unlink()
    (tmp_path / "checkpoint.pt").write_bytes((tmp_path / "checkpoint.pt").read_bytes()[:100])
    with pytest.raises(HandlabError, match="checkpoint.pt: the checkpoint cannot be read"):
        fit(new_line(), line_loss, line, settings, tmp_path, report=quiet)


def test_a_checkpoint_with_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / "evil", "x"))

    network = new_line()
    torch.save({"network": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(HandlabError, match="cannot be read"):
        loop.load_checkpoint(tmp_path / "checkpoint.pt", network, torch.optim.Adam(network.parameters()))
    assert not (tmp_path / "evil").exists()


def test_weights_of_another_network(tmp_path):
    save_network(tmp_path / "m.safetensors", nn.Linear(2, 2))
    with pytest.raises(HandlabError, match="of another network"):
        load_network(tmp_path / "m.safetensors", nn.Linear(3, 2))
    with pytest.raises(HandlabError, match="no such file"):
        load_network(tmp_path / "none.safetensors", nn.Linear(3, 2))


def test_progress_lines_are_few(tmp_path, capsys):
    fit(
        new_line(),
        line_loss,
        line,
        TrainSettings(steps=400, log_every=2, precision="fp32"),
        tmp_path,
        name="a line",
    )
    printed = capsys.readouterr().out.splitlines()
    assert 1 <= len(printed) <= 3 and all(
        "images/s" in text and "left" in text and "loss" in text for text in printed
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_trains_and_resumes(tmp_path):
    def broken(at):
        if at == 70:
            raise KeyboardInterrupt
        return tuple(part.cuda() for part in batch_at(at))

    with pytest.raises(KeyboardInterrupt):
        fit(tiny(), namespace["loss"], broken, SETTINGS, tmp_path, device="cuda", report=quiet)
    fit(
        tiny(),
        namespace["loss"],
        lambda at: tuple(part.cuda() for part in batch_at(at)),
        SETTINGS,
        tmp_path,
        device="cuda",
        report=quiet,
    )
    assert read_json(tmp_path / "finished.json")["steps"] == 150


# ---------------------------------------------------------------- precision
CPU = torch.device("cpu")


def pretend_times(monkeypatch, bf16: float, fp32: float, root):
    "A machine with these times; root: its project's folder."
    monkeypatch.setenv("HANDLAB_ROOT", str(root))
    monkeypatch.setattr(loop, "convolution_time", lambda device, half: bf16 if half else fp32)
    loop.faster_precision.cache_clear()


@pytest.fixture(autouse=True)
def measured_anew():
    yield
    loop.faster_precision.cache_clear()


def line_folder(folder):
    fit(
        new_line(),
        line_loss,
        line,
        TrainSettings(steps=4, log_every=2, checkpoint_every=2),
        folder,
        report=quiet,
    )
    return read_json(folder / "finished.json")["precision"], read_json(folder / "run.json")["settings"][
        "precision"
    ]


@pytest.mark.parametrize(
    "bf16, fp32, faster", [(1.0, 4.0, "bf16"), (11.0, 1.0, "fp32"), (1.3, 1.0, "fp32"), (0.95, 1.0, "fp32")]
)
def test_auto_takes_the_faster_precision_and_records_it(bf16, fp32, faster, monkeypatch, tmp_path):
    pretend_times(monkeypatch, bf16, fp32, tmp_path)
    assert loop.precision_of(TrainSettings(), CPU).fast_dtype == torch.bfloat16
    assert loop.precision_of(TrainSettings(), CPU)._enabled == (faster == "bf16")
    assert line_folder(tmp_path) == (faster, faster)


def test_auto_goes_on_as_begun_on_another_processor(monkeypatch, tmp_path):
    def breaks(step):
        if step == 3:
            raise RuntimeError("power cut")
        return line(step)

    pretend_times(monkeypatch, 1.0, 4.0, tmp_path)
    with pytest.raises(RuntimeError):
        fit(
            new_line(),
            line_loss,
            breaks,
            TrainSettings(steps=4, log_every=2, checkpoint_every=2),
            tmp_path,
            report=quiet,
        )
    (tmp_path / "runs/precision.json").unlink()  # another machine
    pretend_times(monkeypatch, 4.0, 1.0, tmp_path)
    assert line_folder(tmp_path) == ("bf16", "bf16")


def test_the_first_measurement_stands_for_the_project(monkeypatch, tmp_path):
    "Where both are nearly as fast, a second measurement may come out otherwise."
    pretend_times(monkeypatch, 0.7, 1.0, tmp_path)
    assert loop.faster_precision(CPU) == "bf16"
    pretend_times(monkeypatch, 0.9, 1.0, tmp_path)
    assert loop.faster_precision(CPU) == "bf16"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # another set of instructions is measured anew
    loop.faster_precision.cache_clear()
    assert loop.faster_precision(CPU) == "fp32"


def test_a_named_precision_is_never_measured(monkeypatch):
    monkeypatch.setattr(loop, "convolution_time", None)
    loop.faster_precision.cache_clear()
    assert not loop.precision_of(TrainSettings(precision="fp32"), CPU)._enabled
    assert loop.precision_of(TrainSettings(precision="bf16"), CPU)._enabled


def test_validation_sees_the_network_as_it_is_used(tmp_path):
    "Without dropout, with the batch statistics as they are; training goes on in training mode."
    seen = []

    def validate(network):
        before, image = network[1].running_mean.clone(), batch_at(10_000)[0]
        same = torch.equal(network(image), network(image))  # dropout would differ
        seen.append((network.training, same, torch.equal(network[1].running_mean, before)))
        return {"error": 0.0}

    def loss(network, batch):
        assert network.training
        return namespace["loss"](network, batch)

    settings = replace(SETTINGS, steps=4, validate_every=2, precision="fp32")
    fit(tiny(), loss, batch_at, settings, tmp_path, validate=validate, report=quiet)
    assert seen == [(False, True, True)] * 3
