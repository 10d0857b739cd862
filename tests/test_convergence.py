"Whether trainings stand, from their logs."

import numpy as np
import pytest

from handlab.core import HandlabError, write_json
from handlab.results.convergence import (
    convergence_sentence,
    curves_of,
    fall_at_end,
    fig_convergence_of,
    longer_sentence,
    table_convergence,
    verdict_of,
)
from handlab.results.runs import RunFolder


def make_run(folder, name, curves, **metrics):
    path = folder / name
    for stage, errors in curves.items():
        (path / stage).mkdir(parents=True)
        rows = [f"{100 * step},validation,{error}" for step, error in enumerate(errors)]
        (path / stage / "losses.csv").write_text("\n".join(["step,split,epe", "0,training,", *rows]) + "\n")
    write_json(path / "metrics.json", {"source": "sim-rhd", "seed": 0, **metrics})
    return RunFolder(path)


def test_the_fall_is_that_of_a_line_through_the_last_quarter():
    steps = np.arange(0, 401, 25)
    assert fall_at_end(steps, 100 - steps / 10) == pytest.approx(10 / 70)
    bump = np.where(steps < 300, 500.0, 70 - (steps - 300) / 10)  # what was before does not count
    assert fall_at_end(steps, bump) == pytest.approx(10 / 70)
    noise = np.random.default_rng(0).normal(0, 1, 400)
    assert abs(fall_at_end(np.arange(400), 30 + noise)) < 0.02
    assert np.isnan(fall_at_end([100], [3.0])) and verdict_of(np.nan) == "too few points"
    assert [verdict_of(fall) for fall in (0.02, 0.0199, -0.02)] == ["falls", "stands", "rises"]


def test_every_network_has_a_row_and_seeds_are_counted(tmp_path):
    falling, flat = 100 * 0.9 ** np.arange(9), np.full(9, 20.0)
    runs = [
        make_run(
            tmp_path,
            "train_pi-sim-rhd-seed0",
            {"rgb": falling, "rgb_pi": flat},
            stages={"rgb": {}, "rgb_pi": {}},
        ),
        make_run(tmp_path, "train_pi-sim-rhd-seed1", {"rgb": flat, "rgb_pi": flat}, seed=1),
        make_run(tmp_path, "train_aligned-S4-sim-rhd-seed0", {"": falling}),
    ]
    assert list(curves_of(runs[0])) == list(curves_of(runs[1])) == ["rgb", "rgb_pi"]
    table = table_convergence(runs)
    assert table["stands"].to_dict() == {
        ("RGB Net", "sim-rhd"): "1 of 2",
        ("RGB PI Net", "sim-rhd"): "2 of 2",
        ("S4", "sim-rhd"): "0 of 1",
    }
    assert set(table.unit) == {"mm"}
    assert (
        "Of 5 trained networks, 3 had stopped improving at the end, 2 still " in convergence_sentence(runs)
        and len([axis for axis in fig_convergence_of(runs).axes if axis.lines]) == 3
    )
    figure = fig_convergence_of(runs)
    assert figure.get_supylabel() == "validation error (mm)" and "(" not in figure.axes[0].get_title()
    mixed = fig_convergence_of([*runs, make_run(tmp_path, "train_pi_2d-sim-rhd-seed0", {"rgb": flat})])
    assert mixed.get_supylabel() == "validation error (mm or px)"
    assert sorted(axis.get_title()[-3:-1] for axis in mixed.axes if axis.lines) == ["mm", "mm", "mm", "px"]
    assert convergence_sentence([]) == "" and table_convergence([]).empty
    with pytest.raises(HandlabError, match="no run has a log"):
        fig_convergence_of([])


def test_more_steps_of_the_same_network_are_told_with_their_fall(tmp_path):
    curves = {"rgb": [40.0, 30.0, 20.0], "rgb_pi": [20.0, 19.0], "rgb_steps": [20.0, 19.0]}
    run = make_run(tmp_path, "train_pi-sim-rhd-seed0", curves | {"rgb_time": [20.0, 19.5, 19.0, 18.0]})
    other = make_run(tmp_path, "train_pi_2d-sim-stb-seed0", {"rgb": [9.0, 8.0], "rgb_steps": [8.4]})
    said = longer_sentence([run, other])
    assert "RGB Net on sim-rhd (200 steps) 5.0 % lower after 100 and 10.0 % lower after 300; " in said
    assert said.endswith("Baseline RGB on sim-stb (100 steps) 5.0 % higher after 0.")
    assert longer_sentence([make_run(tmp_path, "train_aligned-S4-sim-rhd-seed0", {"": [2.0, 1.0]})]) == ""


def test_the_quarter_before_has_its_own_fall():
    steps = np.arange(0, 401, 25)
    errors = np.where(steps <= 300, 100 - steps / 10, 70.0)
    assert fall_at_end(steps, errors) == pytest.approx(0)
    assert fall_at_end(steps, errors, 0.75) == pytest.approx(10 / 80)
