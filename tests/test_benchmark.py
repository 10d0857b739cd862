"The benchmark's rows: what is asked, machines side by side, new processes, names that do not exist."

import numpy as np
import pandas as pd
import pytest
import torch

from handlab.core import HandlabError, project_root
from handlab.graph import benchmark
from handlab.graph.benchmark import Row
from handlab.settings import notebook_parameters

ABOUT = {"machine": "A (R) CPU @ 2 GHz", "instructions": "avx2", "cores": 2, "torch": "2"}


def table(*rows):
    found = [{**vars(row), "reached": row.reached} for row in rows]
    return pd.DataFrame(found).set_index(["what", "against"])


def test_what_is_asked_can_be_an_upper_or_a_lower_limit():
    assert Row("a", "b", 1.6, "<= 1.6").reached == 1
    assert Row("a", "b", 3.2, "<= 1.6").reached == 0.5
    assert Row("a", "b", 5, ">= 10").reached == 0.5
    assert np.isnan(Row("a", "b", asked=">= 10").reached)  # not measured


def test_rows_measured_again_replace_their_old_lines_and_others_stay(tmp_path):
    first, second = Row("a", "b", 2.0, "<= 1"), Row("c", "d", note="not measured: no GPU")
    path = benchmark.keep(table(first, second), tmp_path, ABOUT)
    assert path.name == "a-r-cpu-2-ghz-avx2.csv"
    benchmark.keep(table(Row("a", "b", 0.5, "<= 1")), tmp_path, ABOUT)
    (kept,) = benchmark.kept(tmp_path).values()
    assert sorted(kept.index) == [("a", "b"), ("c", "d")]
    assert kept.loc[("a", "b"), "value"] == 0.5 and kept.loc[("a", "b"), "reached"] == 2
    assert kept.loc[("c", "d"), "note"] == "not measured: no GPU"
    assert set(kept["machine"]) == {ABOUT["machine"]} and set(kept["instructions"]) == {"avx2"}


def test_machines_lie_side_by_side_with_what_each_reaches(tmp_path):
    benchmark.keep(table(Row("a", "b", 0.5, "<= 1"), Row("c", "d")), tmp_path, ABOUT)
    benchmark.keep(table(Row("a", "b", 2.0, "<= 1")), tmp_path, {**ABOUT, "machine": "Other"})
    shown = benchmark.show_all(tmp_path)
    assert shown.loc[("a", "b")].tolist() == ["<= 1", "0.5 yes", "2 no"]
    assert shown.loc[("c", "d")].tolist() == ["", "not measured", ""]
    assert "| 2 no" in (tmp_path / "README.md").read_text()
    assert {path.name for path in tmp_path.glob("reached.*")} == {"reached.svg", "reached.png"}


def test_a_new_process_has_the_instructions_that_are_asked_for():
    assert benchmark.in_child("restrict", "AVX2") == benchmark.restrict("AVX2")
    if "avx2" in benchmark.hardware()["instructions"]:
        assert benchmark.in_child("machine_limit", None, "AVX2") == "AVX2"


def test_what_fails_in_a_new_process_is_one_line():
    with pytest.raises(HandlabError, match="benchmark, restrict: .*unknown set 'AVX3'"):
        benchmark.in_child("restrict", "AVX3")


def test_unknown_groups_are_errors_and_the_notebook_names_all():
    with pytest.raises(HandlabError, match="profile 'Quick': there is no such profile; did you mean quick"):
        benchmark.Place("", profile="Quick")
    with pytest.raises(HandlabError, match="there is no group 'stepps'; did you mean steps"):
        benchmark.chosen_groups("stepps")
    source = (project_root() / "nbs/benchmark.ipynb").read_text(encoding="utf-8")
    assert ", ".join(benchmark.GROUPS) in source
    assert "rows" in notebook_parameters(project_root() / "nbs/benchmark.ipynb")[0]


def test_sizes_are_compared_per_sample(tmp_path):
    place = benchmark.Place(str(tmp_path), small=64, frames=128, steps=2)
    rows = {row.what: row.value for row in benchmark.size_rows(place)}
    assert rows["128 frames: bytes of a frame"] == pytest.approx(1, abs=0.1)
    assert all(0.1 < value < 10 for value in rows.values())


def test_without_a_gpu_its_rows_are_not_measured():
    rows = benchmark.gpu_rows(benchmark.Place("", torch.device("cpu")))
    assert len(rows) == 6 and all(np.isnan(row.value) and "no GPU" in row.note for row in rows)
