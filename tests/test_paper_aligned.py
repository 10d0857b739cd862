"Paper 2's tables and figures, item by item, on tiny made-up runs whose numbers are known by hand."

import json
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import papermill_calls
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from looks import check_looks
from scipy.spatial.transform import Rotation

from handlab.aligned import diagram, smoothness
from handlab.aligned.comparison import TABLE_1
from handlab.aligned.experiment import AlignedSettings
from handlab.aligned.explorer import practice_run
from handlab.aligned.strategies import make_recipe
from handlab.core import HandlabError, project_root, read_json, write_json
from handlab.hand.metrics import auc, scores_tips, thresholds_100
from handlab.hand.skeleton import BONES
from handlab.pages import aligned_figures as figures
from handlab.pages import aligned_scores as scores
from handlab.pages.page import every_run, split_scores
from handlab.pages.paper_aligned import ITEMS, aligned_page, findings
from handlab.results.runs import source_line
from handlab.settings import make_settings

matplotlib.use("Agg")
THRESHOLDS = np.linspace(0, 50, 20)


def made_up(folder, variant, seed, lengths, dataset="sim-rhd", steps=10, **more):
    "A run whose joints are all off by the same length in each frame."
    path = Path(folder) / f"train_aligned-{variant}-{dataset}-seed{seed}"
    lengths = np.asarray(lengths, float)
    true = np.random.default_rng(0).normal(0, 50, (len(lengths), 21, 3))
    path.mkdir(parents=True)
    np.savez(
        path / "predictions.npz",
        true=true,
        visible=np.ones(true.shape[:2], bool),
        name=np.array([f"{dataset}/{frame}" for frame in range(len(lengths))]),
        RGB=true + lengths[:, None, None] * [0, 0.6, 0.8],
    )
    curve = (lengths[:, None] < THRESHOLDS).mean(0)
    write_json(
        path / "metrics.json",
        dict(
            experiment="train_aligned",
            strategy=variant.split("-")[0],
            source=dataset,
            seed=seed,
            settings=dict(steps=steps),
            thresholds=THRESHOLDS,
            times=dict(step=100.0 * (1 + seed)),
            values=dict(RGB=dict(epe_mean=lengths.mean(), pck=curve)),
            **more,
        ),
    )
    rows = [
        "step,split,epe,loss",
        f"0,validation,{lengths.mean() + 20},",
        "5,training,,3.5",
        f"10,validation,{lengths.mean()},",
    ]
    (path / "losses.csv").write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def shelf(tmp_path):
    "Two seeds of S1, S4 and S4's weak regimes; one seed of S3 and of STB."
    folder = tmp_path / "quick"
    for seed in (0, 1):
        made_up(
            folder,
            "S1",
            seed,
            [20 + seed, 40 + seed],
            real=dict(frames=7, values=dict(RGB=dict(epe_mean=30.0 + seed))),
        )
        made_up(
            folder,
            "S4",
            seed,
            [18 + seed, 38 + seed],
            real=dict(frames=7, values=dict(RGB=dict(epe_mean=20.0 + seed))),
        )
        made_up(folder, "S4-labelled0.25", seed, [24 + seed, 36 + seed])
        made_up(folder, "S4-labelled0.25-alone", seed, [32 + seed, 48 + seed])
    made_up(folder, "S3", 0, [19, 41])
    for variant in ("S1", "S4"):
        made_up(folder, variant, 0, [7, 9], "sim-stb")
    return folder


@pytest.fixture
def page(shelf, tmp_path):
    return aligned_page(shelf, seeds=2, figures=str(tmp_path / "figures"))


def opened(page, variants, dataset="sim-rhd", needs=()):
    "The runs of some variants, as an item opens them."
    return page.open(scores.variant_runs(variants, dataset), needs)


def styles(axis):
    "Label and line style of every named line."
    return {
        line.get_label(): line.get_linestyle() for line in axis.lines if not line.get_label().startswith("_")
    }


# ---------------------------------------------------------------- opening
def test_missing_run_is_named_in_one_line(page, capsys):
    found = opened(page, ["S1", "S3", "R2CP"], "sim-rhd")
    (line,) = capsys.readouterr().out.splitlines()
    assert (
        "train_aligned-S3-sim-rhd-seed1" in line
        and "train_aligned-R2CP-sim-rhd-seed0" in line
        and "make figures PROFILE=quick SEEDS=2" in line
        and "S1" not in line
    )
    assert {variant: len(runs) for variant, runs in found.items()} == {"S1": 2, "S3": 1}
    assert opened(page, ["S1", "R2CP"], "sim-rhd", needs=["R2CP"]) == {}


def test_strict_makes_an_error_of_it(shelf):
    with pytest.raises(HandlabError, match="train_aligned-R2CP-sim-rhd-seed0.*make figures"):
        opened(aligned_page(shelf, strict=True), ["S1", "R2CP"])


def test_runs_of_different_lengths_are_not_compared(page):
    made_up(page.folder, "R2CP", 0, [1, 2], steps=11)
    with pytest.raises(HandlabError, match="different lengths"):
        opened(page, ["S1", "R2CP"], "sim-rhd")


def test_frames_and_seeds_must_be_the_same(page):
    runs = opened(page, ["S1", "S3"], "sim-rhd")
    assert {variant: errors.shape for variant, errors in scores.run_errors(runs).items()} == {
        "S1": (1, 2),
        "S3": (1, 2),
    }
    made_up(page.folder, "R2HP", 0, [1, 2, 3])
    with pytest.raises(HandlabError, match="not those of the other runs"):
        scores.run_errors(opened(page, ["S1", "R2HP"], "sim-rhd"))


# ---------------------------------------------------------------- tables
def test_table_of_strategies(page):
    table = scores.table_strategies(opened(page, ["S1", "S4"], "sim-rhd"))
    s1, s4 = table.loc["S1: R2P"], table.loc["S4: RC2CHP, PoE"]
    assert s1["mean EPE (mm)"] == pytest.approx(30.5) and s4["mean EPE (mm)"] == pytest.approx(28.5)
    assert s4[["minus S1", "95 % from", "to"]].astype(float).tolist() == pytest.approx(
        [-2, -2, -2]
    )  # the same difference in every frame and seed
    assert s4["each seed"] == "28.00, 29.00" and s4["on 7 real RHD frames (mm)"] == 20.5
    assert [row["published, real RHD"] for row in (s1, s4)] == [16.61, 13.14]


def test_interval_knows_frames_that_disagree(page):
    made_up(page.folder, "R2CP", 0, [25, 45])
    made_up(page.folder, "R2HP", 0, [10, 44])  # 10 mm better in one frame, 4 worse in the other
    row = scores.table_variants(opened(page, ["S1", "R2HP"], "sim-rhd"), "S1").loc["S2: R2HP"]
    assert row["minus S1"] == pytest.approx(-3) and row["95 % from"] < -3 < 0 < row["to"]


def test_state_of_the_art_says_whose_numbers(page):
    table = scores.table_state_of_the_art(
        {name: opened(page, ["S4", "S1"], name) for name in ("sim-rhd", "sim-stb")}
    )
    ours = table[table.index.str.startswith("ours")]
    assert ours.loc["ours, S4: RC2CHP, PoE", ["RHD", "STB"]].astype(float).tolist() == pytest.approx(
        [28.5, 8]
    )
    assert all(
        "sim-rhd twin" in text and "sim-stb twin" in text and "published" not in text
        for text in ours["measured on"]
    )
    published = table.drop(ours.index)
    assert len(published) == 5 and all("published, real" in text for text in published["measured on"])
    assert published.loc["Aligned latent spaces S4", ["RHD", "STB"]].astype(float).tolist() == [13.14, 7.05]


def test_weak_supervision(page):
    variants = scores.weak_variants(page.folder, "sim-rhd")
    quarter = ["S4-labelled0.25", "S4-labelled0.25-alone"]
    assert variants == ["S4-labelled0.05", "S4-labelled0.05-alone", *quarter]  # those of quick are asked for
    runs = opened(page, ["S1", "S4", *quarter], "sim-rhd")
    row = scores.table_weak(runs).loc[25.0]
    assert row["labelled frames alone (mm)"] == pytest.approx(40.5) and row[
        "with the unlabelled (mm)"
    ] == pytest.approx(30.5)
    assert (
        row["gain (%)"] == pytest.approx(100 * 10 / 40.5)
        and row["difference (mm)"] == pytest.approx(-10)
        and row["minus S1 (mm)"] == pytest.approx(0)
    )
    axis = figures.fig_weak_of(runs).axes[0]
    drawn = {container.get_label(): container.lines[0].get_xydata().tolist() for container in axis.containers}
    assert np.allclose(drawn["labelled frames alone"], [[25, 40.5], [100, 28.5]]) and np.allclose(
        drawn["with the unlabelled frames"], [[25, 30.5], [100, 28.5]]
    )
    assert any(
        line.get_label() == "S1, all labels" and np.allclose(line.get_ydata(), 30.5) for line in axis.lines
    )


def test_errors_by_joint_stand_beside_every_table_of_errors(page):
    by_name = {item.name: item for item in ITEMS}
    of_errors = {
        "table1",
        "viewpoint",
        "table2",
        "fig8",
        "supplement-fig3",
        "section_e",
        "controls",
        "real-frames",
    }
    assert {name.removesuffix("-joints") for name in by_name if name.endswith("-joints")} == of_errors
    runs = page.open(*by_name["table2-joints"].wanted(page))
    table = by_name["table2-joints"].make(runs, page)
    assert list(table.index) == [
        f"{name}; {dataset}" for dataset in ("sim-rhd", "sim-stb") for name in ("S4: RC2CHP, PoE", "S1: R2P")
    ]
    row = table.loc["S4: RC2CHP, PoE; sim-rhd"]  # every joint is off by the same vector
    assert row[["visible joints", "wrist", "tip"]].tolist() == pytest.approx([28.5] * 3)
    assert row[["Procrustes EPE (mm)", "rotation (degrees)"]].tolist() == pytest.approx([0, 0], abs=1e-3)


def test_distances_of_clouds_are_the_runs_means(page):
    floors = {"resampled": dict(emd=8.0, chamfer=7.0), "mean_cloud": dict(emd=38.0, chamfer=31.0)}
    for seed, emd in enumerate((20.0, 22.0)):
        measured = {**floors, "RGB": dict(emd=emd, chamfer=21.0)}
        made_up(page.folder, "R2CP", seed, [1, 2], clouds=measured)
    runs = opened(page, ["S1", "R2CP"], "sim-rhd")
    table = scores.table_cloud_distances(runs)
    assert table["EMD (mm)"].tolist() == [8, 21, 38] and table.index[1] == "S2: R2CP: decoded from RGB"
    with pytest.raises(HandlabError, match="S1: none of its runs has measured clouds"):
        scores.table_cloud_distances({"S1": runs["S1"]})


def test_clouds_that_show_fingers_are_shown_where_their_run_is(page, capsys):
    "Beside S4 among the ablations and the distances, and as pictures from both codes."
    by_name, bones = {item.name: item for item in ITEMS}, "S4-basis-bones"
    tables = ("supplement-fig3-table", "supplement-fig3-joints", "fig3-distances")
    assert not any(bones in by_name[name].wanted(page)[0] for name in tables)
    page.show("fig3-fingers")
    assert capsys.readouterr().out == ""
    floors = {"resampled": dict(emd=8.0, chamfer=7.0), "mean_cloud": dict(emd=38.0, chamfer=31.0)}
    made_up(page.folder, bones, 0, [17, 35], clouds=floors | {"RGB": dict(emd=24.0, chamfer=25.0)})
    assert all(bones in by_name[name].wanted(page)[0] for name in tables)
    page.show("supplement-fig3-table")
    row = page.tables["ablations"].loc["S4, basis points, points on bones"]
    assert row[["mean EPE (mm)", "minus S4"]].tolist() == pytest.approx([26, -2])
    page.show("fig3-distances")
    assert page.tables["fig3-distances"]["EMD (mm)"].to_dict() == {
        "floor: the true cloud, drawn again": 8.0,
        "S4, basis points, points on bones: decoded from RGB": 24.0,
        "one cloud for all hands": 38.0,
    }


def test_distances_are_of_every_run_with_clouds_that_is_there(page):
    item = next(item for item in ITEMS if item.name == "fig3-distances")
    wanted = ["R2CP", "R2CHP", "S3", "S4"]
    assert list(item.wanted(page)[0]) == wanted
    made_up(page.folder, "alternating-same_time", 0, [1, 2], steps=30)
    made_up(page.folder, "S4-apart", 0, [1, 2])
    assert list(item.wanted(page)[0]) == [*wanted, "S4-apart", "alternating-same_time"]


def test_pictures_of_clouds_on_bones_say_what_they_are(tmp_path):
    path = tmp_path / "smoke" / "train_aligned-S4-basis-bones-sim-rhd-seed0"
    parts = dict(cloud_encoder="basis", cloud_decoder="bones")
    practice_run(make_settings(AlignedSettings, "smoke", strategy="S4", **parts), path)
    page = aligned_page(tmp_path / "smoke", figures="")
    for name, code in (("fig3-fingers", "from RGB alone"), ("fig3-fingers-own_code", "from the code of the")):
        (item,) = (item for item in ITEMS if item.name == name)
        figure = item.make(page.open(*item.wanted(page)), page)
        text = figure.texts[-1].get_text()
        assert "S4, basis points, points on bones; sim-rhd twin" in text and code in text
        assert len(figure.axes) == 5 * 8


# ---------------------------------------------------------------- curves
@pytest.mark.parametrize("benchmark, title", [("rhd", "RHD"), ("stb", "STB")])
def test_published_curves_are_dashed_and_named(page, benchmark, title):
    runs = opened(page, ["S1", "S4"], f"sim-{benchmark}")
    axis = figures.fig_pck_of(runs, title, benchmark).axes[0]
    drawn = styles(axis)
    assert sum(style == "--" for style in drawn.values()) == len(figures.COMPARED[benchmark])
    assert all((style == "--") == ("published, real data" in label) for label, style in drawn.items())
    ours = next(line for line in axis.lines if line.get_label().startswith("S1: R2P"))
    assert np.allclose(
        ours.get_ydata(), np.mean([run.metrics["values"]["RGB"]["pck"] for run in runs["S1"]], 0)
    )
    assert any(source_line(every_run(runs)) in text.get_text() for text in axis.texts)


def test_without_viewpoint_correction_is_not_taken_for_published(page):
    made_up(page.folder, "S1-own_view", 0, [30, 50])
    drawn = styles(
        figures.fig_pck_of(opened(page, ["S1", "S1-own_view"], "sim-rhd"), "RHD", methods=[]).axes[0]
    )
    assert set(drawn.values()) == {"-", ":"} and not any("published" in label for label in drawn)


def test_tip_curves_give_the_named_areas():
    generator = np.random.default_rng(1)
    joints = np.full((12, 21, 3), np.nan)
    joints[:, [4, 8, 12, 16, 20]] = generator.normal(0, 40, (12, 5, 3))
    joints[3, [4, 8, 12, 16]] = np.nan  # one tip left: not counted
    prepared = SimpleNamespace(
        joints=joints,
        visible=np.ones((12, 21), bool),
        name=[f"{'Grasp' if frame < 6 else 'Pinch'}/{frame}" for frame in range(12)],
    )
    predicted = (
        np.nan_to_num(joints) * generator.uniform(0.5, 2, (12, 1, 1))
        + generator.normal(0, 15, (12, 21, 3))
        + 200
    )
    groups = [name.split("/")[0] for name in prepared.name]
    for alignment, curve in figures.tip_curves(predicted, prepared).items():
        assert auc(thresholds_100(), curve) == pytest.approx(
            scores_tips(predicted, joints, prepared.visible, alignment, groups)["auc_0_100"]
        )
    tips = {kind: [curve] for kind, curve in figures.tip_curves(predicted, prepared).items()}
    both = {"S1": tips, "S4": tips}
    figure = figures.fig_tips(both, "12 frames of made-up", "nothing")
    apart = [line.get_ydata() for line in figure.axes[1].lines if len(line.get_xdata()) > 2]
    assert [np.ptp(each) for each in apart] == [0, 0]  # S4 less S1, at either scale
    check_looks(figure)
    drawn = styles(
        figures.fig_tips(
            {"S4": {name: [curve] for name, curve in figures.tip_curves(predicted, prepared).items()}},
            "12 frames of made-up",
            "nothing",
        ).axes[0]
    )
    assert (
        sum("scale per frame" in label for label in drawn)
        == sum("scale per sequence" in label for label in drawn)
        == 1
    )
    assert all((style == "--") == ("published, real data" in label) for label, style in drawn.items())


def test_convergence_is_the_validation_error(page):
    figure = figures.fig_convergence(opened(page, ["S1", "S4"], "sim-rhd"))
    steps, time = (
        [line.get_xydata() for line in axis.lines if line.get_label() == "S4: RC2CHP, PoE"][0]
        for axis in (figure.axes[0], figure.axes[-1])
    )
    assert np.allclose(steps, [[0, 48.5], [10, 28.5]]) and np.allclose(
        time[:, 0], [0, 10 * 150 / 60000]
    )  # 100 and 200 ms a step


# ---------------------------------------------------------------- diagrams
@pytest.mark.parametrize(
    "strategy, encoders, alignments, posteriors",
    [
        ("S1", {("R", "R")}, set(), 1),
        ("R2CHP", {("R", "R")}, set(), 1),
        ("S3", {("R", "R"), ("R", "joint"), ("C", "joint")}, {("joint", "R")}, 2),
        ("S4", {("R", "R"), ("C", "C")}, {("R", "joint"), ("C", "joint")}, 3),
        ("RD2DHP", {("R", "R"), ("D", "D")}, {("R", "joint"), ("D", "joint")}, 3),
    ],
)
def test_diagrams_are_the_recipes(strategy, encoders, alignments, posteriors):
    recipe = make_recipe(strategy)
    edges = diagram.model_edges(recipe)
    assert (
        set(edges["encoders"]) == encoders
        and set(edges["alignments"]) == alignments
        and len(edges["decoders"]) == posteriors * len(recipe.decoders)
    )
    axis = diagram.fig_models({strategy: strategy}).axes[0]
    shaded = sum(patch.get_facecolor()[0] < 0.99 for patch in axis.patches)
    assert shaded == len(recipe.encoders) + len(recipe.decoders) and len(axis.patches) - shaded == posteriors
    arrows = [text.arrow_patch for text in axis.texts if getattr(text, "arrow_patch", None)]
    assert sum(arrow.get_linestyle() == "--" for arrow in arrows) == len(alignments)
    assert sum(matplotlib.colors.to_hex(arrow.get_edgecolor()) == "#cc2222" for arrow in arrows) == len(
        encoders
    )


# ---------------------------------------------------------------- smoothness
def test_linear_decoder_goes_straight():
    weights = torch.randn(8, 63, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    codes = torch.randn(20, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    walks = smoothness.pose_walks(
        lambda codes: codes.to(weights.dtype) @ weights, codes, smoothness.random_pairs(20, 9), 16
    )
    measured = smoothness.walk_measures(walks)
    assert (
        walks.shape == (9, 17, 21, 3)
        and np.allclose(measured["path_ratio"], 1, atol=1e-5)
        and np.allclose(measured["largest_step"], 1, atol=1e-4)
    )
    assert np.allclose(smoothness.straight_walks(walks), walks, atol=1e-5)


def test_bent_way_by_hand():
    "The code's square is decoded: from -1 to 2 a joint goes 1 back to 0 and 4 forth, 5 for a straight 3."

    def decoder(codes):
        return (codes**2)[:, :1].repeat(1, 63) * torch.tensor([1.0, 0, 0]).repeat(21)

    walks = smoothness.pose_walks(
        decoder, torch.tensor([[-1.0], [2.0]]), np.array([[0, 1]]), 3
    )  # codes -1, 0, 1, 2: x = 1, 0, 1, 4
    measured = smoothness.walk_measures(walks)
    assert measured["path_ratio"][0] == pytest.approx(5 / 3) and measured["largest_step"][0] == pytest.approx(
        3 / (5 / 3)
    )
    assert smoothness.walk_profiles(walks)["step"].tolist() == pytest.approx([3 / 5, 3 / 5, 9 / 5])


def test_straight_joints_shrink_a_turning_hand():
    ends = np.zeros((2, 21, 3))
    for parent, child in BONES:
        ends[0, child], ends[1, child] = ends[0, parent] + [1, 0, 0], ends[1, parent] + [0, 1, 0]
    walk = smoothness.straight_walks(np.stack([ends[0], ends[0], ends[1]])[None])
    assert smoothness.bone_drift(walk)[0].tolist() == pytest.approx([0, 100 * (1 - np.cos(np.pi / 4)), 0])
    assert smoothness.bone_drift(3 * walk)[0, 1] == pytest.approx(
        smoothness.bone_drift(walk)[0, 1]
    )  # no matter how large the hand is
    growing = np.stack([ends[0], 1.5 * ends[0], 2 * ends[0]])
    assert np.allclose(smoothness.bone_drift(growing), 0)  # from a small hand to a large one


def test_nearest_pose_and_its_millimetres():
    real = np.stack([np.zeros((21, 3)), np.full((21, 3), 10.0)])
    poses = np.zeros((1, 3, 21, 3))
    poses[0, 1, :, 0] = 2
    poses[0, 2, :, 0] = 1
    assert smoothness.nearest_distance(poses, real)[0].tolist() == pytest.approx([0, 2, 1])
    measured = smoothness.walk_measures(poses, real, 30.0)
    assert measured["from_real"][0] == pytest.approx(60) and measured["from_real_ends"][0] == pytest.approx(
        15
    )


def test_pairs_belong_together():
    pairs = smoothness.random_pairs(50, 300)
    assert np.array_equal(pairs, smoothness.random_pairs(50, 300)) and not np.array_equal(
        pairs, smoothness.random_pairs(50, 300, seed=1)
    )
    assert (
        pairs.min() >= 0
        and pairs.max() < 50
        and (pairs[:, 0] != pairs[:, 1]).all()
        and len(np.unique(pairs)) > 45
    )


def test_smoothness_table_by_hand():
    measured = {
        row: {"measures": {"path_ratio": np.array([values])}, "profiles": {}}
        for row, values in (("S1", [1.5, 2.5]), ("S4", [1.0, 2.0]), ("joints", [1.0, 1.0]))
    }
    row = scores.table_smoothness(measured).loc[smoothness.MEASURES["path_ratio"]]
    assert (
        row["S1: R2P"] == 2
        and row["S4: RC2CHP, PoE"] == 1.5
        and row[["S4 minus S1", "S1: 95 % from", "S1: to"]].tolist() == pytest.approx([-0.5, -0.5, -0.5])
    )
    assert row["S4 minus joints"] == 0.5


@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=3), st.integers(0, 1000), st.floats(0.01, 100))
def test_surface_variation_of_a_box_however_it_lies(edges, seed, scale):
    "The corners vary by half an edge along each axis: the smallest edge squared over the sum of the squares."
    box = np.array(list(np.ndindex(2, 2, 2))) * edges
    turn = Rotation.random(random_state=seed).as_matrix()
    variation = smoothness.surface_variation(scale * (box @ turn.T) + [3, -7, 11], neighbours=8)
    assert variation == pytest.approx(
        np.full(8, min(edges) ** 2 / np.square(edges).sum()), rel=1e-5, abs=1e-9
    )


def test_surface_variation_looks_at_neighbours_alone():
    generator = np.random.default_rng(0)
    floor = np.c_[generator.uniform(-1, 1, (300, 2)), np.zeros(300)]
    apart = np.concatenate([floor, generator.uniform(-1, 1, (300, 3)) + [100, 0, 0]])
    variation = smoothness.surface_variation(apart)
    assert np.allclose(variation[:300], 0, atol=1e-9) and variation[300:].mean() > 0.1
    rough = floor + generator.normal(0, 0.05, floor.shape)
    assert (
        smoothness.surface_variation(rough).mean()
        > smoothness.surface_variation(floor + (rough - floor) / 5).mean()
        > 0
    )
    assert np.isfinite(smoothness.surface_variation(np.zeros((20, 3)))).all()  # a decoder that has collapsed


def test_table_of_clouds_by_hand():
    measures = {
        "put_in": np.array([[0.2, 0.4], [0.2, 0.4]]),
        "reconstructed": np.array([[0.1, 0.3], [0.1, 0.3]]),
    }
    row = scores.table_clouds({"sim-rhd": {"clouds": {"measures": measures}}}).loc["sim-rhd"]
    assert row.tolist() == pytest.approx([0.3, 0.2, 0.1, 0.1, 0.1])


# ---------------------------------------------------------------- what goes to figures/
def test_items_are_written_with_what_they_are(page, tmp_path):
    runs = opened(page, ["S1", "S4"], "sim-rhd")
    by_name = {item.name: item for item in ITEMS}
    page.keep(by_name["table1-strategies"], scores.table_strategies(runs), runs)
    page.keep(by_name["fig6"], figures.fig_pck_of(runs, "RHD"), runs)
    page.keep(by_name["supplement-fig2"], diagram.fig_models(), runs)
    names = {path.name for path in (tmp_path / "figures").iterdir() if path.is_file()}
    assert names == {
        f"aligned-{name}"
        for name in (
            "table1-strategies-sim-rhd-quick.csv",
            "table1-strategies-sim-rhd-quick.md",
            "fig6-sim-rhd-quick.png",
            "fig6-sim-rhd-quick.svg",
            "supplement-fig2-sim-dexter-object-quick.png",
            "supplement-fig2-sim-dexter-object-quick.svg",
        )
    }
    assert (
        "sim-rhd twin, profile quick, 2 seeds"
        in (tmp_path / "figures" / "aligned-table1-strategies-sim-rhd-quick.md").read_text()
    )
    about = read_json(tmp_path / "figures" / "about" / "aligned-fig6-sim-rhd-quick.json")
    assert (about["item"], about["notebook"], about["seeds"], about["source"]) == (
        "Fig. 6",
        "paper_aligned",
        2,
        "sim-rhd twin",
    )
    assert (
        read_json(tmp_path / "figures" / "about" / "aligned-supplement-fig2-sim-dexter-object-quick.json")[
            "source"
        ]
        == "sim-dexter-object; trained on sim-rhd twin"
    )
    with pytest.raises(HandlabError, match="no item"):
        page.show("fig99")


def cells():
    return [
        "".join(cell["source"])
        for cell in json.loads((project_root() / "nbs" / "paper_aligned.ipynb").read_text())["cells"]
        if cell["cell_type"] == "code"
    ]


def test_every_item_of_the_paper_has_one_cell():
    shown = [name for cell in cells() for name in re.findall(r'page\.show\("([^"]+)"\)', cell)]
    assert len(shown) == len(set(shown)) and set(shown) == {item.name for item in ITEMS}
    assert {
        *(f"Fig. {number}" for number in range(1, 9)),
        "Table 1",
        "Table 2",
        *(f"supplement, Fig. {number}" for number in (1, 2, 3)),
        "supplement, section E",
    } <= {item.place for item in ITEMS}


def test_findings_are_the_runs_numbers(page):
    "S4 is 2 mm better in every frame; with the unlabelled frames 8 and 12 mm better."
    shown = findings(page).data
    assert "| S4 minus S1 | sim-rhd | 28.50 | 30.50 | -2.00 | -2.00 | -2.00 | -3.47 |" in shown
    assert "S4 (aligned by product of experts) is 2.00 mm lower than that of S1 (RGB alone)" in shown
    assert "with minus without the unlabelled frames | sim-rhd | 30.50 | 40.50 | -10.00 |" in shown
    assert "No run has been found" in findings(aligned_page(page.folder / "nothing")).data


# ---------------------------------------------------------------- whole
@pytest.fixture(scope="module")
def practised(tmp_path_factory):
    "S1 and S4, trained for seconds."
    folder = tmp_path_factory.mktemp("practised") / "smoke"
    for strategy in ("S1", "S4"):
        practice_run(
            make_settings(AlignedSettings, "smoke", strategy=strategy),
            folder / f"train_aligned-{strategy}-sim-rhd-seed0",
        )
    return folder


def test_pictures_say_where_they_come_from(practised):
    run = opened(aligned_page(practised), ["S4"], "sim-rhd")["S4"][0]
    for figure in (
        figures.fig_walks_of(run, 1, count=3),
        figures.fig_walks_of(run, 1, "train", 3),
        figures.fig_reconstructions_of(run, 4),
    ):
        assert "S4: RC2CHP, PoE; sim-rhd twin, profile smoke, seed 0" in figure.texts[-1].get_text()


def test_test_time_is_the_same_network(practised):
    table = scores.table_test_time(opened(aligned_page(practised), ["S1", "S4"], "sim-rhd"), repeats=1)
    assert (
        table["weights when tested"].nunique() == 1
        and table.loc["S1: R2P", "weights in training"]
        == table["weights when tested"].iloc[0]
        < table.loc["S4: RC2CHP, PoE", "weights in training"]
    )


def test_equal_time_trains_the_others_longer(practised, tmp_path):
    runs = opened(aligned_page(practised), ["S4"], "sim-rhd")["S4"]
    write_json(
        tmp_path / "times.json",
        {name: dict(step=5.0 if name == "S1" else 10.0, batch=1.0, emd=0.0) for name in TABLE_1},
    )
    errors, table = scores.train_for_equal_time(runs, tmp_path, show=False)
    assert list(errors) == list(TABLE_1) and table["steps"].tolist() == [16, 8, 8, 8, 8, 8]
    split = split_scores(runs, "RGB")
    assert table.loc["S4", "rotation (degrees)"] == split["rotation (degrees)"] > 0
    assert (table["Procrustes EPE (mm)"] < table["mean EPE (mm)"]).all()
    assert read_json(tmp_path / "time" / "S1-seed_0" / "finished.json")["steps"] == 16
    assert (
        np.allclose(errors["S4"], scores.run_errors({"S4": runs})["S4"])
        and not (tmp_path / "time" / "S4-seed_0").exists()
    )


def papermill(folder, **parameters):
    "Run the notebook; returns (exit code, everything printed, its text outputs)."
    done = subprocess.run(
        papermill_calls.call("paper_aligned", folder / "paper_aligned.ipynb", **parameters),
        cwd=project_root(),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    found = [
        output
        for cell in json.loads((folder / "paper_aligned.ipynb").read_text())["cells"]
        for output in cell.get("outputs", [])
    ]
    return (
        done.returncode,
        done.stdout + done.stderr,
        "\n".join(
            "".join(output.get("text") or output.get("data", {}).get("text/markdown") or "")
            for output in found
        ),
    )


@pytest.mark.end_to_end
def test_notebook_goes_on_with_what_is_there(practised, tmp_path):
    before = sorted(path.name for path in (project_root() / "figures").iterdir())
    code, printed, text = papermill(
        tmp_path,
        profile="smoke",
        runs=practised,
        out=tmp_path / "paper_aligned",
        figures=tmp_path / "figures",
    )
    assert code == 0, printed[-3000:]
    assert (
        "train_aligned-R2HP-sim-rhd-seed0" in text
        and "train_aligned-S4-apart-sim-rhd-seed0" in text
        and "13.14" in text
    )
    metrics = read_json(tmp_path / "paper_aligned" / "metrics.json")
    assert metrics["runs"] == ["train_aligned-S1-sim-rhd-seed0", "train_aligned-S4-sim-rhd-seed0"] and set(
        metrics["values"]["smoothness"]
    ) == {"S1", "S4", "joints", "clouds"}
    assert metrics["values"]["smoothness"]["joints"]["path_ratio"]["mean"] == pytest.approx(1)
    with np.load(tmp_path / "paper_aligned" / "smoothness.npz") as arrays:
        assert arrays["S4/path_ratio"].shape == (1, 20) and arrays["clouds/put_in"].shape == arrays[
            "clouds/reconstructed"
        ].shape == (1, 16)
    assert (
        sorted(path.name for path in (project_root() / "figures").iterdir()) == before
    )  # the page's own folder is left alone
    assert (tmp_path / "figures" / "aligned-table1-strategies-sim-rhd-smoke.csv").exists()


@pytest.mark.end_to_end
def test_strict_notebook_names_what_is_missing(practised, tmp_path):
    code, printed, _ = papermill(
        tmp_path,
        profile="smoke",
        runs=practised,
        out=tmp_path / "paper_aligned",
        figures=tmp_path / "figures",
        strict=True,
    )
    assert (
        code != 0
        and "HandlabError" in printed
        and "train_aligned-R2HP-sim-rhd-seed0" in printed
        and not (tmp_path / "paper_aligned" / "metrics.json").exists()
    )
