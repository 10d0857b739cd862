"""Decoded clouds in mm, diagnostics of the latent space, and the search of the second paper."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from handlab.aligned.clouds import (
    cloud_distances,
    cloud_scores,
    mean_cloud,
    score_alone,
    table_clouds,
    train_alone,
)
from handlab.aligned.diagnostics import (
    Balance,
    active_units,
    code_distance,
    diagnose,
    drawn_errors,
    expert_shares,
    fig_balance,
    kl_per_dimension,
    posteriors_of,
    retrieval,
    table_diagnostics,
    term_gradients,
)
from handlab.aligned.encoders import Gaussian
from handlab.aligned.experiment import (
    AlignedLoss,
    AlignedSettings,
    ViewsAt,
    check_aligned,
    make_network,
    predict,
    train_strategy,
)
from handlab.aligned.posteriors import kl_to_prior, product_of_experts
from handlab.aligned.search import SPACE, search_strategies, unused_settings
from handlab.core import HandlabError, read_json
from handlab.hand.metrics import epe
from handlab.settings import make_settings
from handlab.train.experiment import experiment_data
from handlab.train.files import read_losses
from handlab.train.search import draw_candidate, draw_candidates, search, trials_of

SMOKE = make_settings(AlignedSettings, "smoke")


@pytest.fixture(scope="module")
def data():
    return experiment_data(SMOKE, show_progress=False)


def gaussian(seed, frames=6, latent=5):
    source = torch.Generator().manual_seed(seed)
    return Gaussian(*torch.randn(2, frames, latent, generator=source))


# Clouds ----------------------------------------------------------------------------------------------------


def test_distances_in_mm_agree_with_scipy():
    source = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 4, 30, 3, generator=source)
    scale = torch.tensor([30.0, 40, 50, 60])
    found = cloud_distances(first, second, scale)
    for number, apart in enumerate(cdist(a, b) for a, b in zip(first.numpy(), second.numpy())):
        emd = apart[linear_sum_assignment(apart)].mean() * scale[number].item()
        chamfer = (apart.min(0).mean() + apart.min(1).mean()) * scale[number].item()
        assert found["emd"][number].item() == pytest.approx(emd, rel=1e-5)
        assert found["chamfer"][number].item() == pytest.approx(chamfer, rel=1e-5)


def test_a_decoder_that_knows_the_points_has_no_error_and_both_floors_do(data):
    class Oracle(torch.nn.Module):
        "Encodes a cloud as itself."

        def __init__(self):
            super().__init__()
            self.encoders = torch.nn.ModuleDict({"C": torch.nn.Identity()})
            self.decoders = torch.nn.ModuleDict({"C": torch.nn.Identity()})

        def encode(self, view, letter):
            return view

    scores = cloud_scores(Oracle(), data.test, replace(SMOKE, strategy="C2C"), data)
    assert set(scores) == {"cloud", "resampled", "mean_cloud"}
    assert scores["cloud"]["emd"] == 0 and scores["cloud"]["chamfer"] == 0
    assert 0 < scores["resampled"]["emd"] < scores["mean_cloud"]["emd"]
    assert all(row["frames"] == len(data.test) for row in scores.values())
    assert "floor" in table_clouds(scores, "an oracle").splitlines()[5]  # the second best row


def test_the_mean_cloud_is_nearer_to_all_than_a_hands_own(data):
    mean, batch = mean_cloud(SMOKE, data), ViewsAt(replace(SMOKE, batch_size=32), data.train)(3).tensors["C"]

    def far(cloud):
        return cloud_distances(cloud.expand_as(batch), batch, torch.ones(len(batch)))["emd"].mean().item()

    assert far(mean) < 0.95 * np.mean([far(cloud) for cloud in batch])
    assert torch.equal(mean, mean_cloud(SMOKE, data))


def test_the_decoder_alone_learns(data, tmp_path):
    few = replace(SMOKE, learning_rate=5e-3)
    errors = []
    for steps in (2, 60):
        short = replace(few, steps=steps)
        network = train_alone(short, data, tmp_path / str(steps), report=lambda *_: None)
        errors.append(score_alone(network, data.test, few)["emd"])
    assert errors[1] < 0.8 * errors[0]


# Diagnostics -----------------------------------------------------------------------------------------------


def test_kl_per_dimension_adds_up_to_the_divergence():
    q = gaussian(0)
    assert kl_per_dimension(q).sum().item() == pytest.approx(kl_to_prior(q).mean().item(), rel=1e-5)


def test_active_units_are_those_whose_means_vary():
    q = Gaussian(torch.tensor([[0.0, 5, 1], [0.1, 5, -1], [0.05, 5, 0]]), torch.zeros(3, 3))
    assert active_units(q) == 1 and active_units(q, threshold=0.001) == 2


def test_expert_shares_are_the_weights_of_the_product():
    experts = {"R": gaussian(0), "C": gaussian(1)}
    shares = expert_shares(experts)
    ones = {
        letter: Gaussian(torch.full_like(q.mean, letter == "R"), q.log_variance)
        for letter, q in experts.items()
    }
    product = product_of_experts(list(ones.values()))  # means 1 and 0: the product's mean is RGB's weight
    assert shares["R"] == pytest.approx(product.mean.mean().item(), rel=1e-5)
    assert sum(shares.values()) == pytest.approx(1)


def test_distance_is_about_one_for_two_draws_of_one_truth():
    source = torch.Generator().manual_seed(0)
    truth, log_variance = torch.randn(200, 64, generator=source), torch.randn(200, 64, generator=source)
    first, second = (
        truth + (log_variance / 2).exp() * torch.randn(200, 64, generator=source) for _ in range(2)
    )
    found = code_distance(Gaussian(first, log_variance), Gaussian(second, log_variance))
    assert found.mean().item() == pytest.approx(1, abs=0.05)
    shifted = Gaussian(first + 10 * (log_variance / 2).exp() * 2**0.5, log_variance)
    assert code_distance(shifted, Gaussian(first, log_variance)).mean().item() == pytest.approx(10, rel=1e-4)


def test_retrieval_of_the_right_of_strangers_and_of_guesses():
    codes = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert retrieval(codes + 1e-3, codes)["top1"] == 1 and retrieval(codes, codes)["rank"] == 0
    assert retrieval(codes.roll(1, 0), codes)["top1"] == 0
    guess = retrieval(torch.randn(50, 8, generator=torch.Generator().manual_seed(1)), codes)
    assert 0.3 < guess["rank"] < 0.7


def test_drawn_errors(data):
    network = make_network(SMOKE).eval()
    q = posteriors_of(network, data.test, SMOKE)["R"]
    found = drawn_errors(network, q, data.test, SMOKE)
    expected = epe(predict(network, data.test, SMOKE), np.asarray(data.test.joints)).mean
    assert found["mean"] == pytest.approx(float(expected), rel=1e-5) and found["drawn"] != found["mean"]
    narrow = Gaussian(q.mean, torch.full_like(q.mean, -60.0))
    assert drawn_errors(network, narrow, data.test, SMOKE)["drawn"] == pytest.approx(found["mean"], rel=1e-5)


@pytest.mark.parametrize("strategy", ["S1", "S3", "S4", "RD2DHP", "alternating", "R2C"])
def test_every_strategy_can_be_diagnosed(data, strategy):
    settings = replace(SMOKE, strategy=strategy)
    result = diagnose(make_network(settings), data.test, settings)
    assert bool(result.get("shares")) == (strategy in ("S4", "RD2DHP"))
    assert ("retrieval" in result) == (strategy in ("S4", "RD2DHP", "alternating"))
    assert ("drawn" in result) == (strategy != "R2C")
    assert table_diagnostics({strategy: result}).notna().all(axis=None)


def test_gradients_against_differences(data):
    settings = check_aligned(replace(SMOKE, strategy="R2P", pose_norm="squared"))
    network, views = make_network(settings), ViewsAt(settings, data.train)(0)
    decoder = network.decoders["P"]
    found = term_gradients(network, views, AlignedLoss(settings).settings)["pose"]
    with torch.no_grad():
        q = copy_in_training(network).posteriors(views)["R"]
        z = (q.mean + (q.log_variance / 2).exp() * views.noise[0]).double()
        decoder, true = decoder.double(), views.tensors["P"].double()
        slopes = torch.stack(
            [
                (
                    (decoder(z + step) - true).square().sum((1, 2))
                    - (decoder(z - step) - true).square().sum((1, 2))
                )
                for step in 1e-4 * torch.eye(z.shape[1], dtype=torch.float64)
            ],
            1,
        )
    assert found == pytest.approx((slopes / 2e-4).norm(dim=1).mean().item(), rel=1e-3)


def copy_in_training(network):
    return network.train()


def test_measuring_leaves_the_training_as_it_is(data, tmp_path):
    settings = replace(SMOKE, steps=4)
    for name, measure in (("without", None), ("with", Balance(settings, data.train))):
        train_strategy(settings, data, tmp_path / name, measure=measure, report=lambda *_: None)
    rows = [read_losses(tmp_path / name / "losses.csv", "validation") for name in ("without", "with")]
    assert rows[0]["epe"].tolist() == rows[1]["epe"].tolist()
    added = set(rows[1]) - set(rows[0])
    assert added == {f"gradient_{term}" for term in ("pose", "heat", "chamfer", "emd")}
    assert all((rows[1][name] > 0).all() for name in added)
    assert len(fig_balance({"S4": tmp_path / "with"}).axes[0].lines) == 4


# The search ------------------------------------------------------------------------------------------------


STRATEGIES = ("S1", "R2HP", "S3", "S4")


@pytest.fixture(scope="module")
def trials():
    candidates = draw_candidates(SMOKE, SPACE, 9)
    return trials_of(candidates, {strategy: unused_settings(strategy) for strategy in STRATEGIES})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_trials_differ_and_only_in_what_matters(strategy, trials):
    assert len({tuple(sorted(trial.items())) for trial in trials[strategy]}) == 9
    for trial in trials[strategy]:
        assert set(trial) == set(SPACE) - unused_settings(strategy)
        check_aligned(replace(SMOKE, strategy=strategy, **trial))
    assert ("heat_weight" in trials[strategy][0]) == (strategy != "S1")


def test_every_strategy_has_the_same_number_of_trials_and_the_first_is_the_profile(trials):
    assert [len(trials[strategy]) for strategy in STRATEGIES] == [9] * 4
    assert all(value == getattr(SMOKE, name) for name, value in trials["S3"][0].items())


def test_a_list_of_candidates_can_be_given(data, tmp_path):
    "A setting that S1 does not have is left out of its trial; the lowest validation error is chosen."
    given = [{"learning_rate": 1e-3}, {"learning_rate": 2e-3, "heat_weight": 0.1}]
    found = search_strategies(SMOKE, data, tmp_path, ("S1", "R2HP"), given, show=False)
    assert found == read_json(tmp_path / "search.json")
    assert found["candidates"] == {"S1": [given[0], {"learning_rate": 2e-3}], "R2HP": given}
    for strategy, errors in found["epe"].items():
        ends = [
            read_losses(tmp_path / f"{strategy}-trial_{number}" / "losses.csv", "validation")["epe"][-1]
            for number in (0, 1)
        ]
        assert errors == pytest.approx(ends) and found["chosen"][strategy] == int(np.argmin(ends))


@dataclass(frozen=True)
class Tried:
    rate: float = 1.0
    own: float = 1.0  # of one arm alone


def test_a_trial_that_an_arm_already_has_is_drawn_anew():
    "The space has 8 rates: without the other setting most of 6 candidates are the same."
    space = {"rate": tuple(range(8)), "own": tuple(range(100))}

    def draw(number):
        return draw_candidate(Tried(), space, number)

    candidates = [draw(number) for number in range(6)]
    unused = {"whole": set(), "part": {"own"}}
    rates = [each["rate"] for each in candidates]
    assert len(set(rates)) < 6 == len({*map(str, candidates)})
    trials = trials_of(candidates, unused, draw)
    assert trials["whole"] == candidates  # nothing was the same: nothing is drawn anew
    part = [each["rate"] for each in trials["part"]]
    assert all(set(each) == {"rate"} for each in trials["part"]) and len(set(part)) == 6
    kept = [place for place, rate in enumerate(rates) if rate not in rates[:place]]
    assert [part[place] for place in kept] == [rates[place] for place in kept]  # first ones stay
    following = [draw(number)["rate"] for number in range(6, 200)]
    new = [part[place] for place in range(6) if place not in kept]
    assert new == list(dict.fromkeys(rate for rate in following if rate not in rates))[: len(new)]
    assert trials == trials_of(candidates, unused, draw)


def test_candidates_that_cannot_differ_are_an_error():
    same = [{"rate": 1, "own": 1}, {"rate": 1, "own": 2}]
    for draw in (None, lambda number: {"rate": 1, "own": number}):
        with pytest.raises(HandlabError, match="search, part: it has fewer than 2 different .* without own"):
            trials_of(same, {"part": {"own"}}, draw)
        assert trials_of(same, {"whole": set()}, draw) == {"whole": same}


def test_budgets_that_differ_are_an_error(tmp_path):
    for trials in ({"S1": [{}], "S4": [{}, {}]}, {"S1": [], "S4": []}, {}):
        with pytest.raises(HandlabError, match="the budgets differ or are empty"):
            search(trials, None, tmp_path)
    with pytest.raises(HandlabError, match="budget 0"):
        draw_candidates(SMOKE, SPACE, 0)
