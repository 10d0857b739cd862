"Paper 1's tables and figures on made-up runs, published beside ours, and the notebook with and without runs."

import json
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import papermill_calls
import pytest
import torch
from looks import check_looks
from matplotlib.patches import Rectangle

from handlab.core import HandlabError
from handlab.data.batches import Batches
from handlab.data.prepare import CropSettings
from handlab.data.rhd import write_drawn
from handlab.hand.draw import STYLES
from handlab.hand.metrics import align_procrustes, epe, joint_errors
from handlab.hand.skeleton import TIPS
from handlab.pages import pi_figures, pi_scores
from handlab.pages.curves import (
    PUBLISHED,
    area_between,
    draw_ours,
    draw_published,
    finish_pck,
)
from handlab.pages.page import split_means, split_scores
from handlab.pages.paper_pi import findings, pi_page
from handlab.pages.pi_scores import PANELS, STATE_OF_THE_ART
from handlab.privileged import diagram
from handlab.privileged.experiment import make_network
from handlab.privileged.stages import ARMS, STAGES, PiSettings
from handlab.results.published import published_curves, published_numbers
from handlab.results.runs import missing_runs, open_runs
from handlab.settings import make_settings
from handlab.train.experiment import prepared_reader
from handlab.train.files import save_network, write_losses
from handlab.train.layers import layer_table
from handlab.train.scores import forward_times
from handlab.train.sets import reader_of

LABELS_2D = {
    "rgb": "Baseline RGB",
    "depth": "Baseline Depth",
    "rgb_pi": "RGB + PI training",
    "mask_0.2": "RGB + PI training (0.2)",
    "mask_0.8": "RGB + PI training (0.8)",
    "mask_1": "RGB + PI training (1)",
    "rgb_steps": "Baseline RGB, same steps",
    "mean_pose": "mean training position",
}


@pytest.fixture(autouse=True)
def no_windows():
    yield
    plt.close("all")


def write_run(folder: Path, name: str, arrays: dict, seed: int = 0, others: dict = None, **metrics) -> Path:
    "A run folder as the training notebooks leave it."
    path = folder / f"{name}-seed{seed}"
    path.mkdir(parents=True)
    np.savez(path / "predictions.npz", **arrays)
    for other, predictions in (others or {}).items():
        np.savez(path / f"predictions-{other}.npz", **predictions)
    (path / "metrics.json").write_text(
        json.dumps({"source": "-".join(name.split("-")[1:]), "seed": seed, **metrics})
    )
    return path


def off_by(distances, joints: int = 21) -> np.ndarray:
    "Predictions (N, 21, 3) of a truth of zeros, each frame's joints off by its distance (mm)."
    return np.asarray(distances, float)[:, None, None] * np.array([0.6, 0.0, 0.8]) * np.ones((1, joints, 1))


def arrays_3d(**distances) -> dict:
    count = len(next(iter(distances.values())))
    return {
        "true": np.zeros((count, 21, 3)),
        "visible": np.ones((count, 21), bool),
        "name": np.array([f"{n:05d}" for n in range(count)]),
        **{name: off_by(each) for name, each in distances.items()},
    }


@pytest.fixture
def three(tmp_path):
    "Two seeds of a 3D run."
    for seed, error in enumerate((10, 14)):
        write_run(
            tmp_path / "quick",
            "train_pi-sim-rhd",
            arrays_3d(depth=[5, 5], rgb=[error, 30], rgb_pi=[8, 8]),
            seed,
            labels={stage: kind.label for stage, kind in STAGES.items()},
            energy_on_hand={"rgb": 0.3 + 0.1 * seed, "rgb_pi": 0.5, "hand": 0.25},
        )
    return tmp_path / "quick"


def arrays_2d(
    networks=("depth", "rgb", "rgb_pi", "mask_0.2", "mask_0.8", "mask_1", "rgb_steps"), factor: float = 1.0
) -> dict:
    "Joint 0 off by 2 and 4 px, joint 1 by 12 px where it is not hidden; times the network's place."
    true, visible = np.full((2, 21, 2), 100.0), np.zeros((2, 21), bool)
    visible[:, 0], visible[0, 1] = True, True
    shift = np.zeros((2, 21, 2))
    shift[0, 0], shift[1, 0], shift[0, 1], shift[1, 1] = (2, 0), (0, 4), (12, 0), (500, 0)
    return {
        "true": true,
        "visible": visible,
        "name": np.array(["Grasp1/0001", "Grasp1/0002"]),
        **{name: true + factor * (place + 1) * shift for place, name in enumerate(networks)},
    }


# ---- tables


def test_3d_errors_are_what_a_hand_calculates(three):
    table = pi_scores.table_3d({"RHD": open_runs("train_pi-sim-rhd", three, 2)}).loc["RHD"]
    assert table.loc["Depth Net", "EPE mean (mm)"] == pytest.approx(5) and table.loc[
        "RGB PI Net", "EPE median (mm)"
    ] == pytest.approx(8)
    assert table.loc["RGB Net", "EPE mean (mm)"] == pytest.approx((20 + 22) / 2)
    low, high = map(float, table.loc["RGB Net", "95 % interval"].split(" to "))
    assert low < 21 < high and table.loc["Depth Net", "95 % interval"] == "5.00 to 5.00"
    step = 50 / 19  # all joints are right from the second threshold above 5 mm on: one trapezoid rises
    assert table.loc["Depth Net", "AUC 0-50 mm"] == pytest.approx((50 - 1.5 * step) / 50)
    assert table.loc["Depth Net", "AUC 20-50 mm"] == pytest.approx(1)
    assert set(table.source) == {"sim-rhd twin, profile quick, 2 seeds"}


def test_one_seed_has_no_spread(three):
    table = pi_scores.table_3d({"RHD": open_runs("train_pi-sim-rhd", three, 1)})
    assert table.loc[("RHD", "RGB Net"), "EPE mean (mm)"] == pytest.approx(20)
    assert table.loc[("RHD", "RGB PI Net"), "95 % interval"] == "8.00 to 8.00"  # alike in all frames


def test_errors_by_joint_and_visibility_are_the_predictions_own(three):
    runs = open_runs("train_pi-sim-rhd", three, 2)
    table = pi_scores.table_3d_split({"RHD": runs}).loc["RHD"]
    parts = ["visible joints", "hidden joints", "wrist", "MCP", "PIP", "DIP", "tip"]
    assert list(table.columns) == parts and table.loc["RGB Net", "wrist"] == pytest.approx(21)
    errors = np.array([joint_errors(run.predictions["rgb"], run.predictions["true"]) for run in runs])
    assert table.loc["RGB Net", "PIP"] == pytest.approx(errors[:, :, [2, 6, 10, 14, 18]].mean())
    whole = pi_scores.table_3d({"RHD": runs}).loc["RHD"]
    aligned = [align_procrustes(run.predictions["rgb"], run.predictions["true"]) for run in runs]
    left = [epe(each, run.predictions["true"]).mean for (each, _), run in zip(aligned, runs)]
    assert whole.loc["RGB Net", "Procrustes EPE (mm)"] == pytest.approx(np.mean(left))
    assert whole.loc["RGB Net", "rotation (degrees)"] == pytest.approx(
        np.mean([angle for _, angle in aligned])
    )


def test_energy_on_the_hand_is_the_runs_mean(three):
    table = pi_figures.table_4(open_runs("train_pi-sim-rhd", three, 2), [])
    assert table.loc[("RHD, 3D", "RGB Net"), "share of energy on the hand"] == pytest.approx(0.35)
    assert table.loc[("RHD, 3D", "area of the hand"), "share of energy on the hand"] == pytest.approx(0.25)


def table_2(folder, **changes) -> pd.DataFrame:
    write_run(
        folder,
        "train_pi_2d-sim-rhd",
        arrays_2d(),
        labels=LABELS_2D,
        others={"sim-dexter-object": arrays_2d(("rgb", "rgb_pi"), 10)},
    )
    write_run(folder, "train_pi_2d-sim-stb", arrays_2d(), labels=LABELS_2D)
    return pi_scores.table_2_of(
        open_runs("train_pi_2d-sim-rhd", folder),
        open_runs("train_pi_2d-sim-stb", folder),
        "sim-dexter-object",
    )


def test_table_2_under_both_protocols(tmp_path):
    "hand3d: the mean over joints of (2, 4) and (12); mmpose: the mean over 2, 4 and 12."
    table = table_2(tmp_path / "quick")
    row = table.loc[("RHD", "Baseline Depth")]
    assert row[
        ["ours, zb, median", "ours, zb, mean", "ours, mmpose, median", "ours, mmpose, mean"]
    ].tolist() == pytest.approx([7.5, 7.5, 4, 6])
    assert table.loc[("Stereo", "RGB + PI training (0.8)"), "ours, mmpose, mean"] == pytest.approx(5 * 6)
    assert table.loc[("Dexter-Object", "RGB + PI training"), "ours, mmpose, median"] == pytest.approx(
        10 * 2 * 4
    )
    assert table.loc[("Dexter-Object", "Baseline RGB"), "ours on"] == "sim-dexter-object, trained on sim-rhd"


def test_table_2_has_every_published_row_in_order_and_nothing_published_is_ours(tmp_path):
    table = table_2(tmp_path / "quick")
    printed = published_numbers("privileged_depth", "Table 2")
    in_paper = table[table["published mean"].notna()]
    assert list(in_paper.index) == [
        (pi_scores.PRINTED[row.test], row.method)
        for row in printed[printed.metric == "2D EPE mean"].itertuples()
    ]
    assert (
        in_paper["published mean"].tolist() == printed[printed.metric == "2D EPE mean"].value.tolist()
        and in_paper["published median"].tolist() == printed[printed.metric == "2D EPE median"].value.tolist()
    )
    ours = [name for name in table.columns if name.startswith("ours, ")]
    assert (
        table.xs("Z&B", level="method")[ours].isna().all(axis=None)
        and (table.xs("Z&B", level="method")["ours on"] == "not ours").all()
    )
    more = table[table["published mean"].isna()]
    assert all(method.endswith("not in the paper") for _, method in more.index) and more[ours].notna().all(
        axis=None
    )
    assert {method for test, method in more.index if test == "Stereo"} == {
        "RGB + PI training by depth features, not in the paper",
        "RGB + PI training (1), not in the paper",
        "Baseline RGB, same steps, not in the paper",
    }


def test_table_2_without_runs_says_so():
    table = pi_scores.table_2_of([], [], "sim-dexter-object")
    assert len(table) == 12 and set(table["ours on"]) == {"no run", "not ours"}


def test_areas_beside_the_state_of_the_art_keep_apart(three):
    write_run(three, "train_pi-sim-stb", arrays_3d(rgb_pi=[30, 60]), labels={"rgb_pi": "RGB PI Net"})
    table = pi_scores.table_state_of_the_art(open_runs("train_pi-sim-stb", three))
    assert (
        list(table.index) == [*STATE_OF_THE_ART, "RGB PI Net"]
        and table.loc["PSO", "published AUC, real"] == 0.709
    )
    assert table.loc["RGB PI Net", "our AUC"] == pytest.approx(
        0.5 * (50 - 31.5789473 + 25 / 19) / (50 - 21.0526315), abs=1e-6
    )  # half the joints, from the threshold after 30 mm on
    assert table["our AUC"].notna().sum() == 1 and pd.isna(table.loc["RGB PI Net", "published AUC, real"])


def test_error_over_the_share_of_masks(tmp_path):
    for seed, factor in enumerate((1, 3)):
        write_run(
            tmp_path / "quick",
            "train_pi_2d-sim-stb",
            arrays_2d(factor=factor),
            seed,
            labels=LABELS_2D,
            energy_on_hand={"rgb_steps": 0.2, "mask_0.8": 0.4 + 0.2 * seed, "hand": 0.3},
        )
    figure = pi_scores.fig_mask_share(open_runs("train_pi_2d-sim-stb", tmp_path / "quick", 2))
    left, right, change = figure.axes
    assert np.allclose(change.lines[0].get_ydata(), np.array([0, -3, -2, -1]) * 7.5 * 2)  # from no mask
    lines = {line.get_label(): line for line in left.lines}
    assert list(lines["ours, EPE mean"].get_xdata()) == [0, 0.2, 0.8, 1]
    assert np.allclose(
        lines["ours, EPE mean"].get_ydata(), np.array([7, 4, 5, 6]) * 7.5 * 2
    )  # the networks' places, the mean of both seeds
    published = lines[f"EPE mean on Stereo, {PUBLISHED}"]
    assert list(published.get_ydata()) == [6.28, 5.801] and published.get_linestyle() == "--"
    assert [label for label, line in lines.items() if line.get_linestyle() == "--"] == [
        label for label in lines if PUBLISHED in label
    ]
    assert list(right.lines[0].get_xdata()) == [0, 0.8] and np.allclose(
        right.lines[0].get_ydata(), [0.2, 0.5]
    )
    check_looks(figure)


def test_stereos_published_errors_are_not_drawn_beside_those_of_rhd(tmp_path):
    write_run(tmp_path / "quick", "train_pi_2d-sim-rhd", arrays_2d(), labels=LABELS_2D)
    figure = pi_scores.fig_mask_share(open_runs("train_pi_2d-sim-rhd", tmp_path / "quick"))
    labels = [line.get_label() for axis in figure.axes for line in axis.lines]
    assert "ours, EPE mean" in labels and not [label for label in labels if PUBLISHED in label]


def test_2d_errors_apart_are_of_visible_joints(tmp_path):
    "A hand turned by 30 degrees, moved and twice as large has its shape; a hidden joint does not count."
    true = np.random.default_rng(0).normal(100, 20, (6, 21, 2))
    visible = np.ones((6, 21), bool)
    visible[::2, 4] = False
    turn = np.exp(1j * np.pi / 6)
    turned = 2 * turn * (true[..., 0] + 1j * true[..., 1]) + 5
    turned = np.stack([turned.real, turned.imag], -1)
    wrong = true + [3, 4]
    for each in (turned, wrong):
        each[::2, 4] += 1000
    arrays = {
        "true": true,
        "visible": visible,
        "name": np.arange(6).astype(str),
        "rgb": turned,
        "rgb_pi": wrong,
    }
    write_run(tmp_path / "quick", "train_pi_2d-sim-rhd", arrays, labels=LABELS_2D)
    table = pi_scores.table_2_split(open_runs("train_pi_2d-sim-rhd", tmp_path / "quick"))
    assert list(table.columns[:2]) == ["Procrustes EPE (px)", "rotation (degrees)"]
    assert not [name for name in table if "joints" in name or "mm" in name]
    first, second = (table.loc[("RHD", LABELS_2D[name])] for name in ("rgb", "rgb_pi"))
    assert np.allclose(first[["Procrustes EPE (px)", "rotation (degrees)"]], [0, 30], atol=1e-4)
    assert np.allclose(second, [0, 0, 5, 5, 5, 5, 5], atol=1e-4)  # the wrist and the four kinds


def test_a_kind_of_joint_that_is_never_seen_has_no_error():
    arrays = {"true": np.random.default_rng(0).normal(100, 20, (6, 21, 2)), "visible": np.ones((6, 21), bool)}
    arrays["rgb"] = arrays["true"] + [3, 4]
    arrays["visible"][:, TIPS] = False
    means = split_means([arrays, arrays], "rgb")
    assert np.isnan(means["tip"]) and means["MCP"] == pytest.approx(5)


# ---- curves


def drawn(figure) -> list:
    return [line for axis in figure.axes for line in axis.lines if not line.get_label().startswith("_")]


def all_six(folder):
    "Runs of every kind."
    for source in ("sim-rhd", "sim-stb"):
        write_run(
            folder,
            f"train_pi-{source}",
            arrays_3d(
                **{stage: [4 * place + 1, 9 * place + 2] for place, stage in enumerate(STAGES)},
                mean_pose=[50, 60],
            ),
            labels={stage: kind.label for stage, kind in STAGES.items()},
        )
    table_2(folder)
    return [
        open_runs(name, folder)
        for name in ("train_pi-sim-rhd", "train_pi-sim-stb", "train_pi_2d-sim-rhd", "train_pi_2d-sim-stb")
    ]


def curves_of(figure):
    "The axes with curves, without those of their differences."
    return [axis for axis in figure.axes if axis.get_ylabel()]


def test_no_two_curves_of_a_plot_look_alike_and_none_lies_under_a_legend(tmp_path):
    figure = pi_scores.fig_3(*all_six(tmp_path / "quick"), "sim-dexter-object")
    check_looks(figure)
    tops = [axis.get_ylim()[1] for axis in curves_of(figure)]
    highest = [max(line.get_ydata().max() for line in axis.lines) for axis in curves_of(figure)]
    assert all(most <= top <= max(1.1 * most, 1.005) for most, top in zip(highest, tops))


def test_differences_are_those_of_the_curves(tmp_path):
    figure = pi_scores.fig_panel(all_six(tmp_path / "quick")[0], "top left")
    curves, below = figure.axes
    shown = {line.get_label().rsplit(" (", 1)[0]: line.get_ydata() for line in curves.lines}
    apart = [100 * (shown[name] - shown["RGB Net, same steps"])[1:] for name in ("RGB Net", "RGB PI Net")]
    assert all(any(np.allclose(each, line.get_ydata()) for line in below.lines[1:]) for each in apart)


def test_published_is_dashed_and_says_so_and_ours_is_neither(tmp_path):
    lines = drawn(pi_scores.fig_3(*all_six(tmp_path / "quick"), "sim-dexter-object"))
    published = [line for line in lines if PUBLISHED in line.get_label()]
    assert [line.get_label().split(",")[0] for line in published] == list(STATE_OF_THE_ART)
    assert {line.get_linestyle() for line in published} == {"--"} and not [
        line for line in lines if line.get_linestyle() == "--" and line not in published
    ]
    assert max(line.get_linewidth() for line in published) < min(
        line.get_linewidth() for line in lines if line not in published
    )
    for line in published:
        method = line.get_label().split(",")[0]
        rows = published_curves("stb")[method]
        assert (
            np.array_equal(line.get_xdata(), rows.threshold_mm)
            and np.array_equal(line.get_ydata(), rows.pck)
            and line.get_label().endswith(f"({rows.published_auc[0]:.3f})")
        )


def test_six_panels_show_the_papers_networks_and_the_controls(tmp_path):
    figure = pi_scores.fig_3(*all_six(tmp_path / "quick"), "sim-dexter-object")
    shown = [
        {line.get_label().rsplit(" (", 1)[0] for line in axis.lines if PUBLISHED not in line.get_label()}
        for axis in curves_of(figure)
    ]
    stages = {kind.label for kind in STAGES.values()}
    two = {"Baseline RGB", "Baseline RGB, same steps"}
    assert shown == [
        stages,
        stages,
        {"RGB PI Net"},
        two | {"Baseline Depth", "RGB + PI training"},
        two | {"Baseline Depth", "RGB + PI training (0.2)", "RGB + PI training (0.8)"},
        {"Baseline RGB", "RGB + PI training"},
    ]
    axes = curves_of(figure)
    assert all(any("profile quick, 1 seed" in text.get_text() for text in axis.texts) for axis in axes)
    assert axes[5].texts[0].get_text().startswith(
        "tested on sim-dexter-object;\ntrained on sim-rhd twin"
    ) and axes[2].texts[0].get_text().startswith("ours: sim-stb twin")


def test_a_panel_without_runs_says_so(tmp_path):
    figure = pi_scores.fig_3([], [], [], [], "sim-dexter-object")
    assert not figure.axes and figure.get_supxlabel().count("\n") == 6
    figure = pi_scores.fig_3(all_six(tmp_path / "quick")[0], [], [], [], "sim-dexter-object")
    assert len(curves_of(figure)) == 1 and "3D PCK on RHD" not in figure.get_supxlabel()
    assert figure.get_supxlabel().startswith("no run yet:\n3D PCK on Stereo\n")


def test_mean_curve_and_band_of_several_seeds():
    figure, axis = plt.subplots()
    line = draw_ours(axis, [0, 10, 20], [[0, 0.5, 1], [0, 0.1, 0.6]], "a")
    assert (
        np.allclose(line.get_ydata(), [0, 0.3, 0.8]) and line.get_label() == "a (0.350 ± 0.212)"
    )  # areas 0.5 and 0.2
    band = axis.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == 1 and {0.1, 0.5} <= set(np.round(band[:, 1], 6))
    with pytest.raises(HandlabError, match="dashed lines are for published"):
        draw_ours(axis, [0, 1], [[0, 1]], "b", dict(linestyle="--"))
    with pytest.raises(HandlabError, match="do not match"):
        draw_ours(axis, [0, 1, 2], [[0, 1]], "b")


def test_area_is_of_the_thresholds_within():
    assert area_between([0, 10, 20, 30], [0, 0, 1, 1], 10, 30) == pytest.approx(0.75) and area_between(
        [0, 10, 20, 30], [0, 0, 1, 1]
    ) == pytest.approx(0.5)


def test_legend_is_in_the_order_of_the_areas():
    figure, axis = plt.subplots()
    for method in ("PSO", "Cai et al.", "Z&B"):
        draw_published(axis, published_curves("stb")[method], method)
    draw_ours(axis, [20, 50], [[0.9, 0.9]], "ours")
    finish_pck(axis, "title", "source")
    assert [text.get_text().split(",")[0].split(" (")[0] for text in axis.get_legend().get_texts()] == [
        "Cai et al.",
        "Z&B",
        "ours",
        "PSO",
    ]


def test_no_two_series_look_alike():
    assert len(set(STYLES.values())) == len(STYLES) - 2  # RGB alone, and the proposed method, of both papers
    assert len({STYLES[method] for method in STATE_OF_THE_ART}) == len(STATE_OF_THE_ART)
    assert all(line == "--" for name in STATE_OF_THE_ART for _, line, _ in [STYLES[name]])


# ---- figures with networks and frames


def smoke_runs(folder: Path, dataset: str):
    "A 3D and a 2D run of the smoke size with untrained networks, on the twin's frames; returns the frames."
    settings = make_settings(PiSettings, "smoke", dataset=dataset)
    frames = prepared_reader(
        reader_of(settings, "evaluation"),
        CropSettings(size=settings.crop, context=settings.context, crop="zb"),
        show_progress=False,
    )
    names, true, uv, visible = (
        np.asarray(frames.name, str),
        np.asarray(frames.joints),
        np.asarray(frames.uv),
        np.asarray(frames.visible),
    )
    wrong = {
        "rgb": [3, 4, 0],
        "rgb_pi": [0, 0, 2],
        "depth": [0, 0, 0],
        "rgb_steps": [0, 3, 0],
        "rgb_time": [3, 0, 0],
    }
    path = write_run(
        folder,
        f"train_pi-{dataset}",
        {
            "true": true,
            "visible": visible,
            "name": names,
            **{stage: true + shift for stage, shift in wrong.items()},
        },
        settings=asdict(settings),
        labels={stage: kind.label for stage, kind in STAGES.items()},
        energy_on_hand={"rgb": 0.3, "rgb_pi": 0.4, "depth": 0.5, "hand": 0.25},
    )
    if dataset == "sim-rhd":  # the controls' run, as far as its table reads it
        shifts = wrong | {"pi_shuffled": [2, 2, 0]}
        arrays = {"true": true, "visible": visible, "name": names}
        arrays |= {stage: true + shift for stage, shift in shifts.items()}
        labels = {stage: kind.label for stage, kind in ARMS.items()}
        shown = dict(settings=asdict(settings), labels=labels, source=dataset)
        write_run(folder, f"train_pi-controls-{dataset}", arrays, **shown)
    for stage in STAGES:
        (path / stage).mkdir()
        save_network(path / stage / "model.safetensors", make_network(settings, stage))
        write_losses(
            path / stage / "losses.csv",
            [
                {"step": step, "split": split, "loss": 6 / step}
                | {"pose": 1 / step, "intermediate": 2 / step, "joint": 3 / step}
                for split in ("training", "validation")
                for step in (1, 2)
            ],
        )
    others = {"sim-dexter-object": arrays_2d(("rgb", "rgb_pi", "rgb_steps"))} if dataset == "sim-rhd" else {}
    write_run(
        folder,
        f"train_pi_2d-{dataset}",
        {
            "true": uv,
            "visible": visible,
            "name": names,
            **{name: uv + [3, 4] for name in LABELS_2D},
            "rgb_pi": uv,
            "mask_0.8": uv,
        },
        settings=asdict(settings),
        labels=LABELS_2D,
        others=others,
    )
    return frames


@pytest.fixture(scope="module")
def networks_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks") / "smoke"
    return folder, smoke_runs(folder, "sim-rhd")


def test_pictures_are_of_the_frames_that_were_predicted(networks_run):
    run = open_runs("train_pi-sim-rhd", networks_run[0])[0]
    assert list(pi_figures.test_frames(run).name) == list(run.predictions["name"])
    run.predictions["name"] = run.predictions["name"][::-1]
    with pytest.raises(HandlabError, match="not of the frames"):
        pi_figures.test_frames(run)


def test_2d_hands_lie_where_the_crop_has_them(networks_run):
    "The crop's own joints, as a batch gives them, are where the truth is drawn."
    folder, frames = networks_run
    figure = pi_figures.fig_2d(open_runs("train_pi_2d-sim-rhd", folder), ("rgb", "rgb_pi"), count=4)
    assert len(figure.axes) == 4 * 4
    chosen = pi_figures.even_frames(len(frames), 4)
    batch = Batches(frames.subset(chosen), 4, augment=None, shuffle=False, modalities=("image",)).at(0)
    for column in range(4):
        truth = figure.axes[4 + column].collections[-1].get_offsets()
        assert np.allclose(np.asarray(truth), batch.uv[column].numpy(), atol=1e-3)
        assert (
            figure.axes[8 + column].get_xlabel() == "5.0 px"
            and figure.axes[12 + column].get_xlabel() == "0.0 px"
        )


def test_3d_hands_and_activations(networks_run):
    folder, frames = networks_run
    runs = open_runs("train_pi-sim-rhd", folder)
    figure = pi_figures.fig_6(runs, count=3)
    titles = [axis.get_title() for axis in figure.axes if axis.name == "3d"]
    assert len(titles) == 9 and sorted({title.splitlines()[-1] for title in titles}) == [
        "0 mm",
        "2 mm",
        "5 mm",
    ]
    assert "sim-rhd twin, profile smoke, 1 seed" in figure.get_suptitle()
    figure = pi_figures.fig_4(runs, count=3)
    assert len(figure.axes) == 5 * 3 and [figure.axes[3 * row].get_ylabel() for row in range(5)] == [
        "image",
        "RGB Net",
        "RGB PI Net",
        "Depth Net",
        "depth",
    ]


def test_diagrams_show_as_many_layers_as_the_networks_have():
    figure, rows = (
        diagram.fig_1("smoke"),
        layer_table(make_network(make_settings(PiSettings, "smoke"), "rgb"), torch.zeros(1, 3, 32, 32)),
    )
    colours = {
        name: tuple(np.round(plt.matplotlib.colors.to_rgba(colour), 3))
        for name, colour in diagram.LAYER_COLOURS.items()
    }
    bars = [
        tuple(np.round(patch.get_facecolor(), 3))
        for patch in figure.axes[0].patches
        if isinstance(patch, Rectangle) and patch.get_width() == pytest.approx(0.1)
    ]
    counts = {name: bars.count(colour) for name, colour in colours.items()}
    assert counts == {name: 2 * sum(row["layer"] == name for row in rows) for name in colours}
    published = pi_scores.published_statements("Fig. 1").published
    assert [counts[name] // 2 for name in ("Conv2d", "MaxPool2d", "Linear")] == [
        int(published[f"{name} of the base network"])
        for name in ("convolutions", "poolings", "fully connected layers")
    ]
    k = int(published["layer k whose activations Loss_Inter compares"])
    assert any(f"Loss_Inter({k})" in text.get_text() for text in figure.axes[0].texts)
    for network, image in diagram.paper_networks("smoke").values():
        features = network(image)[1]
        assert diagram.trunk_layers(network) == k and layer_table(network, torch.zeros(1, 3, 32, 32))[k - 1][
            "output"
        ] == "x".join(map(str, features.shape[1:]))


def test_forward_time_counts_the_network_alone():
    class Slow(torch.nn.Module):
        def forward(self, image):
            assert not self.training and not torch.is_grad_enabled()
            time.sleep(0.02)
            return image

    times = forward_times(Slow(), torch.zeros(1), repeats=4)
    assert len(times) == 4 and min(times) >= 20


# ---- files and missing runs


def test_missing_runs_are_named(tmp_path, capsys):
    page = pi_page(tmp_path / "quick", figures=str(tmp_path / "figures"), seeds=2)
    page.show("fig3-top-left")
    shown = capsys.readouterr().out
    assert (
        len(shown.splitlines()) == 1
        and "Fig. 3, top left" in shown
        and "train_pi-sim-rhd-seed0, train_pi-sim-rhd-seed1" in shown
        and "make figures PROFILE=quick SEEDS=2" in shown
    )
    assert not (tmp_path / "figures").exists()
    with pytest.raises(HandlabError, match="train_pi-sim-rhd-seed0"):
        pi_page(tmp_path / "quick", strict=True).show("fig3-top-left")
    with pytest.raises(HandlabError, match="no item of this name"):
        page.show("fig99")


def test_more_seeds_than_each_run_has_are_not_asked_of_the_others(tmp_path):
    runs = [f"train_pi-sim-rhd-seed{seed}" for seed in range(5)]
    assert missing_runs(["train_pi-sim-rhd"], tmp_path / "shipped", 5) == runs[:3]
    assert missing_runs(["train_pi-sim-rhd"], tmp_path / "long", 5) == runs


def test_seeds_that_are_there_are_drawn(three, tmp_path, capsys):
    pi_page(three, figures=str(tmp_path / "figures"), seeds=3).show("fig3-top-left")
    assert "train_pi-sim-rhd-seed2" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "figures").glob("pi-*")} == {
        "pi-fig3-top-left-sim-rhd-quick.svg",
        "pi-fig3-top-left-sim-rhd-quick.png",
    }
    about = json.loads((tmp_path / "figures" / "about" / "pi-fig3-top-left-sim-rhd-quick.json").read_text())
    assert about["seeds"] == 2


def test_a_run_that_was_not_tested_elsewhere_says_how(tmp_path, capsys):
    write_run(tmp_path / "quick", "train_pi_2d-sim-rhd", arrays_2d(), labels=LABELS_2D)
    page = pi_page(tmp_path / "quick", figures=str(tmp_path / "figures"))
    page.show("fig3-bottom-right")
    assert "-p other_set sim-dexter-object" in capsys.readouterr().out
    page.strict = True
    with pytest.raises(HandlabError, match="-p other_set sim-dexter-object"):
        page.show("fig3-bottom-right")


def test_findings_are_the_runs_numbers(tmp_path):
    "Every joint of the network with depth is off by 8 mm, of the control by 10 mm."
    labels = {stage: kind.label for stage, kind in STAGES.items()}
    arrays = arrays_3d(rgb=[12, 12], rgb_steps=[10, 10], rgb_pi=[8, 8])
    write_run(tmp_path / "quick", "train_pi-sim-rhd", arrays, labels=labels)
    shown = findings(pi_page(tmp_path / "quick")).data
    assert "| 3D, sim-rhd (mm) | 12.00 | 10.00 | 8.00 | -2.00 | -2.00 | -2.00 |" in shown
    assert "of RGB PI Net is 2.00 mm lower than that of RGB Net, same steps" in shown
    assert "No run has been found" in findings(pi_page(tmp_path / "nothing")).data


def test_controls_are_compared_with_rgb_and_with_depth(tmp_path, capsys):
    errors = dict(depth=[5, 5], rgb=[30, 31], rgb_steps=[28, 30], rgb_pi=[20, 24], pi_shuffled=[27, 29])
    labels = {stage: kind.label for stage, kind in ARMS.items()}
    name = "train_pi-controls-sim-rhd"
    write_run(tmp_path / "full", name, arrays_3d(**errors), labels=labels, source="sim-rhd")
    page = pi_page(tmp_path / "full", figures="")
    page.show("controls")
    table = page.tables["controls"]
    assert list(table.index) == [labels[name] for name in ("rgb", "rgb_steps", "rgb_pi", "pi_shuffled")]
    row = table.loc["PI, shuffled depth"]
    assert list(row[["mean EPE (mm)", "minus same steps", "minus PI"]]) == pytest.approx([28, -1, 6])
    assert row["PI: 95 % from"] <= 6 <= row["PI: to"]
    page.show("controls-joints")
    by_joint = page.tables["controls-joints"].loc["controls"]
    assert by_joint.loc["PI, shuffled depth", "wrist"] == pytest.approx(28)
    split = split_scores(page.find({"controls": name})["controls"], "pi_shuffled")
    for column in ("Procrustes EPE (mm)", "rotation (degrees)"):
        assert row[column] == pytest.approx(split[column])
    capsys.readouterr()
    quick = pi_page(tmp_path / "quick", figures="")  # trains no controls: no table, and no complaint
    quick.show("controls")
    assert "controls" not in quick.tables and "train_pi-controls" not in capsys.readouterr().out


def test_every_place_of_fig_3_is_a_panel_of_its_own(tmp_path):
    runs = dict(zip(("rhd", "stereo", "rhd_2d", "stereo_2d"), all_six(tmp_path / "quick")))
    for place, (key, _, title, *_) in PANELS.items():
        figure = pi_scores.fig_panel(
            runs[key], place, *(["sim-dexter-object"] if place == "bottom right" else [])
        )
        assert len(curves_of(figure)) == 1 and figure.axes[0].get_title() == title and drawn(figure)


# ---- the notebook


def run_notebook(root: Path, in_test: bool = False, **parameters) -> tuple:
    "A papermill call; what the notebook printed and the error, if there was one."
    out = root / "paper_pi.ipynb"
    environment = papermill_calls.environment(root) | ({"IN_TEST": "1"} if in_test else {})
    done = subprocess.run(
        papermill_calls.call("paper_pi", out, **parameters),
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    cells = json.loads(out.read_text())["cells"]
    return "".join(
        "".join(output.get("text", ""))
        for cell in cells
        for output in cell.get("outputs", [])
        if output["output_type"] == "stream"
    ), done


ITEMS = {
    "fig1-networks",
    "fig2-networks",
    "fig3-top-left-sim-rhd",
    "fig3-top-middle-sim-stb",
    "fig3-top-right-sim-stb",
    "fig3-bottom-left-sim-rhd",
    "fig3-bottom-middle-sim-stb",
    "fig3-bottom-right-sim-dexter-object",
    "fig3-sim-rhd-sim-stb",
    "fig4-sim-rhd",
    "fig4-sim-stb",
    "fig5-sim-stb",
    "fig6-sim-stb",
    "fig7-sim-rhd",
    "fig8-sim-stb",
    "mask-share-sim-stb",
    "mask-share-sim-rhd",
    "stands-sim-rhd-sim-stb",
}
TABLES = {
    "stands-table-sim-rhd-sim-stb",
    "scores-3d-sim-rhd-sim-stb",
    "scores-3d-joints-sim-rhd-sim-stb",
    "controls-sim-rhd",
    "controls-joints-sim-rhd",
    "fig3-top-right-areas-sim-stb",
    "fig4-energy-sim-rhd-sim-stb",
    "table2-sim-rhd-sim-stb",
    "table2-joints-sim-rhd-sim-stb",
    "time-cpu",
}


@pytest.mark.end_to_end
@pytest.mark.xdist_group("paper_pi")
def test_notebook_makes_every_item(tmp_path):
    folder, figures = tmp_path / "runs" / "smoke", tmp_path / "figures"
    for dataset in ("sim-rhd", "sim-stb"):
        smoke_runs(folder, dataset)
    printed, done = run_notebook(
        tmp_path,
        profile="smoke",
        strict=True,
        runs=folder,
        figures=figures,
        size="smoke",
        repeats=1,
        device="cpu",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = {
        f"pi-{item}-smoke.{kind}"
        for items, kinds in ((ITEMS, ("svg", "png")), (TABLES, ("csv", "md")))
        for item in items
        for kind in kinds
    } | {"pi-table1-datasets.csv", "pi-table1-datasets.md"}
    assert {path.name for path in figures.glob("pi-*")} == expected and all(
        name in printed for name in expected
    )
    assert {path.stem for path in (figures / "about").glob("pi-*.json")} == {
        name.rsplit(".", 1)[0] for name in expected
    }
    table = pd.read_csv(figures / "pi-scores-3d-sim-rhd-sim-stb-smoke.csv").set_index(["set", "network"])
    assert table.loc[("Stereo", "RGB Net"), "EPE mean (mm)"] == pytest.approx(5, abs=1e-4) and table.loc[
        ("RHD", "RGB PI Net"), "EPE median (mm)"
    ] == pytest.approx(2, abs=1e-4)


@pytest.mark.end_to_end
@pytest.mark.xdist_group("paper_pi")
def test_notebook_without_runs_names_them_and_goes_on(tmp_path):
    printed, done = run_notebook(tmp_path, in_test=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in (
        "train_pi-sim-rhd-seed0",
        "train_pi-sim-stb-seed0",
        "train_pi_2d-sim-rhd-seed0",
        "train_pi_2d-sim-stb-seed0",
    ):
        assert name in printed
    assert "pi-fig1-networks-smoke.svg" in printed and "pi-table1-datasets.csv" in printed
    printed, done = run_notebook(
        tmp_path, profile="smoke", strict=True, figures=str(tmp_path / "figures"), size="smoke", repeats=1
    )
    assert done.returncode != 0 and "no finished run of train_pi-sim-rhd-seed0" in done.stderr
    printed, done = run_notebook(tmp_path, seed=3)
    assert done.returncode != 0 and "this notebook has no such parameter" in done.stderr


def test_datasets_have_names_and_counts_only_where_a_folder_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr("handlab.results.datasets.real_root", lambda name: "")
    table = pi_figures.table_1()
    assert list(dict.fromkeys(table.index)) == ["Stereo (STB)", "RHD", "Dexter+Object", "BigHand2.2M"]
    assert not [name for name in table if "counted" in name] and "_" not in "".join(table["published in"])
    write_drawn(tmp_path, "evaluation", 3)
    counted = pi_figures.table_1({"rhd": tmp_path})
    assert counted.loc["RHD", "counted test"].tolist() == ["3"] * 3
    assert counted.loc["Stereo (STB)", "counted in"] == "no folder here"
