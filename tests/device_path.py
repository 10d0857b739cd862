"A GPU's path on a made-up device (see test_device.py): waits are errors, the numbers are the CPU's."

import contextlib

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from handlab.aligned import experiment as aligned
from handlab.aligned import losses
from handlab.data import batches as batches_module
from handlab.data.batches import Augment, Batches
from handlab.hand import skeleton
from handlab.privileged import experiment as privileged
from handlab.privileged import experiment_2d
from handlab.settings import make_settings, torch_generator
from handlab.train import experiment as shared
from handlab.train import loop
from handlab.train.loop import make_optimiser, train_step

backend = pytest.importorskip("torch.utils.backend_registration")
if not hasattr(backend, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this torch has no devices in Python", allow_module_level=True)
backend._setup_privateuseone_for_python_backend("pretended")
DEVICE = torch.device("pretended", 0)
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_linalg_check_errors", "_unique2"}


class Wait(AssertionError):
    "Something for which a program would wait until the device has done all its work."


class Far(torch.Tensor):
    "A tensor on the made-up device, which holds one on the CPU."

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


def is_far(value):
    return isinstance(value, Far) or isinstance(value, torch.device) and value.type == DEVICE.type


def near(value):
    return value.held if isinstance(value, Far) else torch.device("cpu") if is_far(value) else value


def check_wait(name, args, kwargs, to_cpu):
    "A wait is an error; so is what a real device refuses, tensors of two devices."
    values = tree_flatten((args, kwargs))[0]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    if name in READS or to_cpu:
        raise Wait(f"{name} reads from the device")
    if name in ("index", "index_put", "index_put_") and any(
        each is not None and each.dtype == torch.bool for each in args[1]
    ):
        raise Wait(f"{name} with a mask counts on the device")
    strange = [each for each in tensors if not isinstance(each, Far) and each.ndim]
    if name in ("_to_copy", "copy_"):
        pinned = all(getattr(each, "pinned", False) for each in strange)
        if strange and not (pinned and (kwargs.get("non_blocking") or any(each is True for each in args))):
            raise Wait(f"{name} sends numbers from memory that is not pinned, or waits for them")
    elif strange:
        raise Wait(f"{name}: tensors of two devices")


def compute(function, args, kwargs):
    "An operation on the device: on the CPU."
    values, name = tree_flatten((args, kwargs))[0], function._schema.name.split("::")[1]
    if not any(map(is_far, values)):
        return function(*args, **kwargs)
    device = kwargs.get("device")
    to_cpu = device is not None and not is_far(device)
    check_wait(name, args, kwargs, to_cpu)
    result = function(*tree_map(near, args), **tree_map(near, kwargs))
    for value in values:  # in place: the same tensor comes back
        if isinstance(value, Far) and value.held is result:
            return value
    return tree_map(lambda each: Far(each) if isinstance(each, torch.Tensor) else each, result)


class Pretended(TorchDispatchMode):
    "Within it, tensors can be made on the device."

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


def pin(tensor):
    tensor = tensor.clone()
    tensor.pinned = True
    return tensor


def solve(cost):
    "Stands for torch-linear-assignment, which solves on the device."
    return Far(torch.tensor(np.stack([linear_sum_assignment(each)[1] for each in cost.held.numpy()])))


@pytest.fixture
def device(monkeypatch):
    for module in (batches_module, loop, shared, aligned, privileged, experiment_2d):
        if hasattr(module, "pick_device"):
            monkeypatch.setattr(module, "pick_device", lambda name: torch.device(name))
        if hasattr(module, "torch_generator"):  # a generator of the CPU, whose numbers arrive on the device
            monkeypatch.setattr(
                module, "torch_generator", lambda *labels, device="cpu": torch_generator(*labels)
            )
    chosen = losses.subsets
    monkeypatch.setattr(aligned, "subsets", lambda *more: Far(chosen(*more)))
    monkeypatch.setattr(losses, "gpu_matcher", lambda: solve)
    monkeypatch.setattr(loop, "precision_of", lambda *settings: contextlib.nullcontext())
    monkeypatch.setattr(shared, "prefetch_on", lambda device: 0)  # the mode is that of this thread
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    with Pretended():
        yield DEVICE


def far_network(network):
    "The network on the device."
    with torch.no_grad():
        for module in network.modules():
            for name, each in list(module._parameters.items()):
                if each is not None:
                    module._parameters[name] = torch.nn.Parameter(Far(each.detach()), each.requires_grad)
            for name, each in list(module._buffers.items()):
                module._buffers[name] = None if each is None else Far(each)
    return network


def steps(network, loss, batch_at, settings, count=2):
    "A few training steps on the device."
    network = far_network(network).train()
    optimiser = make_optimiser(network, settings, DEVICE)
    for step in range(count):
        found = train_step(network, optimiser, loss, batch_at(step), 1e-3, settings, DEVICE)
    return found


@pytest.fixture(scope="module")
def aligned_frames():
    return aligned.aligned_data(make_settings(aligned.AlignedSettings, "smoke"), False)


ALIGNED = {
    "S1": dict(strategy="S1"),
    "S3": dict(strategy="S3"),
    "S4": dict(),
    "S4 as in the paper": dict(cloud_decoder="folding", matched_points=0, pose_norm="vector"),
    "S4, 50 % labelled": dict(labelled_share=0.5, cloud_posteriors=1),
    "S4, no corresponding data": dict(correspondence=False),
    "depth maps": dict(strategy="RD2DHP"),
    "alternating": dict(strategy="alternating", clip_gradient=1.0),
}


@pytest.mark.parametrize("changes", ALIGNED.values(), ids=ALIGNED)
def test_a_step_of_paper_2_does_not_wait(changes, device, aligned_frames):
    settings = make_settings(aligned.AlignedSettings, "smoke", precision="fp32", **changes)
    views_at = aligned.ViewsAt(settings, aligned_frames.train, device, resident="S4" in str(changes))
    found = steps(
        aligned.make_network(settings),
        aligned.AlignedLoss(settings),
        views_at,
        aligned.train_settings(settings),
    )
    assert found["loss"].device == DEVICE and torch.isfinite(found["loss"].held)


@pytest.fixture(scope="module")
def pi_frames():
    return privileged.pi_data(make_settings(privileged.PiSettings, "smoke"), False)


@pytest.mark.parametrize("stage", ["depth", "rgb", "rgb_pi", "pi_shuffled", "pi_joints", "pi_mask"])
def test_a_step_of_paper_1_does_not_wait(stage, device, pi_frames):
    settings = make_settings(privileged.PiSettings, "smoke", precision="fp32", mask_share=0.5)
    kind, teacher = settings.STAGES[stage], far_network(privileged.make_network(settings, "depth"))
    loss = privileged.PoseLoss(settings, kind.modality)
    if kind.second:
        loss = privileged.PiLoss(settings, teacher if kind.privileged else None, kind)
    batch_at = privileged.training_batches(settings, pi_frames, stage, device)
    network = privileged.make_network(settings, stage)
    found = steps(network, loss, batch_at, privileged.train_settings(settings, stage))
    assert torch.isfinite(found["loss"].held)


@pytest.mark.parametrize("stage", ["depth", "rgb_pi", "mask_0.2"])
@pytest.mark.parametrize("reduction", ["sum", "root"])
def test_a_step_of_the_pose_machine_does_not_wait(stage, reduction, device, pi_frames):
    settings = make_settings(experiment_2d.Pi2dSettings, "smoke", precision="fp32", map_reduction=reduction)
    teacher = far_network(experiment_2d.make_machine(settings, "depth"))
    loss = experiment_2d.MapLoss(settings, stage, teacher if settings.STAGES[stage].privileged else None)
    batch_at = privileged.training_batches(settings, pi_frames, stage, device)
    network = experiment_2d.make_machine(settings, stage)
    assert torch.isfinite(steps(network, loss, batch_at, loop.TrainSettings(precision="fp32"))["loss"].held)


@pytest.mark.parametrize("resident", [True, False])
def test_batches_of_the_device_are_those_of_the_cpu(resident, device, pi_frames):
    "The plain path of the device beside the compiled one."
    options = dict(augment=Augment.paper2(), seed=3, cloud_points=256)
    here, there = (
        Batches(pi_frames.train, 6, device=each, resident=resident, **options) for each in ("cpu", device)
    )
    for step in range(3):
        one, two = here.at(step), there.at(step)
        for name in ("index", "visible", "pose", "root", "uv", "K", "image", "mask"):
            assert getattr(two, name).device == DEVICE
            assert (getattr(one, name).float() - getattr(two, name).held.float()).abs().mean() < 1e-3, name
        assert (one.depth - two.depth.held).abs().mean() < 0.01
        # other random points of the same surface
        assert (one.cloud.mean(1) - two.cloud.held.mean(1)).norm(dim=1).max() < 0.3


def test_the_losses_of_the_device_are_those_of_the_cpu(device, aligned_frames):
    settings = make_settings(aligned.AlignedSettings, "smoke", precision="fp32")
    views = aligned.ViewsAt(settings, aligned_frames.train, device)(0)
    network, loss = aligned.make_network(settings), aligned.AlignedLoss(settings)
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    far = loss(far_network(network), views)
    plain = aligned.make_network(settings)
    plain.load_state_dict(kept)
    for name in ("noise", "chosen"):
        setattr(views, name, getattr(views, name).held)
    views.tensors = {letter: value.held for letter, value in views.tensors.items()}
    near_ = loss(plain, views)
    assert far.keys() == near_.keys()
    for name, value in near_.items():
        assert torch.allclose(far[name].detach().held, value.detach(), rtol=1e-5), name


def waits(device):
    "What the test must find."
    far = torch.ones(3, device=device)
    yield lambda: float(far.sum())
    yield lambda: far[far > 0]
    yield lambda: far.to("cpu")
    yield lambda: torch.ones(3).to(device)
    yield lambda: torch.ones(3).to(device, non_blocking=True)
    yield lambda: torch.ones(3).pin_memory().to(device)
    yield lambda: torch.linalg.inv(torch.eye(3, device=device))
    yield lambda: far + torch.ones(3)
    yield lambda: far.sum() > 0 and 1


def test_the_test_can_fail(device):
    for wait in waits(device):
        with pytest.raises(Wait):
            wait()
    assert skeleton.as_like([1.0, 2.0], torch.ones(2, device=device)).held.tolist() == [1.0, 2.0]
