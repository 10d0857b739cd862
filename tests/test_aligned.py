"""Encoders, decoders, losses, posteriors and strategies of the second paper."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from small_views import SMALL, generator, views_of

from handlab.aligned.decoders import (
    CLOUD_GAIN,
    BoneCloudDecoder,
    CloudDecoder,
    DepthDecoder,
    HeatmapDecoder,
    LayeredCloudDecoder,
    PoseDecoder,
    flat_grid,
)
from handlab.aligned.encoders import (
    BasisTrunk,
    DepthTrunk,
    Encoder,
    Gaussian,
    JointTrunk,
    PermutationEquivariant,
    PointVoting,
    ResNet18,
    ResPEL,
    ResPELBlock,
    scaled,
)
from handlab.aligned.experiment import AlignedSettings, check_aligned
from handlab.aligned.losses import (
    LossSettings,
    all_distances,
    ascending,
    chamfer,
    emd,
    map_loss,
    match,
    match_on_cpu,
    nearest_neighbours,
    pose_loss,
    reconstruction_terms,
    subsets,
)
from handlab.aligned.posteriors import beta_at, draw, interpolate, kl_between, kl_to_prior, product_of_experts
from handlab.aligned.strategies import (
    MODALITIES,
    AlignedNetwork,
    NetworkSettings,
    Views,
    aligned_loss,
    alternating_pair,
    carries,
    make_cloud_decoder,
    make_cloud_trunk,
    make_recipe,
    mean_over,
    posterior_names,
)
from handlab.core import HandlabError
from handlab.settings import make_settings
from handlab.train.layers import part_table

quickly = settings(max_examples=25, deadline=None)
seeds = some.integers(0, 2**31 - 1)


def randomised(module, seed=0):
    "The module with the factors of its equivariant layers random, which start at 1 and 0."
    source = generator(seed)
    for layer in module.modules():
        if isinstance(layer, PermutationEquivariant):
            for factor in (layer.own, layer.shared):
                factor.data = torch.rand(factor.shape, generator=source) * 2 - 1
    return module.eval()


# Encoders --------------------------------------------------------------------------------------------------


def test_resnet18_is_as_large_as_the_usual_one():
    assert sum(p.numel() for p in ResNet18().parameters()) == 11_689_512 - 512 * 1000 - 1000
    assert (
        sum(isinstance(m, torch.nn.Conv2d) and m.kernel_size != (1, 1) for m in ResNet18().modules()) == 17
    )  # and one layer more makes 18


def test_resnet18_is_thirty_two_times_coarser():
    shapes = []
    network = ResNet18(0.125)
    network.stages.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    network(torch.zeros(2, 3, 256, 256))
    assert shapes == [(2, 64, 8, 8)]


def test_point_encoder_has_the_supplements_layers():
    layers = [m for m in ResPEL().modules() if isinstance(m, PermutationEquivariant)]
    assert [layer.linear.out_features for layer in layers] == [64] * 7 + [256] * 7 + [512] * 7
    assert ResPEL().voting.estimate.out_features == 128


@quickly
@given(seed=seeds, points=some.integers(1, 40))
def test_layers_on_points_are_equivariant(seed, points):
    source = generator(seed)
    cloud, order = torch.randn(2, points, 3, generator=source), torch.randperm(points, generator=source)
    for layer in (PermutationEquivariant(3, 8), ResPELBlock(3, 8), ResPELBlock(3, 8, norm=True)):
        layer = randomised(layer, seed)
        torch.testing.assert_close(layer(cloud[:, order]), layer(cloud)[:, order], rtol=1e-4, atol=1e-4)


@quickly
@given(seed=seeds, points=some.integers(2, 40))
def test_point_encoder_is_invariant(seed, points):
    source = generator(seed)
    cloud, order = torch.randn(2, points, 3, generator=source), torch.randperm(points, generator=source)
    encoder = randomised(Encoder(ResPEL(0.125), 8, bounded=True), seed)
    for shuffled, straight in zip(encoder(cloud[:, order]), encoder(cloud)):
        torch.testing.assert_close(shuffled, straight, rtol=1e-3, atol=1e-3)


def test_points_know_of_each_other_only_through_the_maximum():
    layer, cloud = randomised(PermutationEquivariant(3, 5)), torch.randn(1, 6, 3)
    lower = cloud.clone()
    lower[0, 0] = cloud.amin(1)[0] - 1
    lower_still = lower.clone()
    lower_still[0, 0] -= 5
    torch.testing.assert_close(layer(lower)[:, 1:], layer(lower_still)[:, 1:])
    higher = cloud.clone()
    higher[0, 0] = cloud.amax(1)[0] + 1
    assert (layer(higher)[:, 1:] - layer(cloud)[:, 1:]).abs().max() > 1e-3


def test_equivariant_layer_by_hand():
    layer = PermutationEquivariant(1, 1)
    layer.own.data[:], layer.shared.data[:], layer.linear.weight.data[:], layer.linear.bias.data[:] = (
        2.0,
        3.0,
        10.0,
        1.0,
    )
    assert layer(torch.tensor([[[1.0], [4.0]]])).flatten().tolist() == [
        10 * (2 * 1 + 3 * 4) + 1,
        10 * (2 * 4 + 3 * 4) + 1,
    ]


def test_voting_is_a_weighted_mean():
    voting = PointVoting(1, 1)
    for layer, weight in ((voting.estimate, 1.0), (voting.sureness, 0.0)):
        layer.weight.data[:], layer.bias.data[:] = weight, 0.0
    assert voting(torch.tensor([[[1.0], [5.0]]])).item() == 3
    voting.sureness.weight.data[:] = 30.0  # the point at 0 is half sure, the one at 5 quite
    assert voting(torch.tensor([[[0.0], [5.0]]])).item() == pytest.approx(5 * 1 / (1 + 0.5))


def test_encoders_outputs():
    assert Encoder(ResPEL(0.125), bounded=True)(100 * torch.randn(4, 16, 3)).mean.abs().max() <= 1
    for trunk, view in (
        (ResNet18(0.125), torch.randn(2, 3, 64, 64)),
        (ResPEL(0.125), torch.randn(2, 16, 3)),
        (DepthTrunk(0.125), torch.randn(2, 1, 64, 64)),
    ):
        assert trunk(view).shape == (2, trunk.features)
        assert [part.shape for part in Encoder(trunk)(view)] == [(2, 64)] * 2
    joint = JointTrunk([ResNet18(0.125), ResPEL(0.125)])
    views = [torch.randn(2, 3, 64, 64), torch.randn(2, 16, 3)]
    torch.testing.assert_close(
        joint.eval()(views), torch.cat([trunk(view) for trunk, view in zip(joint.trunks, views)], 1)
    )


def test_widths():
    assert [scaled(512, width) for width in (1, 0.5, 0.01)] == [512, 256, 8]
    with pytest.raises(HandlabError):
        scaled(64, 0)
    with pytest.raises(HandlabError):
        DepthTrunk(map_size=20)


# Decoders --------------------------------------------------------------------------------------------------


def test_decoders_shapes_and_ranges():
    z = 30 * torch.randn(3, 64)
    pose, maps, cloud, depth = (
        PoseDecoder()(z),
        HeatmapDecoder(width=0.125)(z),
        CloudDecoder(width=0.125)(z),
        DepthDecoder(width=0.125)(z),
    )
    assert [out.shape for out in (pose, maps, cloud, depth)] == [
        (3, 21, 3),
        (3, 21, 64, 64),
        (3, 256, 3),
        (3, 1, 64, 64),
    ]
    assert 0 <= maps.min() and maps.max() <= 1 and cloud.abs().max() <= 3 and depth.abs().max() <= 1
    assert cloud.abs().max() > 1  # 3 tanh, not tanh


def test_decoders_have_the_supplements_layers():
    def widths(module, kind, name):
        return [getattr(m, name) for m in module.modules() if isinstance(m, kind)]

    assert widths(PoseDecoder(), torch.nn.Linear, "out_features") == [128, 128, 128, 63]
    assert widths(HeatmapDecoder(), torch.nn.ConvTranspose2d, "out_channels") == [64, 32, 21]
    assert widths(HeatmapDecoder(), torch.nn.Linear, "out_features") == [8192]
    assert widths(CloudDecoder(), torch.nn.BatchNorm1d, "num_features") == 2 * [256, 512, 1024, 512, 3]
    assert widths(CloudDecoder(norm_output=False), torch.nn.BatchNorm1d, "num_features") == 2 * [
        256,
        512,
        1024,
        512,
    ]
    assert CloudDecoder().second.from_place.in_features == 3


def test_part_table_counts_every_parameter_once():
    for module, view in (
        (Encoder(ResNet18(0.25)), torch.zeros(1, 3, 64, 64)),
        (CloudDecoder(width=0.25), torch.zeros(2, 64)),
    ):
        every = sum(p.numel() for p in module.parameters())
        for depth in (1, 2, 3):
            counts = part_table(module, view, depth).parameters
            assert counts.iloc[:-1].sum() == counts["all"] == every


def test_layered_clouds_give_each_point_weights_of_its_own():
    decoder = LayeredCloudDecoder(8, 0.125, 16).eval()
    z = torch.randn(3, 8)
    before = decoder(z)
    decoder[6].weight.data[:3] += 1  # those of the first point
    assert (decoder(z) - before).abs().amax((0, 2)).nonzero().flatten().tolist() == [0]
    kinds = {"folding": CloudDecoder, "layers": LayeredCloudDecoder, "bones": BoneCloudDecoder}
    for name, kind in kinds.items():
        assert isinstance(make_cloud_decoder(replace(SMALL, cloud_decoder=name)), kind)


def test_points_on_bones_follow_the_pose_of_the_same_code():
    settings = replace(SMALL, cloud_decoder="bones")
    network = AlignedNetwork(make_recipe("S4"), settings).eval()
    copied = copy.deepcopy(network)
    z = torch.randn(2, settings.latent, generator=generator(0))
    before = network.decoders["C"](z)
    network.decoders["P"][-2].bias.data += 1  # the whole pose moves, and the cloud with it
    torch.testing.assert_close(network.decoders["C"](z), before + 1, atol=1e-5, rtol=0)
    torch.testing.assert_close(copied.decoders["C"](z), before)  # a copy follows its own pose decoder
    names = [name for name in network.state_dict() if name.startswith("decoders.C")]
    assert not any("pose" in name for name in names)  # saved once, as the pose decoder's
    network.decoders["C"](z).sum().backward()
    assert network.decoders["P"][0].weight.grad.abs().sum() > 0  # a cloud's loss teaches the pose


def test_points_on_bones_need_a_pose():
    settings = make_settings(AlignedSettings, "smoke", strategy="RC2CH", cloud_decoder="bones")
    with pytest.raises(HandlabError, match="cloud_decoder: RC2CH:product decodes no pose"):
        check_aligned(settings)


def test_basis_points_see_the_nearest_point_of_a_cloud():
    trunk, cloud = BasisTrunk(0.125, 40).eval(), torch.randn(3, 17, 3, generator=generator(0))
    seen = trunk.nearness(cloud)
    for each, points in zip(seen, cloud):
        distance, nearest = cKDTree(points).query(trunk.basis)
        apart = points[nearest] - trunk.basis
        expected = [*(apart / (torch.tensor(distance)[:, None] + 0.05)).T, np.exp(-2 * distance)]
        np.testing.assert_allclose(each, np.stack(expected, 1), atol=1e-5)
    inside = (
        torch.linalg.vector_norm(BasisTrunk(0.125).basis, dim=1) < 1.75
    )  # even: an eighth in half the radius
    assert inside.float().mean() == pytest.approx(1 / 8, abs=0.02)


def test_basis_points_are_an_option_beside_respel():
    for name, kind in (("respel", ResPEL), ("basis", BasisTrunk)):
        assert type(make_cloud_trunk(replace(SMALL, cloud_encoder=name))) is kind
    assert isinstance(MODALITIES["C"].trunk(NetworkSettings()), ResPEL)  # the paper's
    encoder = Encoder(BasisTrunk(0.125, 64), 8, bounded=True)
    cloud = torch.randn(4, 16, 3, generator=generator(0))
    encoder(cloud).mean.sum().backward()
    assert all(each.grad is not None for each in encoder.trunk.parameters())
    encoder.eval()
    np.testing.assert_allclose(encoder(cloud.flip(1)).mean.detach(), encoder(cloud).mean.detach(), atol=1e-6)


def test_grid():
    grid = flat_grid(256)
    assert len({tuple(place) for place in grid.tolist()}) == 256
    torch.testing.assert_close(grid.amax(0), torch.ones(2))
    torch.testing.assert_close(grid.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    with pytest.raises(HandlabError):
        flat_grid(255)


# Losses ----------------------------------------------------------------------------------------------------


@quickly
@given(seed=seeds, points=some.integers(1, 6))
def test_emd_is_the_least_over_all_permutations(seed, points):
    first, second = torch.randn(2, 2, points, 3, generator=generator(seed))
    apart = (first[:, :, None] - second[:, None]).norm(dim=3).numpy()
    least = [
        min(
            np.mean([matrix[row, column] for row, column in enumerate(order)])
            for order in itertools.permutations(range(points))
        )
        for matrix in apart
    ]
    np.testing.assert_allclose(emd(first, second).numpy(), least, rtol=1e-5)


@quickly
@given(seed=seeds, points=some.integers(1, 60), others=some.integers(1, 60))
def test_chamfer_agrees_with_a_search_tree(seed, points, others):
    source = generator(seed)
    first, second = torch.randn(2, points, 3, generator=source), torch.randn(2, others, 3, generator=source)
    expected = [
        cKDTree(a).query(b)[0].mean() + cKDTree(b).query(a)[0].mean()
        for a, b in zip(first.numpy(), second.numpy())
    ]
    np.testing.assert_allclose(chamfer(first, second).numpy(), expected, rtol=1e-5)


@quickly
@given(seed=seeds)
def test_set_losses_do_not_mind_the_order(seed):
    source = generator(seed)
    first, second, third = torch.randn(3, 1, 20, 3, generator=source)
    orders = [torch.randperm(20, generator=source) for _ in range(2)]
    for loss in (chamfer, emd):
        torch.testing.assert_close(loss(first[:, orders[0]], second[:, orders[1]]), loss(first, second))
    torch.testing.assert_close(emd(first, second), emd(second, first))
    assert emd(first, third) <= emd(first, second) + emd(second, third) + 1e-5  # it is a metric
    assert (
        2 * emd(first, second) >= chamfer(first, second) - 1e-5
    )  # a nearest point is at most as far as the partner


def test_map_and_pose_losses_by_hand():
    maps = torch.zeros(2, 3, 4, 4)
    wrong = maps.clone()
    wrong[0, 0, 0, 0], wrong[0, 0, 1, 2], wrong[0, 2, 3, 3], wrong[1, 1, 0, 0] = 3, 4, 2, 7
    assert map_loss(wrong, maps).tolist() == [5 + 2, 7]
    assert map_loss(wrong, maps, "squared").tolist() == [9 + 16 + 4, 49]
    poses = torch.zeros(1, 21, 3)
    moved = poses.clone()
    moved[0, 4], moved[0, 8] = torch.tensor([2.0, 3, 6]), torch.tensor([24.0, 0, 0])
    assert pose_loss(moved, poses).item() == 25 and pose_loss(moved, poses, "joints").item() == 7 + 24


def test_voting_where_no_point_is_sure():
    voting = PointVoting(2, 3)
    voting.sureness.bias.data[:] = -300.0
    assert voting(torch.randn(1, 5, 2)).isfinite().all()


def test_gradients_against_differences():
    source = generator(1)
    first, second = torch.randn(2, 2, 7, 3, generator=source)
    maps, poses = torch.rand(2, 2, 3, 4, 4, generator=source), torch.randn(2, 2, 21, 3, generator=source)
    cases = [
        (chamfer, first, second),
        (emd, first, second),
        (map_loss, *maps),
        (pose_loss, *poses),
        (lambda a, b: pose_loss(a, b, "joints"), *poses),
    ]
    for loss, prediction, truth in cases:
        prediction = prediction.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(prediction, truth).sum(), prediction)
        direction = torch.randn(prediction.shape, generator=source)
        with torch.no_grad():
            difference = (
                loss(prediction + 1e-3 * direction, truth) - loss(prediction - 1e-3 * direction, truth)
            ).sum().item() / 2e-3
        assert difference == pytest.approx((slope * direction).sum().item(), rel=2e-2, abs=2e-2)


def test_emd_gradient_pulls_every_point_to_its_own_partner():
    clump, spread = (
        torch.zeros(1, 3, 3, requires_grad=True),
        torch.tensor([[[1.0, 0, 0], [0, 2, 0], [0, 0, -5]]]),
    )
    (slope,) = torch.autograd.grad(emd(clump, spread).sum(), clump)
    pulls = {tuple(int(v) for v in torch.round(-3 * row).tolist()) for row in slope[0]}
    assert pulls == {(1, 0, 0), (0, 1, 0), (0, 0, -1)}


def test_losses_are_finite_where_points_coincide():
    cloud = torch.randn(2, 9, 3).requires_grad_()
    pose = torch.randn(2, 21, 3).requires_grad_()
    (
        chamfer(cloud, cloud.detach())
        + emd(cloud, cloud.detach())
        + pose_loss(pose, pose.detach())
        + pose_loss(pose, pose.detach(), "joints")
    ).sum().backward()
    assert cloud.grad.isfinite().all() and pose.grad.isfinite().all()


def test_matching_is_one_to_one_on_any_number_of_threads():
    cost = torch.rand(5, 30, 30, generator=generator())
    partners = match(cost)
    assert (partners.sort(1).values == torch.arange(30)).all()
    for threads in (1, 2, 8):
        assert torch.equal(match_on_cpu(cost, threads), partners)


@quickly
@given(seed=seeds, count=some.integers(1, 70), shift=some.sampled_from([0.0, 0.02, 3.0]))
def test_matching_costs_as_little_as_scipys(seed, count, shift):
    first, other = torch.randn(2, 3, count, 3, generator=generator(seed))
    second = first + shift if shift else other
    cost = torch.cdist(first, second)
    ours = cost.gather(2, match(cost)[..., None]).sum((1, 2))
    scipys = [matrix[linear_sum_assignment(matrix)].sum() for matrix in cost.double().numpy()]
    np.testing.assert_allclose(ours.numpy(), scipys, rtol=1e-5)


def test_the_fast_order_is_pytorchs_also_where_keys_are_equal():
    keys = torch.rand(2, 50, 256, generator=generator(0))
    keys[0] = (keys[0] * 40).floor()  # many equal keys in every row
    keys[1, 3, 200] = keys[1, 3, 7]  # a single pair
    assert torch.equal(ascending(keys), keys.argsort(-1))


def test_emd_of_a_subset():
    first, second = torch.randn(2, 3, 20, 3, generator=generator())
    chosen = subsets(3, 20, 6, generator(1))
    assert chosen.shape == (2, 3, 6) and all(len(set(row)) == 6 for row in chosen.flatten(0, 1).tolist())
    expected = torch.stack(
        [emd(first[i, chosen[0, i]][None], second[i, chosen[1, i]][None])[0] for i in range(3)]
    )
    torch.testing.assert_close(emd(first, second, chosen), expected)
    torch.testing.assert_close(emd(first, second, subsets(3, 20, 20, generator(2))), emd(first, second))
    used = first.clone().requires_grad_()
    emd(used, second, chosen).sum().backward()
    assert (used.grad.abs().sum(2) > 0).sum(1).tolist() == [6, 6, 6]


def test_losses_in_half_precision_are_measured_in_single():
    first, second = torch.randn(2, 2, 9, 3)
    for loss in (chamfer, emd):
        assert loss(first.bfloat16(), second).dtype == torch.float32
        torch.testing.assert_close(loss(first.bfloat16(), second), loss(first.bfloat16().float(), second))


def test_weights_of_section_five():
    settings, maps, cloud = LossSettings(), torch.rand(2, 21, 4, 4), torch.rand(2, 5, 3)
    weights = {
        name: weight
        for letter, truth in (("P", torch.rand(2, 21, 3)), ("H", maps), ("C", cloud))
        for name, (_, weight) in reconstruction_terms(letter, truth, truth, settings).items()
    }
    assert weights == {"pose": 1, "heat": 0.01, "chamfer": 1, "emd": 1} and settings.align_weight == 1


def test_bad_input_to_losses():
    with pytest.raises(HandlabError, match="one to one"):
        emd(torch.zeros(1, 3, 3), torch.zeros(1, 4, 3))
    with pytest.raises(HandlabError, match="not finite"):
        emd(torch.full((1, 3, 3), float("nan")), torch.zeros(1, 3, 3))
    with pytest.raises(HandlabError, match="norm"):
        pose_loss(torch.zeros(1, 21, 3), torch.zeros(1, 21, 3), "median")
    with pytest.raises(HandlabError, match="map_norm"):
        map_loss(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), "vector")


# Posteriors ------------------------------------------------------------------------------------------------


def gaussians(seed, count, shape=(3, 4)):
    source = generator(seed)
    return [
        Gaussian(torch.randn(shape, generator=source), torch.randn(shape, generator=source))
        for _ in range(count)
    ]


def as_torch(q):
    return torch.distributions.Normal(q.mean.double(), (q.log_variance.double() / 2).exp())


@quickly
@given(seed=seeds)
def test_divergences_agree_with_torch(seed):
    q, p = gaussians(seed, 2)
    prior = Gaussian(torch.zeros(3, 4), torch.zeros(3, 4))
    torch.testing.assert_close(
        kl_between(q, p).double(),
        torch.distributions.kl_divergence(as_torch(q), as_torch(p)).sum(1),
        rtol=1e-4,
        atol=1e-4,
    )
    torch.testing.assert_close(
        kl_to_prior(q).double(),
        torch.distributions.kl_divergence(as_torch(q), as_torch(prior)).sum(1),
        rtol=1e-4,
        atol=1e-4,
    )
    assert kl_between(q, q).abs().max() < 1e-5


@quickly
@given(seed=seeds, count=some.integers(1, 4), prior=some.booleans())
def test_product_of_experts_is_the_product_of_densities(seed, count, prior):
    experts = gaussians(seed, count, (1, 1))
    grid = torch.linspace(-30, 30, 60001, dtype=torch.float64)
    factors = experts + ([Gaussian(torch.zeros(1, 1), torch.zeros(1, 1))] if prior else [])
    log_density = sum(as_torch(q).log_prob(grid).flatten() for q in factors)
    density = (log_density - log_density.max()).exp()
    density /= density.sum()
    mean = (density * grid).sum()
    variance = (density * (grid - mean) ** 2).sum()
    product = product_of_experts(experts, prior)
    assert product.mean.item() == pytest.approx(mean.item(), abs=1e-4)
    assert product.log_variance.exp().item() == pytest.approx(variance.item(), rel=1e-3)


def test_product_of_experts_with_extreme_variances():
    sure, unsure = (
        Gaussian(torch.ones(1, 1), torch.full((1, 1), -300.0)),
        Gaussian(-torch.ones(1, 1), torch.full((1, 1), 300.0)),
    )
    product = product_of_experts([sure, unsure])
    assert product.mean.item() == 1 and product.log_variance.item() == -300


def test_beta_and_walk():
    betas = [beta_at(step, 1000) for step in range(1000)]
    assert betas[0] == pytest.approx(1e-5) and betas[-1] == pytest.approx(1e-3)
    np.testing.assert_allclose(np.diff(np.log(betas)), np.log(100) / 999, rtol=1e-6)
    walk = interpolate(torch.zeros(4), torch.ones(4), 5)
    torch.testing.assert_close(walk[1:] - walk[:-1], torch.full((4, 4), 0.25))


def test_draw():
    (q,) = gaussians(0, 1)
    torch.testing.assert_close(draw(q, torch.full((3, 4), 2.0)), q.mean + 2 * (q.log_variance / 2).exp())
    assert torch.equal(draw(q), q.mean)


# Strategies ------------------------------------------------------------------------------------------------


def test_recipes():
    assert [str(make_recipe(name)) for name in ("S1", "S2", "S3", "S4")] == [
        "R2P",
        "R2CHP",
        "RC2CHP:kl",
        "RC2CHP:product",
    ]
    for wrong in ("", "S0", "R2", "2P", "RC2CHP:mean", "H2P", "R2R", "R2PP", "R2P:product", "X2P"):
        with pytest.raises(HandlabError, match="strategy"):
            make_recipe(wrong)


def test_the_same_rgb_network_at_test_time():
    "Section 6: the networks of all strategies are as large then, layer by layer; so they are as fast."
    sizes = []
    for name in ("S1", "S2", "S3", "S4", "alternating", "RD2DHP"):
        network = AlignedNetwork(make_recipe(name), SMALL).eval()
        assert network.decoders["P"](network.encode(torch.zeros(2, 3, 32, 32))).shape == (2, 21, 3)
        parts = {
            **network.encoders["R"].state_dict(prefix="R."),
            **network.decoders["P"].state_dict(prefix="P."),
        }
        sizes.append({key: each.shape for key, each in parts.items()})
    assert all(each == sizes[0] for each in sizes)


@pytest.mark.parametrize("name, count", [("S4", 1), ("S4", 2), ("S3", 1), ("RCD2CHP", 2)])
def test_fewer_clouds_leave_the_gradient_as_it_is_on_average(name, count):
    recipe = make_recipe(name)
    torch.manual_seed(0)
    network, views = AlignedNetwork(recipe, SMALL).eval(), views_of(recipe, batch=2)
    posteriors = len(posterior_names(recipe))

    def slope(drawn):
        views.drawn = drawn
        network.zero_grad()
        loss = aligned_loss(network, views, recipe)["loss"]
        loss.backward()
        parts = (network.encoders["R"].mean.weight, network.decoders["C"].second.from_z.weight)
        return torch.cat([loss.detach()[None], *(part.grad.flatten() for part in parts)])

    whole = slope(None)
    choices = list(itertools.combinations(range(posteriors), count))
    every = [
        torch.tensor(pair).T for pair in itertools.product(choices, repeat=2)
    ]  # both frames, each choice
    mean = torch.stack([slope(drawn.contiguous()) for drawn in every]).mean(0)
    torch.testing.assert_close(mean, whole, rtol=1e-3, atol=1e-4)
    assert (slope(every[0]) - whole).abs().max() > 1e-2  # a single draw is another one


def test_the_cloud_decoder_starts_at_the_spread_of_hands():
    torch.manual_seed(0)
    z = torch.randn(64, 64)
    spreads = {gain: CloudDecoder(width=0.125, gain=gain)(z).std().item() for gain in (CLOUD_GAIN, 1.0)}
    assert 0.66 < spreads[CLOUD_GAIN] < 0.79 < 1.5 < spreads[1.0]  # hand scales


def test_every_part_learns():
    for name in ("R2CHP", "S3", "S4", "RD2DHP", "RCD2CHP"):
        recipe = make_recipe(name)
        network = AlignedNetwork(recipe, SMALL)
        aligned_loss(network, views_of(recipe), recipe)["loss"].backward()
        without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
        assert not without


def test_options_of_the_product():
    recipe, views = make_recipe("S4"), views_of(make_recipe("S4"), beta=1.0)
    network = AlignedNetwork(recipe, SMALL).eval()
    with torch.no_grad():
        plain, penalised = (
            aligned_loss(network, views, recipe, LossSettings(kl_on_joint=on)) for on in (False, True)
        )
        found = network.posteriors(views)
    assert (penalised["kl"] - plain["kl"]).item() == pytest.approx(
        kl_to_prior(found["joint"]).mean().item(), rel=1e-4
    )
    with_prior = AlignedNetwork(recipe, NetworkSettings(**{**SMALL.__dict__, "prior_expert": True})).eval()
    with_prior.load_state_dict(network.state_dict())
    assert (with_prior.posteriors(views)["joint"].log_variance < found["joint"].log_variance).all()


def test_shared_trunk_of_s3():
    recipe = make_recipe("S3")
    shared = AlignedNetwork(recipe, NetworkSettings(**{**SMALL.__dict__, "share_trunk": True}))
    assert shared.joint.trunk.trunks[0] is shared.encoders["R"].trunk
    own = AlignedNetwork(recipe, SMALL)
    assert own.joint.trunk.trunks[0] is not own.encoders["R"].trunk


def test_alternating_trains_one_pair_a_step():
    recipe = make_recipe("alternating")
    network, seen = AlignedNetwork(recipe, SMALL), []
    for step in range(6):
        network.zero_grad(set_to_none=True)
        losses = aligned_loss(network, views_of(recipe, step=step), recipe)
        losses["loss"].backward()

        def moved(parts):
            return "".join(
                letter for letter, part in parts.items() if any(p.grad is not None for p in part.parameters())
            )

        assert (moved(network.encoders), moved(network.decoders)) == alternating_pair(recipe, step)
        seen.append(alternating_pair(recipe, step))
    assert len(set(seen)) == 6


def test_unlabelled_frames_teach_no_pose():
    recipe = make_recipe("S4")
    network = AlignedNetwork(recipe, SMALL).eval()
    labelled = torch.tensor([True, False, True, False])
    views = views_of(recipe, labelled=labelled)
    before = aligned_loss(network, views, recipe)
    for letter in "HP":
        views.tensors[letter][~labelled] += 100
    after = aligned_loss(network, views, recipe)
    assert all(torch.equal(before[name], after[name]) for name in before)
    views.tensors["C"][~labelled] += 1
    assert aligned_loss(network, views, recipe)["chamfer"] != before["chamfer"]


def test_non_corresponding_frames_have_no_joint_posterior():
    recipe = make_recipe("S4")
    apart = torch.tensor([0, 1, 0, 1])
    views = views_of(recipe, sensor=apart)
    network = AlignedNetwork(recipe, SMALL).eval()
    losses = aligned_loss(network, views, recipe)
    assert all(losses[name].item() == 0 for name in losses if name.endswith("_joint"))
    assert (
        losses["chamfer"].item() == 0
        and losses["heat_C"].item() == 0
        and losses["pose"].item() > 0
        and losses["pose_C"].item() > 0
    )
    before = {name: value.item() for name, value in losses.items()}
    views.tensors["R"][apart == 1] += 1
    views.tensors["C"][apart == 0] += 1  # what a sensor does not see does not matter
    after = {name: value.item() for name, value in aligned_loss(network, views, recipe).items()}
    assert after == pytest.approx(before, rel=1e-5)


def test_carries():
    recipe = make_recipe("S4")
    assert carries(Views({}), recipe, "R", "P") is None
    assert mean_over(torch.tensor([2.0, 4.0]), torch.tensor([True, False])).item() == 2


def test_modalities_are_a_table():
    assert set(MODALITIES) == set("RCDHP") and [
        letter for letter in "RCDHP" if MODALITIES[letter].needs_label
    ] == ["H", "P"]


@pytest.mark.parametrize("counts", [(7, 40), (40, 7), (64, 64), (1, 1)])
def test_distances_and_neighbours_are_pytorchs(counts):
    generator = torch.Generator().manual_seed(sum(counts))
    first, second = (torch.randn(3, count, 3, generator=generator, dtype=torch.float16) for count in counts)
    second[:, : counts[1] // 2] = second[:, counts[1] // 2 : counts[1] // 2 * 2]  # equally near ones
    expected = torch.cdist(first.float(), second.float(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(all_distances(first, second), expected, rtol=2e-7, atol=0)
    squares = (first.double()[:, :, None] - second.double()[:, None]).square().sum(-1)
    forward, backward = nearest_neighbours(first, second)
    for found, axis in ((forward, 2), (backward, 1)):
        assert found.dtype == torch.long
        least = squares.gather(axis, found.unsqueeze(axis)).squeeze(axis)
        torch.testing.assert_close(least, squares.min(axis).values, rtol=1e-6, atol=0)
    assert counts[1] % 2 or (forward < counts[1] // 2).all()  # the first of equally near ones
