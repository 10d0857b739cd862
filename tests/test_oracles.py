"""Products, divergences and whole losses of the second paper against others' code, on shared weights.

The references are written out with torch.distributions, SciPy and plain sums: of handlab only the encoders
and decoders take part in them. Where multivae is installed (CONTRIBUTING.md), its own models are asked, too.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.optimize import linear_sum_assignment
from small_views import SMALL, views_of
from torch.distributions import Independent, Normal, kl_divergence

from handlab.aligned.encoders import Gaussian
from handlab.aligned.losses import LossSettings
from handlab.aligned.posteriors import kl_between, kl_to_prior, product_of_experts
from handlab.aligned.strategies import AlignedNetwork, aligned_loss, make_recipe

quickly = settings(max_examples=25, deadline=None)


def normal(q) -> Independent:
    "The same Gaussian in torch.distributions."
    return Independent(Normal(q.mean, (q.log_variance / 2).exp()), 1)


def prior_of(q) -> Independent:
    return Independent(Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean)), 1)


def some_gaussians(seed, count, spread=2.0):
    source = np.random.default_rng(seed)
    drawn = torch.from_numpy(source.normal(0, spread, (count, 2, 3, 8)))
    return [Gaussian(*pair) for pair in drawn]


def product_by_hand(experts) -> Gaussian:
    "Eq. 5 and 6 by sums of precisions."
    precisions = [1 / normal(q).variance for q in experts]
    weighted = sum(t * q.mean for t, q in zip(precisions, experts))
    return Gaussian(weighted / sum(precisions), -sum(precisions).log())


# Products and divergences ----------------------------------------------------------------------------------


@quickly
@given(some.integers(0, 2**31 - 1), some.integers(1, 4), some.booleans())
def test_the_density_of_the_product_is_the_product_of_the_densities(seed, count, prior):
    "... up to a factor that does not depend on z: the difference of the logarithms is the same at any two z."
    experts = some_gaussians(seed, count)
    product = product_of_experts(experts, prior)
    known = [normal(q) for q in experts] + [prior_of(experts[0])] * prior
    z = torch.stack([product.mean, product.mean + (product.log_variance / 2).exp()])
    apart = sum(each.log_prob(z) for each in known) - normal(product).log_prob(z)
    torch.testing.assert_close(apart[0], apart[1], rtol=1e-9, atol=1e-9)
    by_hand = product_by_hand([*experts, Gaussian(*torch.zeros(2, 3, 8).double())] if prior else experts)
    torch.testing.assert_close(product.mean, by_hand.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(product.log_variance, by_hand.log_variance, rtol=1e-9, atol=1e-9)


@quickly
@given(some.integers(0, 2**31 - 1))
def test_divergences_are_those_of_torch(seed):
    q, p = some_gaussians(seed, 2)
    torch.testing.assert_close(kl_to_prior(q), kl_divergence(normal(q), prior_of(q)), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(kl_between(q, p), kl_divergence(normal(q), normal(p)), rtol=1e-10, atol=1e-10)


# Whole losses ----------------------------------------------------------------------------------------------

WEIGHTS = {"P": 1.0, "H": 0.01, "C": 1.0, "D": 0.05}  # Eq. 11, and the ablation's


def pose_term(made, true):  # Eq. 10
    return (made - true).square().sum((1, 2)).sqrt()


def maps_term(made, true):  # Eq. 7
    return (made - true).square().sum((2, 3)).sqrt().sum(1)


def cloud_term(made, true):  # Eq. 8 and 9
    apart = (made[:, :, None] - true[:, None]).square().sum(3).sqrt()
    near = apart.min(1).values.mean(1) + apart.min(2).values.mean(1)
    pairs = [linear_sum_assignment(each.detach().numpy()) for each in apart]
    return near + torch.stack([each[rows, columns].mean() for each, (rows, columns) in zip(apart, pairs)])


TERMS = {"P": pose_term, "H": maps_term, "C": cloud_term, "D": maps_term}


def reconstruction(q, noise, network, views, letters):
    "Eq. 11, averaged over the batch, of z drawn from q with the given noise."
    z = q.mean + normal(q).stddev * noise
    return sum(
        WEIGHTS[letter] * TERMS[letter](network.decoders[letter](z), views.tensors[letter]).mean()
        for letter in letters
    )


def divergence(q, p=None):
    return kl_divergence(normal(q), prior_of(q) if p is None else normal(p)).mean()


def loss_by_hand(network, views, recipe, beta, align):
    "Eq. 1 (S1, S2), Eq. 3 (S3) or Eq. 4 (S4)."

    def bound(q, number):
        return reconstruction(q, views.noise[number], network, views, recipe.decoders)

    experts = [encoder(views.tensors[letter]) for letter, encoder in network.encoders.items()]
    q_x = experts[0]
    if recipe.alignment == "none":
        return bound(q_x, 0) + beta * divergence(q_x)
    if recipe.alignment == "kl":
        q_xw = network.joint([views.tensors[letter] for letter in recipe.encoders])
        priors = divergence(q_x) + divergence(q_xw)
        return bound(q_x, 0) + bound(q_xw, 1) + beta * priors + align * divergence(q_xw, q_x)
    posteriors = [*experts, product_by_hand(experts)]
    bounds = sum(bound(q, number) for number, q in enumerate(posteriors))
    return bounds + beta * sum(divergence(q) for q in experts)


def slopes(loss, network):
    "The gradient in all weights, one vector."
    return torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, list(network.parameters()))])


@pytest.mark.parametrize("name", ["S1", "R2HP", "R2CP", "R2CHP", "S3", "S4", "RD2DHP", "RCD2CHP"])
def test_loss_and_gradient_are_the_papers_equation(name):
    recipe, beta, align = make_recipe(name), 0.3, 0.7
    torch.manual_seed(0)
    network, views = AlignedNetwork(recipe, SMALL).eval(), views_of(recipe, beta=beta)
    ours = aligned_loss(network, views, recipe, LossSettings(align_weight=align))["loss"]
    by_hand = loss_by_hand(network, views, recipe, beta, align)
    torch.testing.assert_close(ours, by_hand, rtol=1e-5, atol=1e-5)
    one, other = slopes(ours, network), slopes(by_hand, network)
    assert (one - other).norm() < 1e-4 * other.norm()


# multivae --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs():
    "multivae's models, and our encoders and decoders in its classes."
    models = pytest.importorskip("multivae.models", exc_type=ImportError)
    from multivae.data.datasets.base import MultimodalBaseDataset
    from multivae.models.base import base_utils
    from multivae.models.nn.base_architectures import BaseJointEncoder
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn.base_architectures import BaseDecoder, BaseEncoder

    def part(base, work, name):
        "A part of multivae that calls one of ours."
        made = type(name, (base,), {"forward": lambda self, given: ModelOutput(**work(given))})()
        made.latent_dim = SMALL.latent
        return made

    def encoded(q):
        return {"embedding": q.mean, "log_covariance": q.log_variance}

    return SimpleNamespace(
        models=models,
        utils=base_utils,
        data=MultimodalBaseDataset,
        encoder=lambda encode: part(BaseEncoder, lambda given: encoded(encode(given)), "Encoder"),
        joint=lambda encode: part(BaseJointEncoder, lambda given: encoded(encode(given)), "Joint"),
        decoder=lambda decode: part(BaseDecoder, lambda z: {"reconstruction": decode(z)}, "Decoder"),
    )


def test_product_and_divergence_are_multivaes(theirs):
    experts = some_gaussians(0, 3, 1.0)
    product = product_of_experts(experts)
    mean, log_variance = theirs.utils.stable_poe(
        *(torch.stack([getattr(q, name) for q in experts]) for name in Gaussian._fields)
    )
    torch.testing.assert_close(product.mean, mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(product.log_variance, log_variance, rtol=0, atol=1e-12)
    q, p, _ = experts
    torch.testing.assert_close(kl_between(q, p), theirs.utils.kl_divergence(*q, *p), rtol=0, atol=1e-12)


def their_model(theirs, network, views, kind, encoders, joint=(), **options):
    "Their model on our weights; Eq. 11's terms stand for the logarithms of their likelihoods."
    decoders = {name: theirs.decoder(network.decoders[letter]) for name, letter in (("R", "P"), ("C", "C"))}
    config = getattr(theirs.models, f"{kind}Config")
    options = dict(n_modalities=2, latent_dim=SMALL.latent, warmup=0, **options)
    model = getattr(theirs.models, kind)(config(**options), encoders, decoders, *joint)
    model.recon_log_probs = {
        "R": lambda made, _: -pose_term(made, views.tensors["P"]),
        "C": lambda made, true: -cloud_term(made, true),
    }
    return model


def same_noise(views, number):
    "Seed torch, and give a posterior the noise that is drawn next."
    torch.manual_seed(7)
    shape = views.noise[number].shape
    views.noise[number] = Normal(torch.zeros(shape), torch.ones(shape)).rsample()
    torch.manual_seed(7)


def joint_bound(losses):
    return sum(losses[f"{term}_joint"] for term in ("pose", "chamfer", "emd"))


def test_s4_with_the_priors_expert_is_multivaes_mvae(theirs):
    recipe, beta = make_recipe("RC2CP:product"), 0.3
    network = AlignedNetwork(recipe, replace(SMALL, prior_expert=True)).eval()
    views = views_of(recipe, beta=beta)
    encoders = {letter: theirs.encoder(encode) for letter, encode in network.encoders.items()}
    model = their_model(theirs, network, views, "MVAE", encoders, use_subsampling=False, beta=beta)
    same_noise(views, 2)
    with torch.no_grad():
        expected = model(theirs.data({letter: views.tensors[letter] for letter in "RC"})).loss
        losses, plain = (
            aligned_loss(network, views, recipe, LossSettings(kl_on_joint=on)) for on in (True, False)
        )
    ours = joint_bound(losses) + beta * (losses["kl"] - plain["kl"])
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_s3_is_multivaes_jmvae_and_the_bound_of_rgb(theirs):
    recipe, beta, align = make_recipe("RC2CP:kl"), 0.3, 0.7
    network = AlignedNetwork(recipe, SMALL).eval()
    views = views_of(recipe, beta=beta)
    data = {letter: views.tensors[letter] for letter in "RC"}

    def both(_=None):
        return network.joint(list(data.values()))

    # JMVAE draws every encoder to the joint one, S3 that of RGB alone: it stands in for the cloud's
    encoders = {"R": theirs.encoder(network.encoders["R"]), "C": theirs.encoder(both)}
    model = their_model(
        theirs, network, views, "JMVAE", encoders, (theirs.joint(both),), alpha=align, beta=beta
    )
    same_noise(views, 1)
    with torch.no_grad():
        expected = model(theirs.data(data)).loss
        losses = aligned_loss(network, views, recipe, LossSettings(align_weight=align))
        alone = losses["pose"] + losses["chamfer"] + losses["emd"]
        alone = alone + beta * divergence(network.encoders["R"](data["R"]))
    torch.testing.assert_close(losses["loss"] - alone, expected, rtol=1e-5, atol=1e-5)
