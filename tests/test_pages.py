"Published facts and what goes to figures/."

import csv
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from handlab.core import HandlabError, project_path, project_root, read_json, write_json
from handlab.pages import claims, paper_aligned, paper_pi
from handlab.pages.front import with_outputs
from handlab.pages.output import choose_folder, markdown_table, save_table
from handlab.pages.page import _too_few
from handlab.results.claims import World, claims_table
from handlab.results.published import curve_auc, published_curves, published_numbers
from handlab.sim.write import _Compiling


def test_published_numbers_are_the_papers():
    table = published_numbers("privileged_depth", "Table 2", "rhd").set_index(["method", "metric"]).value
    assert (table["RGB + PI training", "2D EPE mean"], table["Baseline RGB", "2D EPE mean"]) == (5.223, 7.841)
    with pytest.raises(HandlabError, match="not one of the two"):
        published_numbers("another")


def test_every_published_row_is_whole():
    for name, numbers in (
        ("published_numbers.csv", ["value"]),
        ("published_pck.csv", ["threshold_mm", "pck"]),
    ):
        rows = list(csv.DictReader((project_root() / "handlab" / "results" / name).open(encoding="utf-8")))
        assert rows and all(np.isfinite(float(row[key])) for row in rows for key in numbers)
    for benchmark, auc_range in (
        ("rhd", "20-50 mm"),
        ("stb", "20-50 mm"),
        ("dexter_object", "0-50 mm"),
        ("dexter_object", "0-100 mm"),
    ):
        for rows in published_curves(benchmark, auc_range).values():
            assert (
                rows.pck.between(0, 1).all()
                and (rows.pck.diff().dropna() >= -0.011).all()
                and rows.reference.notna().all()
            )


def test_curves_agree_with_their_published_areas():
    for benchmark in ("rhd", "stb"):
        for method, rows in published_curves(benchmark).items():
            assert curve_auc(rows) == pytest.approx(rows.published_auc[0], abs=0.012), method


def test_tables_are_written_whole(tmp_path):
    table = pd.DataFrame(
        {"a": [1.23456789, np.nan], "b": ["x", "y"]}, index=pd.Index(["one", "two"], name="row")
    )
    csv_path, text_path = save_table(table, "t", "made up", folder=tmp_path)
    pd.testing.assert_frame_equal(pd.read_csv(csv_path, index_col=0), table)
    assert (
        text_path.read_text() == markdown_table(table, "made up") + "\n"
        and "| one | 1.23 | x |" in text_path.read_text()
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.md"]


def claims_about(seeds, count, **more):
    return {"item": "claims", "paper": "both", "notebook": "claims", "seeds": seeds, "runs": count, **more}


def test_files_made_of_more_runs_are_kept(tmp_path, capsys):
    figures, own = tmp_path / "figures", tmp_path / "runs/quick/claims/figures"
    table = pd.DataFrame({"a": [1.0]}, index=pd.Index(["one"], name="row"))
    kept = claims_about(3, 6, source="sim-rhd twin, sim-stb twin", profile="quick")
    note = figures / "about/claims.json"

    def write(about):
        folder = choose_folder("claims", about, figures, own)
        save_table(table, "claims", folder=folder, about=about)
        return folder

    assert write(kept) == figures
    nothing = {key: kept[key] for key in ("item", "paper", "notebook")}
    for less in (
        nothing,
        kept | {"seeds": 1},
        kept | {"runs": 5},
        kept | {"profile": "smoke"},
        kept | {"source": "sim-rhd twin"},
    ):
        before = (figures / "claims.md").stat().st_mtime_ns
        capsys.readouterr()
        assert write(less) == own and (own / "claims.md").exists()
        said = capsys.readouterr().out
        assert said.count("\n") == 1 and said.startswith(
            f"claims: written to {own}. {figures} has it from 6 runs"
        )
        assert "3 seeds" in said and f"to replace it, delete {note}" in said
        assert (figures / "claims.md").stat().st_mtime_ns == before
    for as_much in (kept, kept | {"seeds": 4, "runs": 8}, kept | {"profile": "full", "seeds": 4, "runs": 8}):
        assert write(as_much) == figures
    (figures / "claims.md").unlink()  # what is gone need not be kept
    assert write(nothing) == figures
    write(kept)
    note.unlink()  # as the message says
    assert write(nothing) == figures


def test_pages_without_runs_leave_the_figures_alone(tmp_path, monkeypatch, capsys):
    "As in a fresh clone: the real list of figures, and no run."
    shutil.copytree(project_root() / "figures", tmp_path / "figures")
    monkeypatch.setenv("HANDLAB_ROOT", str(tmp_path))
    before = {path: path.read_bytes() for path in (tmp_path / "figures").rglob("*") if path.is_file()}
    world = World("runs/long", 1)
    assert claims.save_claims(world, claims_table(world), {})
    page = paper_aligned.aligned_page(figures="figures")
    page.show("fig2")
    assert {path: path.read_bytes() for path in (tmp_path / "figures").rglob("*") if path.is_file()} == before
    assert (tmp_path / "runs/long/claims/figures/claims-long.md").exists()
    assert (tmp_path / "runs/quick/paper_aligned/figures/aligned-fig2.svg").exists()
    assert capsys.readouterr().out.count(": written to runs/") == 2


def test_every_tracked_figure_says_of_how_many_runs_it_is_made():
    notes = [read_json(path) for path in (project_root() / "figures/about").glob("*.json")]
    assert notes and all(note["runs"] >= note.get("seeds", 0) for note in notes)


def test_saved_outputs_do_not_say_where_the_project_lies():
    cell = {"id": "a", "cell_type": "code", "source": ["show()"], "outputs": []}
    line = {"output_type": "stream", "name": "stdout", "text": [f"{project_root()}/runs/a: it is missing\n"]}
    (filled,) = with_outputs({"cells": [cell]}, {"cells": [cell | {"outputs": [line]}]})["cells"]
    assert filled["outputs"][0]["text"] == ["runs/a: it is missing\n"]


def test_saved_outputs_do_not_say_what_only_the_first_run_on_a_machine_does(capsys):
    _Compiling().on_start(None)
    said = {"output_type": "stream", "name": "stdout", "text": [capsys.readouterr().out]}
    both = said | {"text": [*said["text"], "Fig. 4\n"]}
    cell = {"id": "a", "cell_type": "code", "source": ["show()"], "outputs": []}
    (filled,) = with_outputs({"cells": [cell]}, {"cells": [cell | {"outputs": [said, both]}]})["cells"]
    assert said["text"][0] and [output["text"] for output in filled["outputs"]] == [["Fig. 4\n"]]


def test_a_stream_that_arrived_in_pieces_is_saved_as_one():
    "How often a kernel flushes depends on timing; a page that is made again must not differ."

    def printed(*texts, name="stdout"):
        return [{"output_type": "stream", "name": name, "text": text} for text in texts]

    figure = {"output_type": "display_data", "data": {}, "metadata": {}}
    pieces = [*printed(["one\n", "tw"]), *printed("!", name="stderr"), *printed("o\n", ["three\n"]), figure]
    cell = {"id": "a", "cell_type": "code", "source": ["show()"], "outputs": []}
    ran = cell | {"outputs": [*pieces, *printed("four\n")]}
    (filled,) = with_outputs({"cells": [cell]}, {"cells": [ran]})["cells"]
    assert filled["outputs"] == [*printed(["one\n", "two\n", "three\n"]), figure, *printed(["four\n"])]
    assert ran["outputs"][0]["text"] == ["one\n", "tw"]  # the executed copy stays as it was


@pytest.mark.parametrize(
    "path", sorted(project_path("nbs").glob("paper_*.ipynb")), ids=lambda path: path.name
)
def test_the_papers_saved_texts_hold_no_path_of_a_machine(path):
    outputs = [output for cell in read_json(path)["cells"] for output in cell.get("outputs", ())]
    texts = "".join("".join(output.get("text", ())) for output in outputs)
    assert texts and not re.search(r"/(tmp|work|root|home|Users)/", texts)


@pytest.mark.parametrize("path", sorted(project_path("nbs").glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_has_one_title(path):
    "In what those that people run say and show, the title alone is a heading of the first level."
    cells = [cell for cell in read_json(path)["cells"] if cell["cell_type"] != "raw"]
    shown = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    shown += ["".join(output.get("data", {}).get("text/markdown", "")) for output in outputs]
    titles = [line for text in shown for line in text.splitlines() if line.startswith("# ")]
    assert len(titles) == 1, titles


def test_an_item_that_is_left_out_names_what_it_compares_and_what_is_there():
    page = paper_aligned.aligned_page("runs/shipped", figures="")
    (item,) = (item for item in page.items if item.name == "fig8")
    names, _ = item.wanted(page)
    assert _too_few(item, names, {"S1": [], "S4": []}) == (
        f"Fig. 8: not drawn, since it compares 3 kinds of runs or more and only 2 of its {len(names)} kinds "
        "can be read here: train_aligned-S1-sim-rhd, train_aligned-S4-sim-rhd"
    )
    assert {"S4-labelled0.25", "S4-labelled0.25-alone"} < set(names)  # named, though they are not trained


@pytest.mark.parametrize("make", [paper_pi.pi_page, paper_aligned.aligned_page])
def test_every_run_that_is_not_trained_is_named_once_where_it_is_first_wanted(make, tmp_path):
    page = make(tmp_path / "quick", seeds=2)
    names = list(dict.fromkeys(page.run_names))
    write_json(tmp_path / "quick" / f"{names[0]}-seed0/metrics.json", {"source": "sim-rhd"})
    table = page.untrained()
    none, few = (
        [name for cell in table[column] for name in cell.partition("; ")[2].split(", ") if name]
        for column in table
    )
    assert len(none) == len(set(none)) == len(names) - 1 and all(
        any(each in name for name in names) for each in none
    )
    assert [cell for cell in table.iloc[:, 1] if cell][0].endswith("(1)") and not few
    shown = page.origin().data
    assert (
        f"{len(none)} of {len(names)} kinds of runs are not trained yet; 1 has fewer than 2 seeds." in shown
    )
    assert max(map(len, re.split(r"[ \n]", shown.partition("|---")[0]))) < 60  # what cannot be broken


def test_lines_on_shipped_runs_end_between_words(capsys):
    page = paper_aligned.aligned_page("runs/shipped", figures="")
    names = {name: name for name in page.run_names}
    page.open({**names, "never": "train_aligned-never-sim-rhd"}, place="Fig. 8")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1 and max(map(len, lines)) <= 88
    assert " ".join(line.strip() for line in lines).startswith("Fig. 8: ")


@pytest.mark.parametrize("page", [paper_pi.pi_page, paper_aligned.aligned_page])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(size="Full"), "size 'Full': networks have no such size; did you mean full?"),
        (dict(device="gpu"), "device 'gpu': there is no such device"),
        (dict(device="cuda:99"), "device 'cuda:99': this machine has"),
    ],
)
def test_an_option_that_cannot_be_is_an_error_before_the_first_item(page, options, said):
    with pytest.raises(HandlabError, match=said):
        page("runs/shipped", options)
    assert page("runs/shipped", dict(size="quick", device="cpu"), figures="").options["size"] == "quick"


def _printed(cell) -> int:
    "Lines of text that a cell has printed."
    outputs = [output for output in cell.get("outputs", ()) if output["output_type"] == "stream"]
    return sum("".join(output["text"]).count("\n") for output in outputs)


@pytest.mark.parametrize("path", sorted(project_path("nbs").glob("*.ipynb")), ids=lambda path: path.name)
def test_logs_are_folded_in_the_notebooks_that_people_run(path):
    "A saved log of many lines is folded, so that results are near; JupyterLab unfolds it when the cell runs."
    for cell in read_json(path)["cells"]:
        folded = cell["metadata"].get("jupyter", {}).get("outputs_hidden", False)
        assert folded or _printed(cell) <= 12, "".join(cell["source"])[:100]
