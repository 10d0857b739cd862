"The pages of shipped runs: numbers and frames of the fresh ones, and plain lines for what is not shipped."

import re
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import handlab
from handlab.aligned.experiment import AlignedSettings
from handlab.aligned.explorer import practice_run
from handlab.core import HandlabError, project_root, read_json, write_json
from handlab.data.prepare import CropSettings, crop_sample
from handlab.graph import plan
from handlab.hand.camera import crop_matrix, transform_uv
from handlab.hand.metrics import epe
from handlab.pages import aligned_figures, manifest, output, overview, paper_aligned
from handlab.pages.aligned_scores import opened, smoothness_of, table_test_time
from handlab.pages.page import _smaller_links
from handlab.pages.paper_aligned import aligned_page
from handlab.pages.paper_pi import pi_page
from handlab.results import runs, ship
from handlab.results.claims import World
from handlab.results.evidence import Missing
from handlab.results.measures import _shares_of
from handlab.results.runs import RunFolder, figures_folder, make_command, open_runs, origin_line, profile_of
from handlab.settings import make_settings
from handlab.sim.rhd import SimRHD
from handlab.train.frames import FramesOnDemand, SomeFrames

NAMES = {strategy: f"train_aligned-{strategy}-sim-rhd" for strategy in ("S1", "S4")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "S1 and S4, trained for seconds and measured, and the same shipped."
    fresh, shipped = (tmp_path_factory.mktemp("project") / name for name in ("smoke", "shipped"))
    for strategy, name in NAMES.items():
        practice_run(make_settings(AlignedSettings, "smoke", strategy=strategy), fresh / f"{name}-seed0")
    page = aligned_page(fresh, figures="")
    runs = page.find(NAMES)
    smoothness_of(runs)  # as many pairs as the page has
    aligned_figures.measure_tips(runs, "sim-dexter-object")
    for run in ship.finished_in(fresh):
        assert ship.ship(run, shipped)
    return fresh, shipped


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "A machine on which no frame is prepared."
    monkeypatch.setenv("HANDLAB_ROOT", str(tmp_path))
    return tmp_path


def runs_of(folder):
    return {key: open_runs(name, folder) for key, name in NAMES.items()}


def test_the_pages_numbers_are_those_of_the_fresh_runs(folders, elsewhere):
    pages = [aligned_page(folder, figures="") for folder in folders]
    for page in pages:
        page.show("table1-strategies")
        page.show("smoothness-table")
    fresh, shipped = (page.tables for page in pages)
    apart = (fresh["table1"].select_dtypes(float) - shipped["table1"].select_dtypes(float)).abs()
    assert len(apart) == 2 and (apart.drop(columns="rotation (degrees)").fillna(0) < 0.01).all(axis=None)
    assert (apart["rotation (degrees)"] < 0.2).all()  # of hands that are hardly learned
    pd.testing.assert_frame_equal(fresh["smoothness_table"], shipped["smoothness_table"])
    assert not (elsewhere / "data").exists()  # no frame was drawn


def test_pictures_of_shipped_runs_draw_the_frames_they_show_alone(folders, elsewhere, monkeypatch):
    drawn = []
    take = SomeFrames.__getitem__
    monkeypatch.setattr(
        SomeFrames, "__getitem__", lambda self, i: drawn.append(self.rows[i]) or take(self, i)
    )
    run = runs_of(folders[1])["S4"][0]
    figure = aligned_figures.fig_reconstructions_of(run, 3)
    assert len(figure.axes) == 15 and 3 <= len(drawn) <= 6  # the first frame tells the arrays' shapes
    drawn.clear()
    aligned_figures.fig_walks_of(run, 1, split="train", count=3)
    assert 2 <= len(drawn) <= 3
    plt.close("all")


def test_frames_that_are_not_the_runs_are_refused(folders, elsewhere):
    run = runs_of(folders[1])["S4"][0]
    _, data, _ = opened(run)
    known = data.test.known
    data.test.known = known | {"true": known["true"] + np.float32(0.1)}
    with pytest.raises(HandlabError, match="these frames of sim-rhd differ from those of the run"):
        data.test.subset([0, 2])
    data.test.known = known
    some = data.test.subset([0, 2])
    assert np.abs(np.asarray(some.joints) - known["true"][[0, 2]]).max() < 0.01


def test_prepared_frames_are_taken_where_they_are(folders):
    "On the machine of the training: nothing is drawn."
    run = runs_of(folders[1])["S4"][0]
    _, data, _ = opened(run)
    whole = data.test.subset(slice(None))
    assert len(whole.meta["files"]) and whole.meta["count"] == len(data.test)
    assert isinstance(data.test, FramesOnDemand) and len(data.train) < len(data.train.reader)


def test_a_shipped_network_predicts_what_it_predicted(folders):
    "Half the digits of the weights change predictions by far less than the error they have."
    fresh, shipped = (handlab.load(str(folder / f"{NAMES['S4']}-seed0")) for folder in folders)
    crops = torch.rand(8, 3, fresh.size, fresh.size, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.no_grad():
        poses = [network(crops).pose for network in (fresh, shipped)]
    assert (poses[0] - poses[1]).norm(dim=-1).mean() < 0.01  # hand scales: 0.3 mm
    run = RunFolder(folders[1] / f"{NAMES['S4']}-seed0")
    mean = epe(run.predictions["RGB"], run.predictions["true"], None).mean
    assert mean == pytest.approx(run.metrics["values"]["RGB"]["epe_mean"], abs=0.005)


def test_times_need_no_weights(folders, elsewhere):
    runs = {key: each[0] for key, each in runs_of(folders[1]).items()}
    (runs["S4"].path / "model.safetensors").rename(folders[1] / "aside")
    table = table_test_time({key: [run] for key, run in runs.items()}, repeats=1)
    assert (table["one image (ms)"] > 0).all()
    (folders[1] / "aside").rename(runs["S4"].path / "model.safetensors")


def test_what_is_not_shipped_costs_a_line(folders, capsys):
    page = aligned_page(folders[1], figures="")
    page.show("table1-strategies")
    page.show("fig3-clouds")
    said = " ".join(capsys.readouterr().out.split())  # lines end between words
    assert (
        "4 runs are not shipped yet: train_aligned-R2HP-sim-rhd (seed 0)" in said
        and "make figures" not in said
    )
    assert "clouds.npz: the file is not there; it is not shipped" in said
    with pytest.raises(Missing, match="activations"):
        _shares_of(runs_of(folders[1])["S4"][0])


def test_a_page_says_what_it_read(folders):
    runs = {
        name: [run for each in runs_of(folder).values() for run in each]
        for name, folder in zip("fs", folders)
    }
    commit = runs["f"][0].metrics["commit"]
    assert origin_line(runs["f"], folders[0]) == f"2 runs made here: profile smoke, commit {commit}"
    line = origin_line(runs["s"], folders[1])
    assert line.startswith(f"2 shipped runs: profile smoke, commit {commit}, on ") and line.endswith(
        "(estimated)"
    )
    assert origin_line([], "runs/shipped") == "no finished run in runs/shipped"
    assert World(str(folders[1])).profile == "smoke" and aligned_page(folders[1]).figures == "figures"
    assert figures_folder("runs/quick") == "runs/quick/figures"
    assert make_command("runs/shipped") == make_command("papers") == "make papers"


def test_a_figure_of_a_larger_profile_replaces_the_smaller_ones(tmp_path):
    about = {"item": "Fig. 5", "paper": "privileged depth", "notebook": "paper_pi", "seeds": 3, "runs": 3}
    table = pd.DataFrame({"a": [1.0]})
    for name in ("pi-fig5-sim-stb-quick", "pi-fig5-sim-rhd-quick", "pi-fig50-sim-stb-quick"):
        output.save_table(table, name, folder=tmp_path, about=about | {"profile": "quick"})
    below = tmp_path / "quick"
    for name in ("pi-fig5-sim-stb-quick", "pi-fig7-sim-rhd-quick"):
        output.save_table(table, name, folder=below, about=about | {"profile": "quick"})
    output.save_table(table, "pi-fig5-sim-stb-long", folder=tmp_path, about=about | {"profile": "long"})
    assert sorted(path.stem for path in below.glob("*.csv")) == ["pi-fig7-sim-rhd-quick"]
    assert sorted(path.name for path in tmp_path.glob("*.csv")) == [
        "pi-fig5-sim-rhd-quick.csv",
        "pi-fig5-sim-stb-long.csv",
        "pi-fig50-sim-stb-quick.csv",
    ]
    assert not (tmp_path / "about/pi-fig5-sim-stb-quick.json").exists()
    output.save_table(table, "pi-fig5-sim-stb-quick", folder=tmp_path, about=about | {"profile": "quick"})
    assert (tmp_path / "pi-fig5-sim-stb-long.csv").exists()  # a smaller one removes nothing


def test_a_smaller_profile_keeps_what_the_shipped_runs_do_not_make(tmp_path):
    "In a folder of its own, which is replaced as a whole; pages and the manifest link to it."
    about = {"item": "Fig. 7", "paper": "made up", "notebook": "paper_pi", "source": "sim-stb twin"}
    made, figures = tmp_path / "runs/quick/figures", tmp_path / "figures"

    def save(folder, name, profile):
        more = {"profile": profile, "seeds": 1} if profile else {}
        output.save_table(pd.DataFrame({"a": [1.0]}), name, folder=folder, about=about | more)

    for name in ("pi-fig7-sim-stb-quick", "pi-fig7-sim-rhd-quick", "pi-fig7-joints-sim-stb-quick"):
        save(made, name, "quick")
    save(made, "pi-fig1", "")
    save(figures, "pi-fig7-sim-rhd-long", "long")
    save(figures, "pi-fig1", "")
    save(figures / "quick", "pi-fig9-sim-stb-quick", "quick")  # of an earlier time
    manifest.main([str(figures / "quick"), "--take", str(made)])
    kept = ["pi-fig7-joints-sim-stb-quick", "pi-fig7-sim-stb-quick"]
    assert sorted(path.stem for path in (figures / "quick").glob("*.csv")) == kept
    assert sorted(path.stem for path in (figures / "quick/about").iterdir()) == kept
    manifest.main([str(figures)])
    assert "the profile `quick`: [quick](quick/README.md)" in (figures / "README.md").read_text()
    page = pi_page("runs/shipped", figures=str(figures))
    assert _smaller_links(page, "fig7").count("](") == 1
    assert "pi-fig7-sim-stb-quick.md" in _smaller_links(page, "fig7") and not _smaller_links(page, "fig1")
    save(figures, "pi-fig7-sim-stb-long", "long")  # replaces the smaller one
    manifest.main([str(figures)])
    assert "(pi-fig7-sim-stb-quick.csv)" not in (figures / "quick/README.md").read_text()
    with pytest.raises(HandlabError, match="no such folder"):
        manifest.take_items(tmp_path / "runs/quik/figures", figures / "quick")


def test_no_tracked_figure_of_a_smaller_profile_stands_beside_those_of_shipped_runs():
    figures, profile = project_root() / "figures", profile_of("runs/shipped")
    notes = [read_json(path) for path in figures.glob("about/*.json")]
    assert notes and {note.get("profile", profile) for note in notes} == {profile}
    for lesser in manifest.smaller_folders(figures):
        for about in manifest.items(figures / lesser):
            assert about["profile"] == lesser and about["seeds"] == 1
            assert not (figures / "about" / f"{about['name']}.json".replace(lesser, profile)).exists()


def test_every_link_of_the_tracked_lists_of_figures_leads_to_a_file():
    figures = project_root() / "figures"
    lists = [figures / "README.md", *figures.glob("*/README.md")]
    links = [each.parent / name for each in lists for name in re.findall(r"\]\(([^)#]+)\)", each.read_text())]
    assert len(links) > 100 and not [str(link) for link in links if not link.exists()]


def test_the_papers_are_a_graph_without_trainings(tmp_path, monkeypatch):
    shipped = tmp_path / "runs/shipped"
    for module in (plan, runs):
        monkeypatch.setattr(module, "project_path", lambda path: tmp_path / path)
    with pytest.raises(HandlabError, match="no run is shipped yet"):
        plan.shipped_seeds()
    for name in ("train_pi-sim-rhd-seed0", "train_aligned-S4-sim-rhd-seed2"):
        write_json(shipped / name / "metrics.json", {"source": "sim-rhd", "profile": "long"})
    assert plan.shipped_seeds() == 3 and runs.runs_to_show() == (runs.SHIPPED, 3)
    assert runs.runs_to_show("quick") == ("runs/quick", 1)  # none is there
    trainings, pages = plan.whole_graph(plan.PAPERS, 3)
    assert not trainings and [page.name for page in pages] == [*plan.PAGES, plan.REPORT]
    given = plan.page_parameters(pages[1], plan.PAPERS)
    assert given["runs"] == "runs/shipped" and given["figures"] == "figures" and not given["strict"]
    assert given["out"] == "runs/papers/paper_aligned" and given["seeds"] == 3
    assert plan.shipped_files(pages[0]) == ["runs/shipped/train_pi-sim-rhd-seed0/metrics.json"]
    assert len(plan.shipped_files(pages[2])) == 2
    assert plan.files_made(plan.PAPERS, 3)["claims"] == "runs/papers/claims/finished.json"
    assert read_json(shipped / "train_pi-sim-rhd-seed0/metrics.json")["profile"] == "long"


def test_times_are_measured_once_per_machine_and_set_of_runs(folders, tmp_path, monkeypatch):
    "Another pass would differ by chance, and so would the tracked table; another machine measures anew."
    made = []

    def measured(runs, page):
        made.append(runs)
        return pd.DataFrame(
            {"ms": [1.0 / 3 + len(made)], "passes": [3]}, index=pd.Index(["S1"], name="strategy")
        )

    (item,) = (item for item in paper_aligned.ITEMS if item.name == "test_time")
    page = aligned_page(folders[0], figures=str(tmp_path))
    page.items = (replace(item, make=measured),)
    page.show("test_time")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    page.show("test_time")
    assert len(made) == 1 and len(before) == 3
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    monkeypatch.setattr("handlab.pages.page.hardware", lambda: {"processor": "another"})
    page.show("test_time")
    assert len(made) == 2 and page.tables["test_time"].loc["S1", "ms"] == pytest.approx(7 / 3)


def test_the_front_page_shows_the_first_hands_in_view():
    seen = np.ones((5, 21), bool)
    seen[0, 3] = seen[2, 20] = False
    run = SimpleNamespace(name="r", predictions={"visible": seen, "name": np.arange(5)})
    assert overview.first_in_view(run, 2).tolist() == [1, 3]
    with pytest.raises(HandlabError, match="only 3 of its test frames"):
        overview.first_in_view(run, 4)


def test_the_front_pages_hands_lie_where_the_labels_do(tmp_path, monkeypatch):
    "A left hand, mirrored, and a right one; the labels' pixels are not projected joints."
    run = RunFolder(project_root() / overview.RUN)
    monkeypatch.setenv("HANDLAB_ROOT", str(tmp_path))  # where no frame is prepared
    rows, reader = [1, 80], SimRHD("evaluation", 100, seed=0)
    images, places = overview.hands_in_crops(run, np.array(rows), edge=96)
    crops = [crop_sample(reader[row], CropSettings(size=96, context=1.0)) for row in rows]
    assert {bool(crop["mirrored"]) for crop in crops} == {True, False}
    for crop, image, uv in zip(crops, images, places["true"]):
        assert (image == crop["image"]).all()
        assert np.abs(uv - transform_uv(crop_matrix(crop["box"], 96), crop["uv"])).max() < 0.1
    apart = np.linalg.norm(places["rgb_pi"] - places["true"], axis=-1).mean(1)
    assert (apart > 1).all() and (apart < 30).all()
