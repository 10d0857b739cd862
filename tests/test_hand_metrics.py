"""The three protocols against plain loops written from their descriptions, SciPy, and their properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.integrate import trapezoid
from scipy.spatial import procrustes
from scipy.spatial.transform import Rotation

from handlab.core import HandlabError
from handlab.hand import metrics
from handlab.hand.metrics import (
    EPE,
    PROTOCOLS,
    align_procrustes,
    auc,
    epe,
    joint_errors,
    pck,
    scores_2d,
    scores_3d,
    scores_split,
    scores_tips,
    thresholds_2d,
    thresholds_3d,
    thresholds_20_50,
    thresholds_mmpose,
)

examples = settings(deadline=None, max_examples=40)
protocols = st.sampled_from(PROTOCOLS)


@st.composite
def predictions(draw, dimensions=3):
    "Predictions, truths with some NaN joints, flags; at least one joint counts"
    count = draw(st.integers(1, 6))
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    true = generator.normal(0, 50, (count, 21, dimensions))
    pred = true + generator.standard_t(3, true.shape) * draw(st.floats(0.1, 30))
    true[generator.random((count, 21)) < draw(st.sampled_from([0, 0.3]))] = np.nan
    visible = generator.random((count, 21)) < draw(st.sampled_from([1, 0.6, 0.1]))
    true[0, 9], visible[0, 9] = 1, True
    return pred, true, visible


def counted_errors(pred, true, visible):
    "Joint -> its list of errors, in plain loops"
    errors = {}
    for sample in range(len(true)):
        for joint in range(true.shape[1]):
            if visible[sample, joint] and not np.isnan(true[sample, joint]).any():
                errors.setdefault(joint, []).append(
                    float(sum((p - t) ** 2 for p, t in zip(pred[sample, joint], true[sample, joint])) ** 0.5)
                )
    return errors


def middle(values):
    values = sorted(values)
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def average(values):
    values = list(values)
    return sum(values) / len(values)


def plain_zb(errors, thresholds):
    curve = [average(average(error <= t for error in joint) for joint in errors.values()) for t in thresholds]
    per_joint = [
        trapezoid([average(error <= t for error in joint) for t in thresholds], thresholds)
        / trapezoid(np.ones(len(thresholds)), thresholds)
        for joint in errors.values()
    ]
    return (
        average(map(average, errors.values())),
        average(map(middle, errors.values())),
        curve,
        average(per_joint),
    )


def plain_mmpose(errors, thresholds):
    together = sum(errors.values(), [])
    step = thresholds[1] - thresholds[0]
    curve, area = [], 0.0
    for t in thresholds:
        curve.append(average(average(error < t for error in joint) for joint in errors.values()))
        area += curve[-1] * step / (step * len(thresholds))
    return average(together), middle(together), curve, area


def plain_pooled(errors, thresholds):
    together = sum(errors.values(), [])
    curve = [average(error <= t for error in together) for t in thresholds]
    return (
        average(together),
        middle(together),
        curve,
        trapezoid(curve, thresholds) / (thresholds[-1] - thresholds[0]),
    )


PLAIN = dict(zb=plain_zb, mmpose=plain_mmpose, pooled=plain_pooled)


@examples
@given(predictions(), protocols, st.sampled_from([thresholds_3d, thresholds_20_50, thresholds_mmpose]))
def test_against_plain_loops(data, protocol, make_thresholds):
    thresholds = make_thresholds()
    mean, median, curve, area = PLAIN[protocol](counted_errors(*data), thresholds)
    pred, true, visible = data
    assert epe(pred, true, visible, protocol) == pytest.approx(EPE(mean, median))
    ours = pck(pred, true, thresholds, visible, protocol)
    np.testing.assert_allclose(ours, curve, atol=1e-12)
    assert auc(thresholds, ours, protocol) == pytest.approx(area)
    tensors = [torch.from_numpy(value) for value in data]
    assert epe(*tensors, protocol) == epe(pred, true, visible, protocol)
    np.testing.assert_array_equal(
        pck(tensors[0], tensors[1], torch.from_numpy(thresholds), tensors[2], protocol), ours
    )


@pytest.mark.parametrize("protocol,exact", [("zb", 1), ("pooled", 1), ("mmpose", 0)])
def test_an_error_exactly_at_the_threshold(protocol, exact):
    true = np.zeros((1, 21, 2))
    pred = true.copy()
    pred[..., 0] = 3
    assert pck(pred, true, [2, 3, 4], protocol=protocol).tolist() == [0, exact, 1]


def test_per_joint_and_pooled_differ_by_hand():
    "One joint seen four times without error, another once with 10 mm: pooled 2, per joint 5; medians 0 and 5"
    true, visible = np.zeros((4, 2, 3)), np.array([[1, 1], [1, 0], [1, 0], [1, 0]], bool)
    pred = true.copy()
    pred[0, 1, 2] = 10
    assert epe(pred, true, visible, "pooled") == (2, 0) and epe(pred, true, visible, "mmpose") == (2, 0)
    assert epe(pred, true, visible, "zb") == (5, 5)
    assert pck(pred, true, [5.0], visible, "pooled") == [0.8] and pck(pred, true, [5.0], visible, "zb") == [
        0.5
    ] == pck(pred, true, [5.0], visible, "mmpose")


@examples
@given(predictions(), protocols, st.randoms(use_true_random=False))
def test_order_of_samples_is_nothing(data, protocol, random):
    order = list(range(len(data[0])))
    random.shuffle(order)
    pred, true, visible = data
    shuffled = [value[order] for value in data]
    assert epe(*shuffled, protocol) == pytest.approx(epe(pred, true, visible, protocol))
    np.testing.assert_allclose(
        pck(shuffled[0], shuffled[1], thresholds_3d(), shuffled[2], protocol),
        pck(pred, true, thresholds_3d(), visible, protocol),
    )


@examples
@given(predictions(), protocols)
def test_curve_grows_from_nothing_to_all(data, protocol):
    pred, true, visible = data
    curve = pck(pred, true, [-1, *thresholds_3d(), 1e9], visible, protocol)
    assert curve[0] == 0 and curve[-1] == 1 and (np.diff(curve) >= 0).all()
    assert 0 <= auc(thresholds_3d(), curve[1:-1], protocol) <= 1


@examples
@given(predictions(), protocols, st.integers(0, 999), st.floats(0.1, 10))
def test_rigid_motion_and_scale(data, protocol, seed, factor):
    pred, true, visible = data
    turn, shift = Rotation.random(random_state=seed).as_matrix(), np.array([10, -200, 650])
    before = epe(pred, true, visible, protocol)
    assert epe(pred @ turn.T + shift, true @ turn.T + shift, visible, protocol) == pytest.approx(before)
    assert epe(pred * factor, true * factor, visible, protocol) == pytest.approx(
        [value * factor for value in before]
    )
    moved = pck(pred * factor, true * factor, thresholds_3d() * factor + 1e-9, visible, protocol)
    np.testing.assert_allclose(moved, pck(pred, true, thresholds_3d() + 1e-9 / factor, visible, protocol))


@examples
@given(predictions(), protocols)
def test_hidden_and_unannotated_joints_do_not_count(data, protocol):
    pred, true, visible = data
    counts = visible & np.isfinite(true).all(-1)
    spoiled = np.where(counts[..., None], pred, np.nan)  # what a network says there is never looked at
    assert epe(spoiled, true, visible, protocol) == epe(pred, true, visible, protocol)
    hidden = np.where(visible[..., None], true, np.nan)
    assert epe(pred, hidden, None, protocol) == epe(pred, true, visible, protocol)
    assert np.isnan(joint_errors(pred, true, visible)).tolist() == (~counts).tolist()


@examples
@given(predictions(2), st.sampled_from(["mmpose", "pooled"]))
def test_normalised_pck(data, protocol):
    pred, true, visible = data
    box = np.linspace(20, 200, len(pred))
    errors = counted_errors(pred / box[:, None, None], true / box[:, None, None], visible)
    np.testing.assert_allclose(
        pck(pred, true, [0.1, 0.2], visible, protocol, normaliser=box),
        PLAIN[protocol](errors, np.array([0.1, 0.2]))[2],
    )


@examples
@given(arrays.arrays(float, st.integers(2, 30), elements=st.floats(0, 1)), st.integers(0, 99))
def test_auc_against_scipy(curve, seed):
    thresholds = np.random.default_rng(seed).uniform(0.1, 3, len(curve)).cumsum()
    span = thresholds[-1] - thresholds[0]
    for protocol in ("zb", "pooled"):
        assert auc(thresholds, curve, protocol) == pytest.approx(trapezoid(curve, thresholds) / span)
    steps = np.arange(len(curve)) * 1.5
    assert auc(steps, curve, "mmpose") == pytest.approx(
        sum(height * 1.5 for height in curve) / (1.5 * len(curve))
    )
    assert auc(thresholds, np.ones_like(curve)) == pytest.approx(1)


def test_thresholds():
    assert (
        len(thresholds_3d()) == len(thresholds_2d()) == len(thresholds_mmpose()) == 20
        and len(thresholds_20_50()) == 12
    )
    assert (thresholds_3d()[0], thresholds_3d()[-1], thresholds_2d()[-1], thresholds_mmpose()[-1]) == (
        0,
        50,
        30,
        28.5,
    )
    assert thresholds_20_50()[0] == pytest.approx(21.0526, abs=1e-4)


@examples
@given(predictions(), protocols)
def test_scores(data, protocol):
    pred, true, visible = data
    mean, median, curve, area = PLAIN[protocol](counted_errors(*data), thresholds_3d())
    tail = PLAIN[protocol](counted_errors(*data), thresholds_20_50())[3]
    assert scores_3d(pred, true, visible, protocol) == pytest.approx(
        dict(epe_mean=mean, epe_median=median, auc_0_50=area, auc_20_50=tail)
    )
    flat = [data[0][..., :2], data[1][..., :2], visible]
    thresholds = thresholds_mmpose() if protocol == "mmpose" else thresholds_2d()
    mean, median, curve, area = PLAIN[protocol](counted_errors(*flat), thresholds)
    assert scores_2d(*flat, protocol) == pytest.approx(dict(epe_mean=mean, epe_median=median, auc_0_30=area))


def test_gradients_and_single_precision():
    true = torch.zeros(2, 21, 3)
    pred = torch.full((2, 21, 3), 3.0, requires_grad=True)
    assert epe(pred, true).mean == pytest.approx(27**0.5)
    assert epe(pred.half(), true.numpy()).mean == pytest.approx(27**0.5)


GOOD = np.zeros((2, 21, 3))


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: epe(GOOD[:1], GOOD), r"\(1, 21, 3\).*\(2, 21, 3\).*; give two arrays"),
        (lambda: epe(GOOD[0], GOOD[0]), r"\(N,21,D\)"),
        (lambda: epe(GOOD, GOOD, np.ones((2, 20))), r"visible has shape \(2, 20\); give \(2, 21\)"),
        (lambda: epe(GOOD, GOOD * np.nan), "no joint is visible"),
        (
            lambda: epe(np.where(np.arange(2)[:, None, None] == 1, np.nan, GOOD), GOOD),
            "not finite, first in sample 1",
        ),
        (lambda: epe(GOOD + np.inf, GOOD), "not finite"),
        (lambda: epe(GOOD, GOOD, protocol="Z&B"), "unknown protocol 'Z&B'; use one of zb, mmpose, pooled"),
        (lambda: pck(GOOD, GOOD, [1], protocol="mpii"), "unknown protocol"),
        (lambda: auc([0, 1], [1, 1, 1]), "do not match"),
        (lambda: auc([0, 2, 1], [0, 1, 1]), "ascending"),
        (lambda: auc([0], [0]), "at least two"),
        (lambda: auc([0, 1, 3], [0, 1, 1], "mmpose"), "equal steps"),
        (lambda: scores_3d(GOOD[..., :2], GOOD[..., :2]), r"shape is \(2, 21, 2\); give \(N,21,3\)"),
        (lambda: scores_3d(GOOD[:, :20], GOOD[:, :20]), r"shape is \(2, 20, 3\); give \(N,21,3\)"),
        (lambda: scores_3d(GOOD, GOOD[0]), r"true joints: their shape is \(21, 3\); give \(N,21,3\)"),
        (lambda: scores_tips(GOOD[..., :2], GOOD), r"predicted joints: their shape is \(2, 21, 2\)"),
        (lambda: scores_2d(GOOD, GOOD), r"shape is \(2, 21, 3\); give \(N,21,2\)"),
    ],
)
def test_bad_input_has_one_line(call, words):
    with pytest.raises(HandlabError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


# ---- finger tips alone, aligned


def tips_example(seed=0, frames=6):
    generator = np.random.default_rng(seed)
    true = np.full((frames, 21, 3), np.nan)
    true[:, [4, 8, 12, 16, 20]] = generator.normal(0, 40, (frames, 5, 3)) + generator.normal(
        0, 200, (frames, 1, 3)
    )
    true[1, 8] = np.nan
    pred = generator.normal(0, 1, (frames, 21, 3))
    pred[:, [4, 8, 12, 16, 20]] += np.nan_to_num(true[:, [4, 8, 12, 16, 20]]) / 33
    return pred, true


def squared(pred, true):
    return np.nansum((pred - true) ** 2)


def test_alignments_are_the_least_squares_scipy_finds():
    from scipy.optimize import least_squares

    pred, true = tips_example()
    for frame in range(len(pred)):
        there = np.isfinite(true[frame, :, 0])

        def one(p):
            return (p[3] * pred[frame, there] + p[:3] - true[frame, there]).ravel()

        moved = least_squares(lambda t: one([*t, 1]), [0, 0, 0]).x
        assert np.allclose(metrics.align_root(pred, true)[frame], pred[frame] + moved, atol=1e-4)
        fitted = least_squares(one, [0, 0, 0, 1.0], xtol=1e-15, ftol=1e-15, gtol=1e-15).x
        assert np.allclose(
            metrics.align_root_scale(pred, true)[frame], fitted[3] * pred[frame] + fitted[:3], atol=1e-3
        )
    groups = ["a", "b", "a", "a", "b", "a"]
    aligned = metrics.align_root_scale(pred, true, groups=groups)
    for name in "ab":
        rows = np.array(groups) == name

        def residual(p):
            out = p[0] * pred[rows] + p[1:].reshape(-1, 1, 3) - true[rows]
            return out[np.isfinite(out)]

        fitted = least_squares(
            residual, np.r_[1.0, np.zeros(3 * rows.sum())], xtol=1e-15, ftol=1e-15, gtol=1e-15
        ).x
        assert np.allclose(aligned[rows], fitted[0] * pred[rows] + fitted[1:].reshape(-1, 1, 3), atol=1e-3)


def test_each_alignment_gives_more_away():
    pred, true = tips_example(1, 40)
    pred = pred * 33
    errors = [
        squared(metrics.align(pred, true, alignment=name), true)
        for name in ("absolute", "root", "root_set_scale", "root_scale")
    ]
    assert errors == sorted(errors, reverse=True) and len(set(errors)) == 4


def test_alignment_does_not_feel_root_and_scale():
    pred, true = tips_example(2)
    for name in ("root_scale", "root_set_scale"):
        assert np.allclose(
            metrics.align(pred, true, alignment=name),
            metrics.align(pred * 71 + [5, 6, 7], true, alignment=name),
            atol=1e-6,
        )
    assert np.allclose(
        metrics.align(pred, true, alignment="root"),
        metrics.align(pred + [5, 6, 7], true, alignment="root"),
        atol=1e-9,
    )


def test_hidden_and_missing_tips_have_no_say():
    pred, true = tips_example(3)
    visible = np.isfinite(true[..., 0])
    visible[0, 20] = False
    other = true.copy()
    other[0, 20] += 500
    for name in metrics.ALIGNMENTS:
        assert np.array_equal(
            metrics.align(pred, true, visible, name), metrics.align(pred, other, visible, name)
        )
        wild = pred.copy()
        wild[:, 0] = np.nan  # joints without truth may be anything
        assert np.allclose(
            metrics.scores_tips(wild, true, visible, name)["epe_mean"],
            metrics.scores_tips(pred, true, visible, name)["epe_mean"],
        )


def test_scores_of_tips():
    true = np.full((2, 21, 3), np.nan)
    true[:, [4, 8]] = 0
    true[0, 8] = 60, 0, 0
    true[1, 8] = np.nan
    pred = np.zeros((2, 21, 3))
    pred[0, 4], pred[0, 8], pred[1, 4] = (0, 30, 0), (40, 30, 0), (0, 0, 300)
    row = metrics.scores_tips(pred, true)  # 30, |(-20, 30)| = 36.06, 300
    assert (
        row["tips"] == 3
        and np.isclose(row["epe_mean"], (30 + 1300**0.5 + 300) / 3)
        and np.isclose(row["epe_median"], 1300**0.5)
    )
    row = metrics.scores_tips(
        pred, true, alignment="root"
    )  # frame 1 has one tip: left out; -20/2 left and right
    assert (
        row["tips"] == 2
        and np.isclose(row["epe_mean"], 10)
        and np.isclose(row["auc_0_100"], 1 - 10 / 100, atol=0.006)
    )
    row = metrics.scores_tips(pred, true, alignment="root_scale")
    assert np.isclose(row["epe_mean"], 0, atol=1e-9) and row["alignment"] == "root_scale"
    with pytest.raises(HandlabError, match="unknown alignment 'best'"):
        metrics.scores_tips(pred, true, alignment="best")
    assert len(metrics.thresholds_100()) == 100 and np.isclose(metrics.thresholds_100()[5], 5.0505, atol=1e-4)


def hands(count=20, bend=8.0, seed=0):
    "True hands, and predictions that are bent, turned, scaled and moved; the rotations."
    generator = np.random.default_rng(seed)
    true = generator.normal(0, 40, (count, 21, 3)) + [0, 0, 500]
    turns = Rotation.random(count, random_state=seed)
    moved = (true - true.mean(1, keepdims=True) + generator.normal(0, bend, true.shape)) * 1.3
    return np.einsum("nij,nkj->nki", turns.inv().as_matrix(), moved) + [5, -9, 700], true, turns


def test_rotation_and_articulation_are_scipys():
    pred, true, turns = hands()
    aligned, angle = align_procrustes(pred, true)
    for number in range(len(true)):
        centred = true[number] - true[number].mean(0), pred[number] - pred[number].mean(0)
        assert angle[number] == pytest.approx(
            np.degrees(Rotation.align_vectors(*centred)[0].magnitude()), abs=1e-6
        )
        _, _, disparity = procrustes(true[number], pred[number])
        left = ((aligned[number] - true[number]) ** 2).sum() / (centred[0] ** 2).sum()
        assert left == pytest.approx(disparity, rel=1e-9)
    exact, true, turns = hands(bend=0)
    aligned, angle = align_procrustes(exact, true)
    assert np.abs(aligned - true).max() < 1e-9 and angle == pytest.approx(
        np.degrees(turns.magnitude()), abs=1e-5
    )


def test_a_mirrored_hand_is_no_rotation():
    "SciPy's procrustes mirrors; ours must not, as align_vectors does not: it is an error of articulation."
    _, true, _ = hands(5)
    mirrored = (true - true.mean(1, keepdims=True)) * [-1, 1, 1]
    aligned, angle = align_procrustes(mirrored, true)
    assert (np.sqrt(((aligned - true) ** 2).sum(-1)).mean(1) > 5).all()
    for number in range(5):
        found, _ = Rotation.align_vectors(true[number] - true[number].mean(0), mirrored[number])
        assert angle[number] == pytest.approx(np.degrees(found.magnitude()), abs=1e-6)


def test_articulation_needs_three_joints_and_leaves_unlabelled_ones_out():
    pred, true, _ = hands(4)
    whole, angles = align_procrustes(pred[:, :12], true[:, :12])
    holed = true.copy()
    holed[:, 12:], holed[3, 2:] = np.nan, np.nan
    aligned, angle = align_procrustes(pred, holed)
    assert aligned[:3, :12] == pytest.approx(whole[:3]) and angle[:3] == pytest.approx(angles[:3])
    assert np.isnan(angle[3]) and np.isnan(aligned[3]).all()
    split = scores_split(pred, holed)
    assert (
        split["rotation_mean"] == pytest.approx(angles[:3].mean()) and split["epe_joints"][12:] == [None] * 9
    )


def test_errors_by_visibility_and_joint_are_plain_means():
    pred, true, _ = hands(6)
    visible = np.random.default_rng(1).random((6, 21)) < 0.7
    errors = np.linalg.norm(pred - true, axis=-1)
    split = scores_split(pred, true, visible)
    assert split["epe_visible"] == pytest.approx(errors[visible].mean())
    assert split["epe_hidden"] == pytest.approx(errors[~visible].mean())
    assert split["epe_joints"] == pytest.approx(errors.mean(0))
    assert np.mean(split["epe_joints"]) == pytest.approx(scores_3d(pred, true)["epe_mean"])
    assert scores_split(pred, true, np.ones((6, 21)))["epe_hidden"] is None
    assert scores_split(pred, true)["epe_visible"] is None
