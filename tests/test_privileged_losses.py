"Networks and losses of paper 1 against hand numbers and torch.nn.functional."

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from handlab.core import HandlabError
from handlab.privileged.losses import (
    REDUCTIONS,
    inter_weight_for,
    loss_c,
    loss_inter,
    loss_joint,
    loss_mask,
    off_hand,
    squared_norm,
    term_sizes,
)
from handlab.privileged.networks import BaseCNN, activation_map, energy_on_hand
from handlab.train.layers import layer_table


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- the network
@pytest.mark.parametrize(
    "crop, width, size", [(256, 1.0, (128, 16, 16)), (64, 0.25, (32, 4, 4)), (32, 0.125, (16, 2, 2))]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_fourteen_convolutions_four_poolings_two_layers(crop, width, size, channels):
    network = BaseCNN(channels, crop, width, fc_width=16)
    kinds = [type(module) for module in network.modules()]
    assert [kinds.count(kind) for kind in (nn.Conv2d, nn.MaxPool2d, nn.Linear)] == [14, 4, 2]
    assert len(network.trunk) == 18  # k = 18 is the last convolution
    assert isinstance(network.trunk[17][-1], nn.ReLU)  # activations, after the nonlinearity
    if crop == 256:
        return
    pose, maps = network(torch.randn(2, channels, crop, crop))
    assert pose.shape == (2, 21, 3) and maps.shape == (2, *size) and maps.min() >= 0


def test_cost_by_hand():
    "Full size at 256 px: 9 c_in c_out S^2 a convolution, summed by hand here."
    channels, side = (
        [3, 64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 128],
        [256] * 2 + [128] * 2 + [64] * 4 + [32] * 4 + [16] * 2,
    )
    by_hand = sum(9 * a * b * s * s for a, b, s in zip(channels, channels[1:], side))
    table = layer_table(BaseCNN(3, 256, batch_norm=False), torch.zeros(1, 3, 256, 256))
    trunk = [row for row in table if row["layer"] == "Conv2d"]
    assert (
        sum(row["gmac"] for row in trunk) * 1e9 == pytest.approx(by_hand) == pytest.approx(23.82e9, rel=1e-3)
    )
    assert sum(row["parameters"] for row in trunk) == sum(
        9 * a * b + b for a, b in zip(channels, channels[1:])
    )
    assert sum(row["parameters"] for row in trunk) / 1e6 == pytest.approx(13.5, abs=0.05)


def test_options():
    assert not any(
        isinstance(module, nn.BatchNorm2d) for module in BaseCNN(3, 32, 0.1, batch_norm=False).modules()
    )
    assert (
        BaseCNN(3, 32, 0.1, batch_norm=False).trunk[0][0].bias is not None
        and BaseCNN(3, 32, 0.1).trunk[0][0].bias is None
    )
    assert BaseCNN(3, 32, 0.1, negative_slope=0.01).trunk[0][-1].negative_slope == 0.01
    with pytest.raises(HandlabError, match="multiple of 16"):
        BaseCNN(3, 72)


def test_starting_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = BaseCNN(3, 32, 0.1, seed=4)
    torch.manual_seed(2)
    second = BaseCNN(3, 32, 0.1, seed=4)
    other = BaseCNN(3, 32, 0.1, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert not torch.equal(first.trunk[0][0].weight, other.trunk[0][0].weight)


def test_activations_keep_their_scale_through_the_trunk():
    "He's initialisation: without batch norm the signal neither dies nor explodes over 14 layers."
    maps = BaseCNN(3, 64, 0.5, batch_norm=False)(features(8, 3, 64, 64))[1]
    assert 0.1 < maps.square().mean().sqrt() < 10


# ---------------------------------------------------------------- the losses
def test_reductions_by_hand():
    x = torch.tensor([1.0, -2.0, 3.0, 0.5, 0.0, 1.0]).view(1, 3, 1, 2)  # squares sum to 15.25
    assert [squared_norm(x, name).item() for name in REDUCTIONS] == pytest.approx(
        [15.25, 15.25 / 6, 15.25 / 2]
    )
    pose = torch.zeros(2, 21, 3)
    pose[1, 4] = torch.tensor([1.0, 2.0, 2.0])
    assert squared_norm(pose, "sum").tolist() == [0, 9] and squared_norm(pose, "positions")[
        1
    ].item() == pytest.approx(9 / 21)
    with pytest.raises(HandlabError, match="reduction"):
        squared_norm(x, "avg")


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6))
def test_agree_with_torch(batch, channels, side, seed):
    a, b = (
        features(batch, channels, side, side, seed=seed),
        features(batch, channels, side, side, seed=seed + 1),
    )
    torch.testing.assert_close(loss_inter(a, b, "sum"), functional.mse_loss(a, b, reduction="sum") / batch)
    torch.testing.assert_close(loss_inter(a, b, "mean"), functional.mse_loss(a, b))
    torch.testing.assert_close(
        loss_inter(a, b, "positions"), functional.mse_loss(a, b, reduction="sum") / (batch * side * side)
    )
    p, q = features(batch, 21, 3, seed=seed), features(batch, 21, 3, seed=seed + 2)
    torch.testing.assert_close(loss_c(p, q), functional.mse_loss(p, q))
    torch.testing.assert_close(loss_c(p, q, "sum"), functional.mse_loss(p, q, reduction="sum") / batch)


def test_joint_loss_and_lambda():
    assert loss_joint(torch.tensor(7.0), torch.tensor(0.25)).item() == 32.0  # lambda = 100 by default
    assert loss_joint(torch.tensor(7.0), torch.tensor(0.25), 4.0).item() == 8.0


def test_the_target_gets_no_gradient():
    depth, rgb = features(2, 3, 2, 2).requires_grad_(), features(2, 3, 2, 2, seed=1).requires_grad_()
    loss_inter(depth, rgb).backward()
    assert depth.grad is None
    torch.testing.assert_close(rgb.grad, (2 * (rgb - depth) / 2).detach())  # the mean over 2 images


def test_low_precision_features_are_summed_in_32_bits():
    a, b = (
        torch.zeros(1, 128, 16, 16, dtype=torch.bfloat16),
        torch.full((1, 128, 16, 16), 0.1, dtype=torch.bfloat16),
    )
    assert loss_inter(a, b).item() == pytest.approx(128 * 256 * float(b[0, 0, 0, 0]) ** 2, rel=1e-5)


def test_mask_is_one_off_the_hand():
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2, :3] = 1  # hand: upper left 2x3
    assert off_hand(mask, (2, 2)).flatten().tolist() == [0, 0.5, 1, 1]
    assert off_hand(mask, (2, 2), "max").flatten().tolist() == [0, 1, 1, 1]
    assert off_hand(mask, (2, 2), "min").flatten().tolist() == [0, 0, 1, 1]
    maps = torch.tensor([[[[7.0, 2.0], [3.0, 1.0]]]])
    assert loss_mask(maps, mask).item() == pytest.approx(1 + 9 + 1)  # 7 lies on the hand, (2/2)^2, 3^2, 1^2
    assert loss_mask(
        torch.cat([maps, maps]), torch.cat([mask, mask]), carries=torch.tensor([True, False])
    ).item() == pytest.approx(5.5)
    with pytest.raises(HandlabError, match="mask_pooling"):
        off_hand(mask, (2, 2), "median")


def test_mask_loss_pushes_only_off_hand_activations():
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    maps = torch.ones(1, 2, 2, 2, requires_grad=True)
    loss_mask(maps, mask).backward()
    assert maps.grad[..., 0].abs().sum() == 0 and (maps.grad[..., 1] == 2).all()


def test_balance_of_sizes():
    assert inter_weight_for(512) == 1 and inter_weight_for(32768) == 1 / 64


def test_term_sizes_by_hand():
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    unused = nn.Parameter(torch.zeros(3))
    sizes = term_sizes({"a": (w * torch.tensor([3.0, 4.0])).sum()}, [w, unused])
    assert sizes["a"]["value"] == 11 and sizes["a"]["gradient"] == pytest.approx(5)


# ---------------------------------------------------------------- activation maps
def test_activation_map_and_energy():
    maps = features(3, 5, 4, 4)
    assert torch.equal(activation_map(maps), maps.max(1).values)
    assert torch.allclose(energy_on_hand(maps, torch.ones(3, 1, 8, 8)), torch.ones(3))
    assert torch.allclose(energy_on_hand(maps, torch.zeros(3, 1, 8, 8)), torch.zeros(3))
    assert energy_on_hand(
        torch.ones(1, 2, 4, 4), (torch.arange(16) < 4).float().view(1, 1, 4, 4)
    ).item() == pytest.approx(0.25)
