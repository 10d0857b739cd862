"Published facts and what goes to figures/."

import csv

import numpy as np
import pandas as pd
import pytest

from handlab.core import HandlabError, project_root
from handlab.pages.output import markdown_table, save_table
from handlab.results.published import curve_auc, published_curves, published_numbers


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
