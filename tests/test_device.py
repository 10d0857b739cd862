"What a GPU would do, as far as a machine without one can tell."

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from handlab import machine
from handlab.aligned import losses
from handlab.core import HandlabError
from handlab.data.batches import PixelStore
from handlab.machine import pick_device
from handlab.train import jobs
from handlab.train.jobs import gpu_places
from handlab.train.loop import TrainSettings, compiled, fit

HERE = Path(__file__).parent


def test_a_step_never_waits_and_has_the_numbers_of_the_cpu():
    "In a process of its own: torch keeps a made-up device until the process ends."
    words = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    done = subprocess.run([*words, HERE / "device_path.py"], capture_output=True, text=True, cwd=HERE.parent)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert re.search(r"^\.{20,}|[0-9]+ skipped", done.stdout, re.M)


@pytest.fixture
def gpus(monkeypatch):
    "Two GPUs, as torch and the environment name them, with 10 GB free of 80 each."
    now = SimpleNamespace(free=10 << 30, reserved=0, allocated=0, share=1.0, current=None)
    whole = 80 << 30
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "set_device": lambda device: setattr(now, "current", device),
        "mem_get_info": lambda device: (now.free, whole),
        "memory_reserved": lambda device: now.reserved,
        "memory_allocated": lambda device: now.allocated,
        "get_per_process_memory_fraction": lambda device: now.share,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(machine, "_GPU_FILES", ("/",))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    return now


def test_32_bit_is_32_bit(gpus, monkeypatch):
    "torch computes convolutions in TF32 unless told otherwise."
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert pick_device("cuda").type == "cuda"
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_each_of_several_processes_has_a_gpu_of_its_own(gpus, monkeypatch):
    for number in ("0", "1"):
        for name, value in {"WORLD_SIZE": "2", "RANK": number, "LOCAL_RANK": number}.items():
            monkeypatch.setenv(name, value)
        assert pick_device("auto") == gpus.current == torch.device("cuda", int(number))


@pytest.mark.parametrize(
    "changes, fits",
    [
        ({}, True),
        (dict(free=4 << 30), False),
        (dict(free=4 << 30, reserved=7 << 30), True),  # what torch keeps of tensors that are gone
        (dict(free=4 << 30, reserved=7 << 30, allocated=7 << 30), False),
        (dict(share=0.1), True),  # four gigabytes of eight
        (dict(share=0.05), False),  # ... of four
    ],
)
def test_crops_are_held_where_the_measured_memory_has_room(changes, fits, gpus):
    vars(gpus).update(changes)
    store, row = PixelStore.__new__(PixelStore), SimpleNamespace(nbytes=1 << 20)
    store.device, store.arrays = torch.device("cuda"), {"image": [row], "depth": [row]}
    assert store._fits(range(2000)) == fits  # 4 GB in all


def test_jobs_on_two_gpus_are_on_different_ones(gpus):
    seen = [place.environments[0]["CUDA_VISIBLE_DEVICES"] for place in gpu_places(machine.gpu_names())]
    assert seen == ["4", "6"]
    both = gpu_places(machine.gpu_names(), per_gpu=3)
    assert [place.environments[0]["CUDA_VISIBLE_DEVICES"] for place in both] == ["4", "6"] * 3
    assert {place.memory for place in both} == {1 / 3} and all(place.on_gpu for place in both)
    assert jobs._names_of(torch.device("cuda", 1)) == ["6"]
    with pytest.raises(HandlabError, match="3 processes need 3 GPUs, and there are 2"):
        gpu_places(machine.gpu_names(), processes=3)


def where_am_i(device, report=None):
    import os

    return device, os.environ["CUDA_VISIBLE_DEVICES"], torch.get_num_threads()


def test_a_jobs_process_sees_its_gpu_and_calls_it_cuda(gpus, monkeypatch):
    "With three threads for each, as the processor has six cores."
    monkeypatch.setattr(jobs, "usable_cores", lambda: 6)
    two = [jobs.Job(name, where_am_i, {"device": "cuda:1"}) for name in "ab"]
    found = jobs.run_jobs(two, device="cuda", show=False, per_gpu=4)  # which two jobs do not need
    assert {seen for _, seen, _ in found.values()} == {"4", "6"}
    assert {(device, threads) for device, _, threads in found.values()} == {("cuda", 3)}


def images(step):
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))


def loss(network, image):
    return {"loss": network(image).square().mean()}


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


SETTINGS = TrainSettings(steps=6, log_every=2, precision="fp32", compile=True)


def refuses(network):
    def forward(image):
        network(image)  # so far it comes, and changes the batch statistics
        raise RuntimeError("no compiler is found\nand more lines")

    return forward


def test_what_cannot_be_compiled_is_trained_as_it_is(capsys):
    network, before = small(), {name: value.clone() for name, value in small().state_dict().items()}
    somewhere, drawn = torch.device("meta"), torch.get_rng_state()
    plain = compiled(network, loss, images(0), replace(SETTINGS, compile=False), somewhere, refuses)
    assert plain is network and compiled(network, loss, images(0), SETTINGS, torch.device("cpu")) is network
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("handlab.train.loop.precision_of", lambda *more: torch.enable_grad())
        assert compiled(network, loss, images(0), SETTINGS, somewhere, refuses) is network
    assert capsys.readouterr().out == "not compiled, and so slower: RuntimeError: no compiler is found\n"
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_full_memory_names_the_setting(tmp_path):
    def full(network, image):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(HandlabError, match="does not hold a step with batch_size 32; lower batch_size"):
        fit(small(), full, images, SETTINGS, tmp_path)

    def other(network, image):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        fit(small(), other, images, SETTINGS, tmp_path)


def test_without_its_package_the_emd_says_where_it_matches(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_linear_assignment._triton", None)
    losses.gpu_matcher.cache_clear()
    assert losses.gpu_matcher() is None and losses.gpu_matcher() is None
    said = capsys.readouterr().out
    assert said.count("the EMD matches on the CPU") == 1 and "torch-linear-assignment==0.1.0" in said
    losses.gpu_matcher.cache_clear()
