"What the tests of the second paper share: small networks and a batch of random numbers in all modalities."

import torch

from handlab.aligned.strategies import NetworkSettings, Views, posterior_names

SMALL = NetworkSettings(width=0.125, cloud_width=0.125, decoder_width=0.125, latent=8, points=16, map_size=16)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def views_of(recipe, batch=4, seed=0, **more):
    source = generator(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=source)

    tensors = {
        "R": normal(batch, 3, 32, 32),
        "C": normal(batch, 16, 3),
        "D": normal(batch, 1, 16, 16),
        "H": normal(batch, 21, 16, 16).sigmoid(),
        "P": normal(batch, 21, 3),
    }
    return Views(tensors, noise=normal(len(posterior_names(recipe)), batch, 8), **more)
