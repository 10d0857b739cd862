"""Claims: rules, intervals, and the table of claims with its faults.

In one made-up world every claim holds, in another every claim fails; runs are missing or wrong in others.
"""

import json
import os
import shutil
import subprocess
from functools import partial

import numpy as np
import pandas as pd
import papermill_calls
import pytest
from safetensors.numpy import save_file
from scipy import stats

from handlab.aligned.experiment import AlignedSettings
from handlab.core import HandlabError
from handlab.data import rhd as rhd_files
from handlab.pages import claims as claims_page
from handlab.privileged.experiment import PiSettings
from handlab.results import claims, measures, need, statistics
from handlab.results.catalogue import _EXTRA_RUNS as EXTRA_RUNS
from handlab.results.catalogue import PROFILES, graph_runs
from handlab.results.claims import COLUMNS, read_claims
from handlab.results.evidence import Evidence, Network, World, frame_scores
from handlab.results.statistics import (
    DRAWS,
    FAILS,
    HOLDS,
    LACKS_POWER,
    MORE,
    NOT_ANSWERABLE,
    NOT_RUN,
    Estimate,
    mean_estimate,
    read_rule,
    seeds_estimate,
)
from handlab.settings import make_settings
from handlab.sim import bighand, dexter_object, rhd
from handlab.train.sets import persons_of

ORDER = read_rule("order")


def spread(low, high):
    return Estimate((low + high) / 2, np.linspace(low, high, DRAWS))


@pytest.mark.parametrize(
    "rule, effects, verdict",
    [
        (MORE, [(1, 2)], HOLDS),
        (MORE, [(-2, -1)], FAILS),
        (MORE, [(-1, 2)], LACKS_POWER),
        (MORE, [(0, 0)], FAILS),
        (MORE, [(np.nan, np.nan)], LACKS_POWER),
        (ORDER, [(1, 2), (1, 3)], HOLDS),
        (ORDER, [(1, 2), (-3, -1)], FAILS),
        (ORDER, [(1, 2), (-1, 3)], LACKS_POWER),
        (ORDER, [(-1, 2), (-3, -1)], FAILS),
        (read_rule("up_to 0.06 0.03"), [(0, 0.01), (0.04, 0.07)], HOLDS),
        (read_rule("up_to 0.06 0.03"), [(0, 0.01), (0.01, 0.02)], FAILS),
        (read_rule("up_to 0.06 0.03"), [(0, 0.01), (0.02, 0.07)], LACKS_POWER),
        (read_rule("up_to 0.06 0.03"), [(0.2, 0.3)], HOLDS),
        (read_rule("about 2 1"), [(1.5, 2.5)], HOLDS),
        (read_rule("about 2 1"), [(3.5, 5)], FAILS),
        (read_rule("about 2 1"), [(-1, 0.5)], FAILS),
        (read_rule("about 2 1"), [(0.5, 2)], LACKS_POWER),
        (read_rule("same 0.1"), [(-0.05, 0.05)], HOLDS),
        (read_rule("same 0.1"), [(0.2, 0.3)], FAILS),
        (read_rule("same 0.1"), [(0.05, 0.2)], LACKS_POWER),
        (read_rule("at_most 6"), [(4, 5)], HOLDS),
        (read_rule("at_most 6"), [(7, 8)], FAILS),
        (read_rule("at_most 6"), [(5, 7)], LACKS_POWER),
    ],
)
def test_rules(rule, effects, verdict):
    assert rule.weigh([spread(*pair) for pair in effects])[0] == verdict


def test_where_all_must_hold_each_is_tested_at_the_full_level():
    edge = spread(-0.02, 0.98)  # 95 % of it lies within 0.005 and 0.955, 97.5 % within -0.0075 and 0.9675
    assert MORE.weigh([edge])[0] == HOLDS and ORDER.weigh([edge, spread(1, 2)])[0] == HOLDS
    _, shown, low, high = ORDER.weigh([spread(1, 2), edge])
    assert shown is edge and (low, high) == pytest.approx((0.005, 0.955), abs=1e-9)
    turned = edge * -1.0  # one false step is enough for an order to fail: the level is shared
    assert MORE.weigh([turned])[0] == FAILS and ORDER.weigh([turned, spread(1, 2)])[0] == LACKS_POWER
    best = read_rule("up_to 1 1")
    assert best.weigh([edge, spread(-2, -1)])[0] == LACKS_POWER and best.weigh([edge])[0] == HOLDS
    assert read_rule("up_to 1 0").weigh([edge, spread(1, 2)])[1].value == 1.5


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_an_intersection_claim_errs_no_more_often_than_its_level(steps):
    "The worst case: one step has no effect, the others a large one."
    generator, held = np.random.default_rng(4), 0
    for _ in range(400):
        effects = generator.normal([0, *[9] * (steps - 1)], 1, (5, steps))
        held += ORDER.weigh([seeds_estimate(each) for each in effects.T])[0] == HOLDS
    assert 0.01 < held / 400 < 0.045  # 2.5 %: an error above zero


def test_the_p_value_belongs_to_the_verdict():
    near, far = spread(-0.01, 0.99), spread(3, 4)
    assert MORE.chance([near]) == pytest.approx(0.02, abs=0.002) == near.chance()
    assert ORDER.chance([near, far]) == near.chance() and MORE.chance([far]) == pytest.approx(2 / (DRAWS + 1))
    fails = near * -1.0
    assert ORDER.chance([fails, far]) == pytest.approx(2 * near.chance())  # one of two is enough
    about = read_rule("about 2 1")
    assert about.chance([spread(0.99, 1.99)]) == pytest.approx(0.02, abs=0.002)  # inside, near the lower edge
    assert about.chance([spread(2.99, 3.99)]) == pytest.approx(0.02, abs=0.002)  # outside, near the upper
    assert np.isnan(MORE.chance([statistics.known(3)])) and np.isnan(MORE.chance([seeds_estimate([3.0])]))
    for low in (-0.1, -0.03, -0.02, 0.01):
        answered = MORE.weigh([spread(low, low + 1)])[0] != LACKS_POWER
        assert answered == (MORE.chance([spread(low, low + 1)]) <= 0.05)


@pytest.mark.parametrize("size, seeds", [(0.5, 34), (0.8, 15), (1.0, 10), (1.5, 6), (2.0, 5)])
def test_seeds_needed_are_those_of_tables_of_the_t_test(size, seeds):
    "Cohen's table for one sample, two-sided 5 %, power 80 %."
    half = (0.75) ** 0.5 / size
    estimate = seeds_estimate([1 + half, 1 - half, 1 + half, 1 - half])
    assert statistics.seeds_needed(estimate, 0) == seeds
    assert statistics.seeds_needed(estimate + 5.0, 5) == seeds == statistics.seeds_needed(estimate * 3.0, 0)


def test_seeds_needed_know_what_frames_leave_open():
    generator = np.random.default_rng(0)
    frames = generator.normal(0, 1, 400)
    made = mean_estimate(0.5 + frames - frames.mean() + generator.normal(0, 0.3, (4, 1)))
    alone = seeds_estimate(made.by_seed)
    assert made.value == pytest.approx(alone.value) and np.std(made.fixed) == pytest.approx(0.05, rel=0.1)
    assert statistics.seeds_needed(made, 0) >= statistics.seeds_needed(alone, 0)
    assert statistics.seeds_needed(made, made.value - 0.1) == np.inf  # two standard errors of the frames
    assert np.isnan(statistics.seeds_needed(mean_estimate(frames), 0))  # one seed


def test_an_estimate_is_paired():
    values = np.random.default_rng(0).normal(30, 5, (3, 200))
    first, second = mean_estimate(values + 1), mean_estimate(values)
    assert (first - second).interval() == pytest.approx((1, 1), abs=1e-4) and np.ptp(first.interval()) > 0.5
    assert abs(second - first).value == pytest.approx(1) and (first / second).value == pytest.approx(
        first.value / second.value
    )


def test_one_seed_is_the_known_paired_bootstrap():
    errors = np.random.default_rng(1).normal([[30], [29]], [[4], [6]], (2, 300))
    ours, difference = mean_estimate(errors[0]) - mean_estimate(errors[1]), errors[0] - errors[1]
    known = stats.bootstrap(
        (difference,), np.mean, n_resamples=4000, method="percentile", random_state=0
    ).confidence_interval
    assert (ours.value, *ours.interval()) == pytest.approx((difference.mean(), *known), abs=0.06)


def test_seeds_follow_students_t():
    values = np.array([1.0, 2.0, 4.0, 3.5])
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert seeds_estimate(values).interval() == pytest.approx(expected, abs=0.25)
    assert np.isnan(seeds_estimate([2.0]).interval()).all() and seeds_estimate([2.0]).value == 2


def coverage(make, truth: float, count: int = 300) -> float:
    "How often the interval of made data holds the truth."
    generator = np.random.default_rng(3)
    intervals = np.array([make(generator).interval() for _ in range(count)])
    return float(((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])).mean())


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_intervals_cover_as_they_say(seeds):
    "Normal effects of seeds and of frames; with one seed there is no effect of seeds to be found."

    def make(generator):
        return mean_estimate(
            1
            + generator.normal(0, 0.3 * (seeds > 1), (seeds, 1))
            + generator.normal(0, 2, 100)
            + generator.normal(0, 1, (seeds, 100))
        )

    assert 0.915 <= coverage(make, 1) <= 0.985


def test_intervals_of_videos_need_stretches():
    "Frames that look like their neighbours: drawn singly, the interval covers too seldom."

    def make(length):
        def made(generator):
            noise = generator.normal(0, 1, 405)
            return mean_estimate(np.convolve(noise, np.ones(6), "valid"), np.arange(400) // length)

        return made

    assert coverage(make(1), 0) < 0.75 and coverage(make(10), 0) > 0.88


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_of_few_persons_cover_as_they_say(seeds):
    "Eight persons with effects of their own: whole persons must be drawn."
    persons = np.arange(600) // 80

    def make(groups):
        def made(generator):
            of_persons, of_seeds = generator.normal(0, 1, 8)[persons], generator.normal(0, 0.3, (seeds, 1))
            return mean_estimate(
                of_persons + of_seeds * (seeds > 1) + generator.normal(0, 1, (seeds, 600)), groups
            )

        return made

    assert coverage(make(None), 0) < 0.5 + 0.45 * (seeds > 1) and 0.92 <= coverage(make(persons), 0) <= 0.99


def test_groups_of_equal_size_follow_students_t():
    persons = np.random.default_rng(7).normal(20, 4, 8)
    made = mean_estimate(np.repeat(persons, 50), np.repeat(list("abcdefgh"), 50))
    assert made.interval() == pytest.approx(
        stats.t.interval(0.95, 7, persons.mean(), stats.sem(persons)), abs=0.3
    )
    assert np.isnan(mean_estimate(persons, np.zeros(8)).interval()).all()  # one person says nothing of others


def test_medians_are_those_of_drawn_frames():
    "Against drawing the frames one by one."
    errors = np.random.default_rng(2).exponential(5, (40, 21))
    errors[::3, 4:9] = np.nan
    counts = np.random.default_rng(5).multinomial(40, np.full(40, 1 / 40), 20)
    direct = [np.nanquantile(np.repeat(errors, each, 0), 0.5, method="inverted_cdf") for each in counts]
    assert statistics.weighted_medians(errors, counts) == pytest.approx(direct)


def test_holm_against_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]).tolist() == [
        True,
        False,
        False,
        True,
    ]  # .05/4, .05/3, .05/2 < .03: stop
    assert statistics.holm([np.nan, 0.04]).tolist() == [False, True] and not statistics.holm([0.9, 0.8]).any()


def test_steps_to_a_goal():
    assert measures.steps_to([0, 100, 200, 300], [50, 40, 45, 30], 35) == pytest.approx(
        200 + 100 * 5 / 10
    )  # from the lowest so far, 40
    assert measures.steps_to([0, 10], [5, 4], 6) == 0 and measures.steps_to([0, 10], [5, 4], 3) == np.inf


# Made-up worlds ------------------------------------------------------------------------------------------

PI = dict(rgb=30, rgb_pi=22, depth=15, rgb_steps=28, rgb_time=27)
PI_STEREO = dict(rgb=14, rgb_pi=9, depth=6, rgb_steps=12, rgb_time=11)
FLAT = dict(rgb=8, rgb_pi=5, depth=4, rgb_steps=7)
FLAT_STEREO = {"rgb": 6.5, "mask_0.2": 6, "mask_0.8": 4.5, "mask_1": 4.4, "depth": 5.5, "rgb_steps": 6.3}
DEXTER = dict(rgb=18, rgb_pi=14, rgb_steps=17)
ALIGNED = {
    "S1": 20.6,
    "R2HP": 19.8,
    "R2CP": 18.8,
    "R2CHP": 17,
    "S3": 15,
    "S4": 11.5,
    "S1-own_view": 25,
    "RD2DHP": 14.5,
    "alternating-same_time": 14,
    "alternating-same_updates": 13,
    "S4-apart": 13.5,
    "S4-labelled0.05": 30,
    "S4-labelled0.05-alone": 31.8,
    "S4-labelled0.25": 12.0,
    "S4-labelled0.25-alone": 13,
}
ALIGNED_STEREO = {"S1": 8, "S4": 7}
ALWAYS_OPEN = {claim.id for claim in read_claims() if claim.not_measured}
REAL_ONLY = {claim.id for claim in read_claims() if claim.real_set}
TIMES = {"time-3d", "time-2d"}


def turned(errors, good, about_=40):
    return errors if good else {name: about_ - error for name, error in errors.items()}


def write_run(path, source, dimensions=3, frames=60, other=None, **errors):
    "A run folder in which each network errs by about what is given, alike in all frames."
    generator = np.random.default_rng(int(path.name[-1]))
    path.mkdir(parents=True)

    def predictions(errors, sequence=""):
        true, noise = (
            generator.normal(0, 60, (frames, 21, dimensions)),
            generator.normal(0, 0.02, (frames, 1, 1)),
        )
        return dict(
            true=true,
            visible=np.ones((frames, 21), bool),
            name=np.array([f"{sequence}{number:04d}" for number in range(frames)]),
            **{key: true + np.eye(dimensions)[0] * (error + noise) for key, error in errors.items()},
        )

    np.savez(path / "predictions.npz", **predictions(errors))
    for test, each in (other or {}).items():
        np.savez(path / f"predictions-{test}.npz", **predictions(each, "Grasp1/"))
    (path / "metrics.json").write_text(json.dumps({"source": source, "settings": {"steps": 100}}))


def write_losses(path, **columns):
    "A table of validation losses with steps from 0 to 100."
    path.mkdir(exist_ok=True)
    count = len(next(iter(columns.values())))
    pd.DataFrame({"step": np.linspace(0, 100, count).astype(int), "split": "validation", **columns}).to_csv(
        path / "losses.csv", index=False
    )


def write_pi(folder, dataset, seed, good, prefix):
    run = folder / f"train_pi-{prefix}{dataset}-seed{seed}"
    write_run(run, f"{prefix}{dataset}", **turned(PI if dataset == "rhd" else PI_STEREO, good))
    settled, falling, flat, rising = (
        [1, 0.5, 0.42, 0.41, 0.41],
        [1, 0.8, 0.7, 0.4, 0.2],
        np.full(11, 0.3),
        np.linspace(0.45, 0.95, 11),
    )
    small = 1 + 0.001 * seed
    write_losses(run / "rgb", pose=small * np.array(settled if good else falling))
    write_losses(run / "rgb_steps", pose=small * np.array([0.41, 0.4, 0.38] if good else [0.2, 0.19, 0.18]))
    write_losses(
        run / "rgb_pi",
        pose=small * (flat if good else rising),
        intermediate=small * (np.linspace(260, 50, 11) if good else np.linspace(50, 60, 11)),
        joint=small * (np.r_[290, np.full(10, 80)] if good else np.linspace(80, 290, 11)),
    )


def write_aligned(folder, name, dataset, seed, good, prefix, error, **more):
    run = folder / f"train_aligned-{name}-{prefix}{dataset}-seed{seed}"
    write_run(run, f"{prefix}{dataset}", RGB=error, **more)
    plain = name == "S4"
    weights = {
        "encoders.R.trunk": np.zeros((10, 10)),
        "decoders.P.0": np.zeros(50 if good or not plain else 90),
        "encoders.C.trunk": np.zeros(7 if plain else 1),
    }
    save_file(weights, run / "model.safetensors")
    fast, slow = [50, 20, 12, 11.5], [50, 40, 25, 14]
    write_losses(run, epe=np.array(fast if plain == good else slow) + 0.001 * seed)


def write_world(folder, good=True, prefix="sim-", seeds=3):
    "Every run of the quick graph, BigHand's, and the walks: all speak for the claims, or all against them."
    for seed in range(seeds):
        for dataset in ("rhd", "stb"):
            write_pi(folder, dataset, seed, good, prefix)
        write_run(
            folder / f"train_pi-bighand-{prefix}rhd-seed{seed}",
            f"{prefix}rhd",
            **turned(dict(depth=13, rgb_pi=20), good),
        )
        write_run(
            folder / f"train_pi_2d-{prefix}rhd-seed{seed}",
            f"{prefix}rhd",
            2,
            other={f"{prefix}dexter-object": turned(DEXTER, good)},
            **turned(FLAT, good),
        )
        write_run(
            folder / f"train_pi_2d-{prefix}stb-seed{seed}", f"{prefix}stb", 2, **turned(FLAT_STEREO, good)
        )
        bad = {"S4-labelled0.25": 36.0, "S4-labelled0.25-alone": 35.0} if not good else {}
        for name, error in {**turned(ALIGNED, good), **bad}.items():
            write_aligned(
                folder,
                name,
                "rhd",
                seed,
                good,
                prefix,
                error,
                **(turned(dict(cloud=9), good) if name == "S4" else {}),
            )
        for name, error in turned(ALIGNED_STEREO, good).items():
            write_aligned(folder, name, "stb", seed, good, prefix, error)
    noise = np.random.default_rng(0).normal(0, 0.01, (seeds, 60))
    walk = (
        {
            "S4/path_ratio": 1.2,
            "S4/largest_step": 1.4,
            "S4/bone_drift": 3,
            "joints/bone_drift": 8,
            "S4/from_real": 10,
            "S4/from_real_ends": 10,
            "clouds/put_in": 0.1,
            "clouds/reconstructed": 0.05,
        }
        if good
        else {
            "S4/path_ratio": 2,
            "S4/largest_step": 3,
            "S4/bone_drift": 9,
            "joints/bone_drift": 8,
            "S4/from_real": 13,
            "S4/from_real_ends": 10,
            "clouds/put_in": 0.1,
            "clouds/reconstructed": 0.15,
        }
    )
    for seed in range(seeds):
        write_walks(
            folder / f"train_aligned-S4-{prefix}rhd-seed{seed}/measured",
            {name: value + noise[seed] for name, value in walk.items()},
        )


def write_walks(folder, values):  # {'S4/...' | 'joints/...' | 'clouds/...': array}
    "As a run keeps what was measured of its walks and clouds."
    folder.mkdir(exist_ok=True)
    parts = {name: name.partition("/") for name in values}
    rows = {"S4": "latent", "joints": "joints"}
    walks = {
        f"{rows[row]}/measures/{what}": values[name] for name, (row, _, what) in parts.items() if row in rows
    }
    clouds = {what: values[name] for name, (row, _, what) in parts.items() if row == "clouds"}
    np.savez(folder / "walks.npz", **walks)
    np.savez(folder / "clouds.npz", **clouds)


def stand_ins(monkeypatch, good):
    "What needs trained networks: activations."
    flat = np.linspace(-0.01, 0.01, 60)
    shares = dict(rgb=0.40 + flat, rgb_steps=0.41 + flat, rgb_pi=(0.47 if good else 0.3) + flat)
    monkeypatch.setattr(measures, "activation_shares", lambda run: shares)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    "A good and a bad world of twins and of real sets: {(good, real): folder}."
    folders = {}
    for good in (True, False):
        for real in (False, True):
            folders[good, real] = tmp_path_factory.mktemp("worlds") / "quick"
            write_world(folders[good, real], good, "" if real else "sim-")
    return folders


def test_twins_in_the_real_sets_layout_decide_nothing_about_the_real_sets(tmp_path):
    write_world(tmp_path / "quick", True, "")
    for file in (tmp_path / "quick").glob("*/metrics.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "source": "sim-rhd"}))
    table = claims.claims_table(World(str(tmp_path / "quick"), 3, True))
    assert (
        not set(table.verdict) & {"holds", "does not hold"}
        and table.reason.str.contains("sim-rhd, a twin in the real set's layout").sum() > 50
    )


def test_activations_of_the_seeds_whose_weights_were_kept(worlds, monkeypatch):
    flat = np.linspace(-0.01, 0.01, 60)

    def some_shares(run, kept):
        shares = dict(rgb=0.40 + flat, rgb_steps=0.41 + flat, rgb_pi=0.47 + flat)
        return {key: each for key, each in shares.items() if key != "rgb_steps" or run.name in kept}

    for kept, seeds in (({"train_pi-sim-rhd-seed2"}, 1), (set(), 0)):
        monkeypatch.setattr(measures, "activation_shares", partial(some_shares, kept=kept))
        table = claims.claims_table(World(str(worlds[True, False]), 3, False))
        assert table.loc["activations-rhd", ["seeds", "verdict"]].tolist() == [3, HOLDS]
        found = table.loc["activations-rhd-same-steps"]
        assert found.seeds == seeds and found.verdict == (HOLDS if seeds else NOT_RUN)
        if seeds:
            assert found.ours == pytest.approx(0.06)
        else:
            assert "activations of rgb_steps" in found.reason


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("real", [False, True])
def test_made_up_worlds(worlds, monkeypatch, good, real):
    "Every claim that can be weighed holds where all runs speak for it and fails where all speak against it."
    stand_ins(monkeypatch, good)
    table = claims.claims_table(World(str(worlds[good, real]), 3, real))
    still_open = ALWAYS_OPEN | TIMES | (set() if real else REAL_ONLY)
    verdicts = table.verdict.to_dict()
    assert {
        name: verdict
        for name, verdict in verdicts.items()
        if name not in still_open and verdict != (HOLDS if good else FAILS)
    } == {}
    assert {verdicts[name] for name in still_open} == {NOT_ANSWERABLE} and (
        table.loc[list(still_open), "reason"] != ""
    ).all()
    weighed = table[~table.index.isin(still_open)]
    assert (weighed.seeds == 3).all() and (weighed[weighed.p.notna()]["also together"] == "yes").all()
    assert set(weighed.about) == {"the real set" if real else "the twin"} and all(
        ("twin" in source) != real for source in weighed.source
    )
    assert len(claims_page.failures(table)) == (0 if good else len(weighed))
    assert len(claims_page.open_claims(table)) == len(still_open)
    shown = claims_page.headline_table(table)
    assert set(shown.verdict) == {f"{HOLDS if good else FAILS} †"} and len(shown) == 15
    shown = claims_page.shown_table(table, claims_page.PI_PAPER)
    assert not shown.index.str.contains(r"\.\.\. ").any() and NOT_ANSWERABLE not in set(shown.verdict)
    assert claims_page.waiting_claims(table).empty


def test_every_run_of_the_graph_is_asked_for():
    asked = {
        World().run_name(network.run)
        for claim in read_claims()
        for network in claim.networks
        if not network.published
    }
    trained = {run.name.rsplit("-seed", 1)[0] for run in graph_runs("quick")}
    assert asked - trained == {"train_pi-bighand-sim-rhd"}
    assert trained - asked <= {
        "train_aligned-R2CHP-sim-stb",
        "train_aligned-S3-sim-stb",
    }  # rows of a figure, no claim


def test_what_is_true_by_construction_is_not_counted():
    "... and what nothing here measures."
    true = {claim.id for claim in read_claims() if claim.not_measured.startswith("true by construction")}
    assert true == {"same-size", "same-time", "losses-pose-settled", "losses-joint-settled"}
    assert ALWAYS_OPEN - true == {"others-joint", "best-dexter"}


def arms_of(claim) -> list:
    "The runs of this project that a claim compares, without the seed."
    return [World().run_name(network.run) for network in claim.networks if not network.published]


@pytest.mark.parametrize("profile", PROFILES)
def test_no_arm_is_compared_with_itself(profile):
    "Neither by name, nor because the profile sets for all what another name stands for."
    parameters = {run.name.rsplit("-seed", 1)[0]: run.parameters for run in graph_runs(profile)}
    for claim in read_claims(profile):
        assert len(set(claim.networks)) == len(claim.networks), claim.id
        for name in {*arms_of(claim)} - {*parameters}:  # made by a command of its own
            notebook, given = EXTRA_RUNS[name]
            plain = make_settings(PiSettings, profile, dataset=given["dataset"])
            assert notebook == "train_pi" and make_settings(PiSettings, profile, **given) != plain, claim.id


def trained_with(run, profile) -> AlignedSettings:
    given = {name: value for name, value in run.parameters.items() if name != "other_set"}
    return make_settings(AlignedSettings, profile, **given)


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_compared_was_trained_as_long(profile):
    "As many steps on as many frames, but where the run is named after its budget."
    settings = {
        run.name.rsplit("-seed", 1)[0]: trained_with(run, profile)
        for run in graph_runs(profile)
        if run.notebook == "train_aligned"
    }
    compared = 0
    for claim in read_claims(profile):
        own_budget = {name for name in arms_of(claim) if "-same_" in name or "-batch" in name}
        arms = {name: settings[name] for name in arms_of(claim) if name in settings.keys() - own_budget}
        for dataset in {each.dataset for each in arms.values()}:
            own = [each for each in arms.values() if each.dataset == dataset]
            efforts = {(each.steps, each.batch_size, each.batch_factor, each.train_frames) for each in own}
            assert len(efforts) == 1, claim.id
            compared += len(own) > 1
    assert compared > 20


@pytest.fixture
def world(worlds, tmp_path, monkeypatch) -> World:
    "A good world of twins that may be spoilt."
    stand_ins(monkeypatch, True)
    shutil.copytree(worlds[True, False], tmp_path / "quick")
    return World(str(tmp_path / "quick"), 3)


def verdict(world, name) -> dict:
    return claims.weigh(next(claim for claim in read_claims(world.profile) if claim.id == name), world)


def test_a_missing_run_is_named_with_its_command(world):
    for seed in range(3):
        shutil.rmtree(f"{world.folder}/train_aligned-S3-sim-rhd-seed{seed}")
    row = verdict(world, "poe-kl")
    assert (
        row["verdict"] == NOT_RUN
        and "missing: train_aligned-S3-sim-rhd;" in row["reason"]
        and np.isnan(row["ours"])
    )
    assert (
        "papermill nbs/train_aligned.ipynb" in row["reason"]
        and "-p strategy S3" in row["reason"]
        and "-p dataset sim-rhd" in row["reason"]
    )
    assert verdict(world, "s1-s4")["verdict"] == HOLDS
    for seed in range(3):
        shutil.rmtree(f"{world.folder}/train_pi-bighand-sim-rhd-seed{seed}")
    assert "-p depth_first sim-bighand" in verdict(world, "bighand-first")["reason"]
    with pytest.raises(HandlabError, match="train_aligned-S3-sim-rhd-seed2"):
        claims_page.require_graph(world)


def test_seeds_in_common_are_taken(world):
    shutil.rmtree(f"{world.folder}/train_aligned-S3-sim-rhd-seed1")
    row = verdict(world, "poe-kl")
    assert row["seeds"] == 2
    for seed in (0, 1):
        shutil.rmtree(f"{world.folder}/train_aligned-S4-sim-rhd-seed{seed}")
    shutil.rmtree(f"{world.folder}/train_aligned-S3-sim-rhd-seed2")
    again = verdict(World(world.folder, 3), "poe-kl")
    assert again["verdict"] == NOT_ANSWERABLE and "no seed in common" in again["reason"]


def test_one_seed_has_an_interval_of_frames_but_none_of_curves(world):
    alone = World(world.folder, 1)
    assert verdict(alone, "poe-kl")["seeds"] == 1 and verdict(alone, "poe-kl")["verdict"] == HOLDS
    row = verdict(alone, "joint-faster-same-time")
    assert row["verdict"] == LACKS_POWER and "one seed" in row["reason"] and row["ours"] > 0
    assert "but not another training" in claims_page.caption(
        alone, claims.claims_table(alone, [each for each in read_claims() if each.id == "poe-kl"])
    )


def change(path, **arrays):
    with np.load(path) as found:
        kept = dict(found)
    np.savez(path, **{**kept, **arrays})


def test_altered_predictions_turn_a_verdict(world):
    assert verdict(world, "pi-3d-rhd")["verdict"] == HOLDS
    for seed in range(3):
        path = f"{world.folder}/train_pi-sim-rhd-seed{seed}/predictions.npz"
        with np.load(path) as found:
            change(path, rgb_pi=found["rgb"] + (found["rgb"] - found["true"]) * 0.1)
    row = verdict(World(world.folder, 3), "pi-3d-rhd")
    assert row["verdict"] == FAILS and row["ours"] == pytest.approx(-3, abs=0.1)


def test_seeds_that_disagree_leave_it_open(world):
    for seed, factor in enumerate((0.8, 1.2, 0.9)):
        path = f"{world.folder}/train_pi-sim-rhd-seed{seed}/predictions.npz"
        with np.load(path) as found:
            change(path, rgb_pi=found["true"] + factor * (found["rgb"] - found["true"]))
    row = verdict(World(world.folder, 3), "pi-3d-rhd")
    assert (
        row["verdict"] == LACKS_POWER and row["low"] < 0 < row["high"] and "contains an edge" in row["reason"]
    )


def test_what_cannot_be_compared_is_not(world):
    path = f"{world.folder}/train_aligned-S4-sim-rhd-seed0/predictions.npz"
    with np.load(path) as found:
        names = np.char.add("x", found["name"])
    change(path, name=names)
    row = verdict(world, "poe-kl")
    assert row["verdict"] == NOT_ANSWERABLE and "other frames" in row["reason"]
    path = f"{world.folder}/train_pi-sim-rhd-seed0/predictions.npz"
    with np.load(path) as found:
        broken = np.full_like(found["rgb"], np.nan)
    change(path, rgb=broken)
    row = verdict(world, "pi-3d-rhd")
    assert row["verdict"] == NOT_RUN and "not finite" in row["reason"]


def test_a_network_that_a_run_lacks_is_not_run(world):
    for seed in range(3):
        path = f"{world.folder}/train_pi_2d-sim-stb-seed{seed}/predictions.npz"
        with np.load(path) as found:
            kept = {key: value for key, value in found.items() if key != "mask_0.8"}
        np.savez(path, **kept)
    row = verdict(world, "mask0.8-2d-stb")
    assert (
        row["verdict"] == NOT_RUN
        and "predictions of mask_0.8" in row["reason"]
        and "train_pi_2d.ipynb" in row["reason"]
    )


def test_published_effects_are_the_papers():
    effects = {claim.id: (*claim.published, claim.printed, claim.remark) for claim in read_claims()}
    by_hand = {
        "pi-2d-rhd": 7.841 - 5.223,
        "pi-2d-rhd-median": 3.708 - 2.642,
        "pi-2d-dexter": 18.278 - 14.593,
        "mask0.8-2d-stb": 6.533 - 5.801,
        "mask-share-2d-stb-median": 5.068 - 4.515,
        "mask0.8-depth-2d-stb": 5.883 - 5.801,
        "order-strategies": 15.49 - 14.93,
        "order-decoders": 16.10 - 15.91 if 16.10 - 15.91 < 15.91 - 15.49 else np.nan,
        "s1-s4": 16.61 - 13.14,
        "poe-kl": 14.93 - 13.14,
        "weak-amount": 0.06,
        "corresponding": 2,
        "time-2d": 8,
        "best-2d-stb": 5.013 - 5.801,
        "best-3d-stb-all": 8.56 - 7.05,
        "gap-2d-rhd": 2.618 / 3.939,
        "best-pck-rhd": 0.943 - 0.887,
        "stb-easier": 13.14 - 7.05,
        "joint-faster-same-updates": 1 - 50 / 600,
    }
    assert {name: effects[name][0] for name in by_hand} == pytest.approx(by_hand, abs=1e-4)
    assert np.isnan(effects["pi-3d-rhd"][0]) and "curve" in effects["pi-3d-rhd"][2]
    assert effects["s1-s4"][1] == 16.61 and "19 % to STB" in effects["best-3d-rhd-amount"][3]


def test_facts_name_known_claims():
    names = {claim.id for profile in ("smoke", "quick", "full") for claim in read_claims(profile)}
    assert set(claims_page.known_reasons().id) <= names
    for claim in read_claims():
        assert (
            claim.section
            and claim.text
            and claim.effect
            and claim.paper in claims_page.PAPER_NAMES
            and claim.unit in ("mm", "px", "share", "AUC", "ratio", "%", "ms")
        )


def test_reasons_belong_to_source_and_profile(worlds, monkeypatch):
    stand_ins(monkeypatch, False)
    world = World(str(worlds[False, False]), 3)
    table = claims.claims_table(world, [claim for claim in read_claims() if claim.id in ("s1-s4", "poe-kl")])
    reasons = pd.DataFrame(
        [
            ("s1-s4", "twin", "quick", "Because."),
            ("poe-kl", "real", "quick", "Elsewhere."),
            ("poe-kl", "twin", "full", "Elsewhere."),
        ],
        columns=["id", "source", "profile", "reason"],
    )
    assert claims_page.failures(table, reasons).why.to_dict() == {
        "s1-s4": "Because.",
        "poe-kl": claims_page.UNKNOWN,
    }


def test_counts_in_words(worlds, monkeypatch):
    stand_ins(monkeypatch, True)
    chosen = ("s1-s4", "poe-kl", "order-strategies", "best-3d-rhd-all")
    world = World(str(worlds[True, False]), 3)
    table = claims.claims_table(world, [claim for claim in read_claims() if claim.id in chosen])
    first, second = claims.count_sentences(table)
    assert first == (
        "3 claims of both papers can be tested here: 3 hold, 0 do not hold, 0 lack power and 0 were not run; "
        "with Holm's correction for all 3 tests together (†) 3 hold and 0 do not hold."
    )
    assert second.startswith("Not counted, as they cannot be tested here: 1 more")


def test_a_claim_that_lacks_power_says_how_many_seeds_would_answer_it(world):
    rng = np.random.default_rng(0)
    for seed, apart in enumerate((-0.5, 0.4, 1.6)):
        path = f"{world.folder}/train_pi-sim-rhd-seed{seed}/predictions.npz"
        with np.load(path) as found:
            noise = rng.normal(0, 0.1, (60, 1, 1))
            change(path, rgb_pi=found["rgb"] - np.eye(3)[0] * (apart + noise))
    row = verdict(World(world.folder, 3), "pi-3d-rhd")
    by_seed = np.array([-0.5, 0.4, 1.6])
    size = by_seed.mean() / by_seed.std(ddof=1)
    assert row["verdict"] == LACKS_POWER and row["seeds needed"] > 3
    power = stats.nct.sf(
        stats.t.ppf(0.975, row["seeds needed"] - 1),
        row["seeds needed"] - 1,
        size * row["seeds needed"] ** 0.5,
    )
    assert 0.78 < power < 0.86 and f"about {row['seeds needed']:.0f} seeds" in row["reason"]
    alone = verdict(World(world.folder, 1), "joint-faster-same-time")
    assert np.isnan(alone["seeds needed"]) and "3 seeds" in alone["reason"]


def test_runs_are_trained_where_a_headline_needs_them_most(world, monkeypatch):
    "First the seeds that a headline without power asks for, then headlines not run, then the rest."
    rows = {"s1-s4": (HOLDS, np.nan), "poe-kl": (LACKS_POWER, 5.0), "weak-0.25": (NOT_RUN, np.nan)}
    rows |= {
        "s1-s2": (LACKS_POWER, np.inf),
        "corresponding": (LACKS_POWER, np.nan),
        "best-2d-stb": (NOT_RUN, 0),
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["verdict", "seeds needed"])
    finished = [f"train_aligned-{name}-sim-rhd-seed0" for name in ("S1", "S3", "S4")]
    order = need.runs_by_need(table, World(world.folder, 1), finished)
    names, why = list(order), list(order.values())
    first = {f"train_aligned-{name}-sim-rhd-seed{seed}" for name in ("S3", "S4") for seed in range(1, 5)}
    assert set(names[:8]) == first and all("about 5 seeds" in each for each in why[:8])
    assert names[8] == "train_aligned-S4-apart-sim-rhd-seed0" and "3 seeds would tell" in why[8]
    assert [int(name[-1]) for name in names[8:11]] == [0, 1, 2]
    assert {name.partition("-labelled")[2] for name in names[11:13]} == {
        "0.25-sim-rhd-seed0",
        "0.25-alone-sim-rhd-seed0",
    }
    assert set(why[11:13]) == {"Unlabelled frames help a quarter of the labels: not run"}
    assert set(why[13:]) == {need.REST} and {name[-6:] for name in names[13:]} == {"-seed0"}
    graph = {run.name for run in graph_runs("quick")}
    assert graph <= {*names, *finished} and not set(finished) & set(names)


@pytest.mark.end_to_end
def test_notebook(worlds, tmp_path):
    "The whole page on a made-up world, where no network is trained: activations and times say so."
    figures = tmp_path / "figures"
    given = dict(profile="quick", seeds=3, runs=worlds[False, False], figures=figures)
    done = subprocess.run(
        papermill_calls.call("claims", tmp_path / "claims.ipynb", **given),
        env={
            **{name: value for name, value in os.environ.items() if name != "IN_TEST"},
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    table = pd.read_csv(tmp_path / "figures/claims-quick.csv", index_col="id")
    assert (
        len(table) == len(read_claims())
        and table.loc["s1-s4", "verdict"] == FAILS
        and table.loc["activations-rhd", "verdict"] == NOT_RUN
    )
    text = (tmp_path / "figures/claims-quick.md").read_text()
    assert "sim-rhd twin" in text and "about the simulated twin" in text
    assert {
        "claims-quick-privileged_depth.svg",
        "claims-quick-aligned_latent_spaces.png",
        "claims-quick-privileged_depth-table.md",
    } <= {path.name for path in (tmp_path / "figures").iterdir()}


def test_evidence_draws_what_the_names_say(tmp_path):
    pictures = [f"evaluation/{number:05d}" for number in range(400)]
    video = [
        f"evaluation/{part}/{number:04d}" for part in ("B1Counting", "B1Random") for number in range(200)
    ]
    for source, name, names in (
        ("sim-rhd", "train_pi-sim-rhd", pictures),
        ("sim-stb", "train_pi-sim-stb", video),
    ):
        path = tmp_path / "quick" / f"{name}-seed0"
        write_run(path, source, frames=400, rgb=30, rgb_pi=29)
        change(path / "predictions.npz", name=np.array(names))
    groups = {}
    for pattern in ("train_pi-{rhd}", "train_pi-{stb}"):
        network = Network(pattern, "rgb")
        evidence = Evidence(World(str(tmp_path / "quick")), [network])
        groups[pattern] = evidence.groups(network)
    assert np.array_equal(groups["train_pi-{rhd}"], np.arange(400) // 80)  # five persons
    assert np.array_equal(groups["train_pi-{stb}"], np.arange(400) // 10)  # one person: stretches of ten
    errors = np.repeat([30.0, 31, 29, 33, 28], 80)
    path = tmp_path / "quick" / "train_pi-sim-rhd-seed0" / "predictions.npz"
    with np.load(path) as found:
        change(path, rgb=found["true"] + np.eye(3)[0] * errors[:, None, None])
    evidence = Evidence(World(str(tmp_path / "quick")), [Network("train_pi-{rhd}", "rgb")])
    low, high = evidence.estimate(Network("train_pi-{rhd}", "rgb")).interval()
    assert (low, high) == pytest.approx(
        stats.t.interval(0.95, 4, 30.2, stats.sem([30, 31, 29, 33, 28])), abs=0.4
    )


class Asked(Exception):
    "Ends a drawing when it asks for its person."


def asked_person(monkeypatch, module, draw):
    def stop(*arguments):
        raise Asked(arguments[-1])

    monkeypatch.setattr(module, "actor_of", stop)
    with pytest.raises(Asked) as caught:
        draw()
    return caught.value.args[0]


def test_names_of_frames_say_the_person_that_the_twins_draw(monkeypatch):
    "The simulators are asked whom they draw, for frames around the edges of persons."
    numbers = [0, 79, 80, 239, 240]
    drawn = [asked_person(monkeypatch, rhd, lambda: rhd.rhd_frame(0, "evaluation", n)) for n in numbers]
    names = [rhd_files.frame_name("evaluation", number) for number in numbers]
    assert (
        persons_of("sim-rhd", names).tolist()
        == np.unique(drawn, return_inverse=True)[1].tolist()
        == [0, 0, 1, 2, 3]
    )

    numbers = [0, bighand.FRAMES_PER_PERSON - 1, bighand.FRAMES_PER_PERSON]
    drawn = [bighand.place_of("evaluation", number)[0] for number in numbers]
    names = [bighand.sample_name("evaluation", number) for number in numbers]
    assert persons_of("sim-bighand", names).tolist() == drawn == [0, 0, 1]
    assert persons_of("bighand", ["Subject_1/76 150/image_D1", "Subject_3/ego/image_D1"]).tolist() == [0, 1]

    sequences = list(dexter_object.PERSONS)
    drawn = [
        asked_person(monkeypatch, dexter_object, lambda: dexter_object.stage_at(0, each, 5))
        for each in sequences
    ]
    assert persons_of("sim-dexter-object", [f"{each}/0001" for each in sequences]).tolist() == drawn
    assert set(persons_of("sim-stb", ["evaluation/B1Counting/0000", "evaluation/B1Random/0000"])) == {0}
    assert persons_of("rhd", ["evaluation/00000"]) is None is persons_of("dexter-object", ["Grasp1/0001"])


def test_hidden_joints_do_not_count_in_2d():
    true = np.zeros((1, 21, 2))
    arrays = dict(
        true=true, visible=np.arange(21)[None] < 2, net=true + np.arange(21.0)[None, :, None] * [1, 0]
    )
    assert (
        frame_scores(arrays, "net", "error") == pytest.approx([0.5])
        and np.isfinite(frame_scores(arrays, "net", "joints")).sum() == 2
    )
    assert frame_scores(
        {**arrays, "true": np.zeros((1, 21, 3)), "net": np.ones((1, 21, 3))}, "net", "error"
    ) == pytest.approx([3**0.5])


# The table of claims ----------------------------------------------------------------------------------------

GOOD_ROW = {
    **dict.fromkeys(COLUMNS, ""),
    "id": "made-up",
    "paper": "privileged_depth",
    "section": "1",
    "claim": "Depth helps",
    "effect": "RGB Net minus RGB PI Net",
    "unit": "mm",
    "measure": "error_steps",
    "networks": "train_pi-{rhd}: rgb, rgb_pi",
    "rule": "more",
    "published": "2 of 8",
}


def write_table(path, *rows, columns=COLUMNS):
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    return path


def test_a_row_is_read_as_it_is_written(tmp_path):
    (claim,) = read_claims(path=write_table(tmp_path / "claims.csv", GOOD_ROW))
    assert (claim.id, claim.published, str(claim.rule)) == ("made-up", (2, 8), "above 0")
    networks = [(network.run, network.key) for network in claim.networks]
    assert networks == [("train_pi-{rhd}", "rgb"), ("train_pi-{rhd}", "rgb_pi")]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"rule": "perhaps"}, "unknown rule 'perhaps'"),
        ({"rule": "about two"}, "wrong numbers"),
        ({"paper": "another"}, "unknown paper 'another'"),
        ({"profiles": "quick tiny"}, "unknown profile 'tiny'"),
        ({"measure": "error_steeps"}, "error_steeps"),
        ({"networks": "train_pi-{rgb}: rgb, rgb_pi"}, "train_pi-{rgb}"),
        ({"published": "much"}, "much"),
        ({"section": ""}, "section is empty"),
        ({"measure": "", "networks": ""}, "exactly one of measure and not_measured"),
    ],
)
def test_a_wrong_row_is_one_line_that_names_it(tmp_path, change, words):
    path = write_table(tmp_path / "claims.csv", {**GOOD_ROW, "id": "fine"}, {**GOOD_ROW, **change})
    with pytest.raises(HandlabError) as caught:
        read_claims(path=path)
    text = str(caught.value)
    assert f"{path}, line 3: " in text and words in text and "\n" not in text


def test_an_id_is_there_once_and_columns_are_known(tmp_path):
    with pytest.raises(HandlabError, match="line 3: id 'made-up' is listed twice"):
        read_claims(path=write_table(tmp_path / "twice.csv", GOOD_ROW, GOOD_ROW))
    with pytest.raises(HandlabError, match="line 1: wrong columns"):
        read_claims(path=write_table(tmp_path / "columns.csv", columns=COLUMNS[:-1]))


def test_a_forest_has_every_measured_claim_in_full():
    "Claims are wrapped, not cut; a claim that lacks power says how many seeds it needs."
    long = "The larger the share of images with the mask loss, the lower the error: none, a fifth, all"
    further = "also against as many more steps without privileged data (control"
    row = dict(paper="p", unit="mm", base=10.0, published=1.0, lower=0.0, upper=np.inf, low=-1.0, high=2.0)
    row |= {"published base": 10.0, "seeds needed": np.nan, "also together": ""}
    rows = [
        row | {"claim": long, "verdict": LACKS_POWER, "ours": 0.5, "seeds needed": 7.0},
        row
        | {
            "claim": f"... {further} not in the paper)",
            "verdict": LACKS_POWER,
            "ours": 0.5,
            "seeds needed": np.nan,
        },
        row | {"claim": "Few persons", "verdict": LACKS_POWER, "ours": 0.5, "seeds needed": np.inf},
        row | {"claim": "True alone", "verdict": HOLDS, "ours": 0.5, "also together": "no"},
        row | {"claim": "True with all", "verdict": HOLDS, "ours": 0.5, "also together": "yes"},
        row | {"claim": "Far away", "verdict": FAILS, "ours": -50.0, "low": -60.0, "high": -40.0},
        row | {"claim": "Not measured", "verdict": "not run", "ours": np.nan, "seeds needed": np.nan},
    ]
    axis = claims_page.fig_forest(pd.DataFrame(rows), "Claims", "made up.").axes[0]
    texts = [label.get_text().replace("\n", " ").replace("\xa0", " ") for label in axis.get_yticklabels()]
    assert texts[::-1] == [
        f"{long}: lacks power (about 7 seeds needed)",
        f"{long}, {further}): lacks power (3 seeds or more)",
        "Few persons: lacks power (more test persons needed)",
        "True alone: holds",
        "True with all: holds †",
        "Far away: does not hold",
    ]
    assert [line.get_marker() for line in axis.lines].count("<") == 1  # at the edge
    assert "A triangle at the edge: an effect beyond the axis." in axis.get_title().replace("\n", " ")
    apart = np.diff(axis.get_yticks())
    assert apart[-1] > apart[0] * 1.1  # more room for a claim of three lines
    assert "Not drawn: 1 claim without" in axis.get_title()
    legend = [text.get_text() for text in axis.get_legend().get_texts()]
    assert [text for text in legend if text.startswith("ours")] == [
        "ours: holds",
        "ours: does not hold",
        "ours: lacks power",
    ]
    assert "published, real data" in legend


def test_counts_are_words_of_their_number():
    assert (
        claims.count_verdict(1, LACKS_POWER) == "1 lacks power" and claims.count_of(1, "claim") == "1 claim"
    )
    assert claims.count_verdict(0, HOLDS) == "0 hold" and claims.count_of(0, "test") == "0 tests"
    one = pd.DataFrame({"verdict": [LACKS_POWER], "also together": "", "p": [0.2], "seeds needed": [4.0]})
    assert claims.count_sentences(one)[0] == (
        "1 claim of both papers can be tested here: 0 hold, 0 do not hold, 1 lacks power and 0 were not run; "
        "with Holm's correction for 1 test (†) 0 hold and 0 do not hold. Ten seeds or fewer would "
        "answer 1 of those that lack power."
    )
