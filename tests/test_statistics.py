"""What must be true of every interval and verdict, whatever the numbers: for many made-up data sets."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as some
from scipy import stats

from handlab.results import claims
from handlab.results.statistics import (
    FAILS,
    HOLDS,
    LACKS_POWER,
    LEVEL,
    MORE,
    difference,
    holm,
    mean_estimate,
    read_rule,
    seeds_estimate,
    seeds_needed,
)

quickly = settings(max_examples=30, deadline=None, derandomize=True)  # 8,000 draws are never exact
seeds = some.integers(0, 2**31 - 1)
ORDER = read_rule("order")


def errors_of(seed, trainings=3, frames=60, spread=1.0) -> np.ndarray:
    "Made-up errors (trainings, frames) in mm: effects of trainings and of frames, and noise."
    source = np.random.default_rng(seed)
    effects = source.normal(0, 0.3, (trainings, 1)) + source.normal(0, 1, frames)
    return 20 + spread * (effects + source.normal(0, 0.5, (trainings, frames)))


def width(estimate) -> float:
    low, high = estimate.interval()
    return high - low


@quickly
@given(seeds, some.integers(2, 12))
def test_seeds_have_the_interval_and_the_p_value_of_the_t_test(seed, count):
    "The quantiles of 8,000 draws are exact to some per cent: most with two seeds, where tails are long."
    values = np.random.default_rng(seed).normal(1, 1, count)
    known = stats.ttest_1samp(values, 0)
    low, high = known.confidence_interval(LEVEL)
    made, slack = seeds_estimate(values), (0.15 if count == 2 else 0.08) * (high - low) / 2
    assert made.interval() == pytest.approx((low, high), abs=slack)
    assert made.chance() == pytest.approx(max(known.pvalue, 2 / 8001), rel=0.25, abs=0.01)


@quickly
@given(seeds, some.integers(3, 30), some.integers(1, 5))
def test_equal_persons_have_the_interval_of_their_means(seed, persons, each):
    "With one training and equal groups: Student's t over the persons' means."
    source = np.random.default_rng(seed)
    errors, groups = source.normal(20, 3, persons * each), np.repeat(np.arange(persons), each)
    means = errors.reshape(persons, each).mean(1)
    low, high = stats.t.interval(LEVEL, persons - 1, means.mean(), stats.sem(means))
    found = mean_estimate(errors, groups).interval()
    assert found == pytest.approx((low, high), abs=0.2 * (high - low) / 2)


@quickly
@given(seeds, some.floats(-50, 50), some.floats(0.1, 20), some.booleans())
def test_an_interval_moves_and_grows_with_the_numbers(seed, shift, factor, turned):
    "In cm, or from another zero, it is the same interval; with a minus its ends are exchanged."
    errors, factor = errors_of(seed), -factor if turned else factor
    made, other = mean_estimate(errors), mean_estimate(shift + factor * errors)
    ends = sorted(shift + factor * end for end in made.interval())
    near = 1e-3 * abs(factor) * width(made) + 1e-5 * (abs(shift) + 30 * abs(factor))
    assert other.value == pytest.approx(shift + factor * made.value, abs=near)
    assert other.interval() == pytest.approx(ends, abs=near)


@quickly
@given(seeds)
def test_rounding_is_not_seen(seed):
    "A draw of two seeds multiplies rounding by dozens, so that 32 bits would differ between processors."
    errors = errors_of(seed, trainings=2)
    low, high = mean_estimate(errors).interval()
    assert mean_estimate(errors + 1000).interval() == pytest.approx((low + 1000, high + 1000), abs=1e-7)


@quickly
@given(seeds)
def test_the_order_of_frames_is_without_effect(seed):
    errors, source = errors_of(seed), np.random.default_rng(seed)
    persons, order = np.repeat(list("abcdef"), 10), source.permutation(60)
    made, other = mean_estimate(errors, persons), mean_estimate(errors[:, order], persons[order])
    assert other.value == pytest.approx(made.value)
    assert other.interval() == pytest.approx(made.interval(), abs=1e-3)


@quickly
@given(seeds)
def test_other_draws_of_the_same_frames_hardly_change_an_interval(seed):
    "Frames drawn singly and trainings in another order: the draws differ, the distribution does not."
    errors, source = errors_of(seed), np.random.default_rng(seed)
    made = mean_estimate(errors)
    other = mean_estimate(errors[source.permutation(3)][:, source.permutation(60)])
    assert other.value == pytest.approx(made.value)
    assert other.interval() == pytest.approx(made.interval(), abs=0.15 * width(made))


@quickly
@given(seeds, some.integers(1, 4))
def test_a_difference_turned_round_changes_its_sign(seed, trainings):
    first, second = errors_of(seed, trainings), errors_of(seed + 1, trainings)
    one, other = difference(first, second), difference(second, first)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low), abs=1e-4)
    assert one.low <= one.value <= one.high
    same = difference(first, first)
    assert same == (0, 0, 0)


@quickly
@given(seeds)
def test_what_all_frames_share_does_not_widen_a_difference(seed):
    "Paired: hard frames are hard for both."
    first, second = errors_of(seed, spread=0.1), errors_of(seed + 1, spread=0.1)
    hard = np.random.default_rng(seed).exponential(10, 60)
    plain, shared = difference(first, second), difference(first + hard, second + hard)
    assert shared == pytest.approx(plain, abs=1e-4)


@quickly
@given(seeds, some.integers(2, 6))
def test_frames_that_are_there_several_times_say_no_more(seed, times):
    "Copies that are drawn together leave the interval as it is; drawn singly it would shrink."
    errors, numbers = errors_of(seed, 1), np.repeat(np.arange(60), times)
    alone, copies = mean_estimate(errors), mean_estimate(errors[:, numbers], numbers)
    assert copies.interval() == pytest.approx(alone.interval(), abs=1e-4)
    assert width(mean_estimate(errors[:, numbers])) < 0.9 * width(alone)


@quickly
@given(seeds, some.integers(5, 12))
def test_persons_with_effects_of_their_own_widen_the_interval(seed, persons):
    "Half of the variance is the person's, 40 frames each."
    source, groups = np.random.default_rng(seed), np.repeat(np.arange(persons), 40)
    errors = source.normal(0, 1, persons)[groups] + source.normal(0, 1, 40 * persons)
    means = errors.reshape(persons, 40).mean(1)
    assume(means.var(ddof=1) > 0.1)  # persons may be drawn alike
    assert width(mean_estimate(errors, groups)) > width(mean_estimate(errors))


@quickly
@given(some.lists(some.one_of(some.just(np.nan), some.integers(0, 300)), min_size=1, max_size=20))
def test_holm_is_the_usual_step_down(numbers):
    "Adjusted p values: the largest so far of (tests left) times p."
    chances = np.array([(number + 1 / np.pi) / 1000 for number in numbers])  # none exactly at an edge
    order = [place for place in np.argsort(chances) if not np.isnan(chances[place])]
    adjusted, expected = 0.0, np.zeros(len(chances), bool)
    for rank, place in enumerate(order):
        adjusted = max(adjusted, (len(order) - rank) * chances[place])
        expected[place] = adjusted <= 1 - LEVEL
    assert holm(chances).tolist() == expected.tolist()
    assert (holm(chances) <= (chances <= 1 - LEVEL)).all()  # never more than without correction


@quickly
@given(seeds, some.floats(0, 5))
def test_a_larger_effect_is_never_a_worse_verdict(seed, more):
    ranks = {FAILS: 0, LACKS_POWER: 1, HOLDS: 2}
    effects = [seeds_estimate(each) for each in np.random.default_rng(seed).normal(0.5, 1, (3, 4))]
    for rule in (MORE, ORDER):
        before, after = (rule.weigh([each + by for each in effects])[0] for by in (0.0, more))
        assert ranks[after] >= ranks[before]


@quickly
@given(seeds)
def test_a_verdict_and_its_p_value_agree(seed):
    effect = seeds_estimate(np.random.default_rng(seed).normal(0.5, 1, 5))
    chance = MORE.chance([effect])
    assume(abs(chance - 0.05) > 1e-3)  # an end of the interval lies between two draws
    assert (MORE.weigh([effect])[0] != LACKS_POWER) == (chance < 0.05)


@quickly
@given(seeds, some.floats(1.05, 3))
def test_a_larger_effect_needs_fewer_seeds(seed, factor):
    noise = np.random.default_rng(seed).normal(0, 1, 5)
    noise -= noise.mean()
    small, large = (seeds_needed(seeds_estimate(noise + effect), 0) for effect in (0.7, 0.7 * factor))
    assert 2 <= large <= small


@quickly
@given(some.floats(-100, 100))
def test_one_seed_answers_nothing_about_seeds(value):
    alone = seeds_estimate([value])
    assert MORE.weigh([alone])[0] == LACKS_POWER and np.isnan(MORE.chance([alone]))
    assert np.isnan(seeds_needed(alone, 0))
    claim = next(each for each in claims.read_claims() if each.rule == MORE)
    why = claims._why_open(claim, np.nan, np.nan, 1)
    assert why == "one seed: the spread over seeds is unknown; 3 seeds would tell how many are needed"
