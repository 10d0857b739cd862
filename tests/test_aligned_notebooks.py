"""The notebooks of the second paper, run as a person runs them, and the explorer's page and widgets."""

import base64
import gzip
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import headless
import matplotlib.pyplot as plt
import numpy as np
import papermill_calls
import pytest
import torch
from PIL import Image

from handlab.aligned.decoders import BoneCloudDecoder, CloudDecoder, LayeredCloudDecoder
from handlab.aligned.experiment import AlignedSettings, decode_all, make_network, open_run, run_name
from handlab.aligned.explorer import choose_pairs, practice_run
from handlab.aligned.figures import decode_walk, draw_walks, make_walk
from handlab.aligned.live import LiveExplorer, in_jupyterlab
from handlab.aligned.page import (
    LEAD,
    TITLE,
    add_photographs,
    atlas_walk,
    explorer_page,
    finger_angles,
    fused,
    gesture,
    make_atlas,
    note_on,
    umap_places,
    with_umap,
    write_explorer,
)
from handlab.core import HandlabError, project_root, read_json, write_json
from handlab.graph.code import closure
from handlab.hand.skeleton import example_hand, normalise
from handlab.hand.solid import capsules, hand_faces, hand_vertices
from handlab.settings import make_settings

SMOKE = make_settings(AlignedSettings, "smoke")
CLOUD_DECODERS = {"folding": CloudDecoder, "layers": LayeredCloudDecoder, "bones": BoneCloudDecoder}


def papermill(notebook, folder, **parameters):
    "Run a notebook of the project; returns (exit code, everything printed, executed notebook)."
    target = Path(folder) / f"{notebook}.ipynb"
    done = subprocess.run(
        papermill_calls.call(notebook, target, **parameters),
        cwd=project_root(),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    return (
        done.returncode,
        done.stdout + done.stderr,
        json.loads(target.read_text()) if target.exists() else None,
    )


def outputs(notebook):
    "All that a notebook's cells printed or displayed as text."
    found = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return "\n".join(
        "".join(
            output.get("text")
            or output.get("data", {}).get("text/markdown")
            or output.get("data", {}).get("text/plain")
            or ""
        )
        for output in found
    )


def pictures(notebook):
    return sum(
        "image/png" in output.get("data", {})
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
    )


# ---------------------------------------------------------------- the notebooks
@pytest.mark.end_to_end
@pytest.mark.parametrize(
    "parameters",
    [dict(strategy="S4"), dict(strategy="RD2DHP", labelled_share=0.5, viewpoint_correction=False)],
)
def test_training_notebook(tmp_path, parameters):
    code, printed, notebook = papermill(
        "train_aligned", tmp_path, profile="smoke", out=tmp_path / "run", **parameters
    )
    assert code == 0, printed[-3000:]
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert {name: metrics["settings"][name] for name in parameters} == parameters
    encoders = {"S4": ["RGB", "cloud"], "RD2DHP": ["RGB", "depth"]}[parameters["strategy"]]
    assert list(metrics["values"]) == [*encoders, "mean_pose"] and all(
        scores["epe_mean"] > 0 for scores in metrics["values"].values()
    )
    assert (metrics["times"]["emd"] > 0) == (parameters["strategy"] == "S4") and 0 <= metrics["times"][
        "emd_share"
    ] < 1
    with np.load(tmp_path / "run" / "predictions.npz") as arrays:
        assert arrays["RGB"].shape == arrays["mean_pose"].shape == (16, 21, 3)
    text = outputs(notebook)
    assert (
        f"*sim-rhd, {parameters['strategy']}, profile smoke, seed 0*" in text
        and "| mean training pose |" in text
        and "of which the EMD" in text
    )
    measured = {"S4": {"RGB", "cloud", "resampled", "mean_cloud"}, "RD2DHP": set()}[parameters["strategy"]]
    assert set(metrics["clouds"]) == measured and set(metrics["latent"]["kl"]) == {
        "R",
        encoders[1][0].upper(),
    }
    assert pictures(notebook) >= 6 and "widgets" not in notebook["metadata"]


@pytest.mark.end_to_end
def test_training_notebook_on_other_datasets(tmp_path):
    code, printed, notebook = papermill(
        "train_aligned",
        tmp_path,
        profile="smoke",
        out=tmp_path / "run",
        strategy="R2HP",
        dataset="sim-stb",
        other_set="sim-dexter-object",
    )
    assert code == 0, printed[-3000:]
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert metrics["source"] == "sim-stb" and list(metrics["other"]) == ["RGB", "mean_pose"]
    assert metrics["other"]["RGB"]["root_scale"]["epe_mean"] < metrics["other"]["RGB"]["absolute"]["epe_mean"]
    assert "sim-dexter-object, trained on sim-stb" in outputs(notebook)


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    "notebook, parameters, words",
    [
        ("train_aligned", dict(stratgey="S4"), "parameter 'stratgey'"),
        ("train_aligned", dict(strategy="S9"), "strategy 'S9'"),
        ("explore_latent", dict(pear=3), "parameter 'pear'"),
        ("explore_latent", dict(run="runs/nowhere"), "it holds no finished run"),
        ("explore_latent", dict(encoder="Q"), "encoder 'Q'"),
        ("explore_latent", dict(photograph="nowhere.jpg"), "nowhere.jpg: there is no such file"),
        ("predict", dict(images="hand.png", box="1 2 3"), "parameter box='1 2 3'"),
    ],
)
def test_wrong_parameter_is_named(tmp_path, notebook, parameters, words):
    code, printed, _ = papermill(
        notebook,
        tmp_path,
        **{
            **(
                dict(profile="smoke", out=tmp_path / "run")
                if notebook == "train_aligned"
                else dict(page=tmp_path / "page.html")
                if notebook == "explore_latent"
                else dict(out=tmp_path / "run")
            ),
            **parameters,
        },
    )
    assert code != 0 and "HandlabError" in printed and words in printed
    assert not (tmp_path / "run").exists() and not (tmp_path / "page.html").exists()


@pytest.mark.end_to_end
def test_explorer_notebook(tmp_path):
    code, printed, notebook = papermill(
        "explore_latent",
        tmp_path,
        profile="smoke",
        run=tmp_path / "run",
        page=tmp_path / "page.html",
        images=10,
    )
    assert code == 0, printed[-3000:]
    content = content_of((tmp_path / "page.html").read_text())
    assert len(content["frames"]["names"]) == 10
    assert (
        "widgets" not in notebook["metadata"]
        and "page.html: 10 images" in outputs(notebook)
        and pictures(notebook) == 1  # both walks
    )


@pytest.mark.end_to_end
def test_explorer_notebook_with_a_photograph(practised, tmp_path):
    "The photograph is the last image, and an end of the walk; only its code is known."
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    given = dict(photograph=tmp_path / "mine.png", box="20 10 100 80", umap=False, images=10)
    code, printed, notebook = papermill(
        "explore_latent", tmp_path, profile="smoke", run=practised, page=tmp_path / "page.html", **given
    )
    assert code == 0, printed[-3000:]
    content = content_of((tmp_path / "page.html").read_text())
    assert content["frames"]["names"][-1] == "your photograph, hand 1" and content["ends"][1] == 10
    assert content["frames"]["known"] == [True] * 10 + [False]
    assert content["colours"]["error"]["values"][-1] is None and pictures(notebook) == 2


# ---------------------------------------------------------------- the page
@pytest.fixture(scope="module")
def browser():
    "A browser without a window."
    driver = headless.start()
    yield driver
    driver.quit()


def content_of(page):
    "What a page's script reads."
    return json.loads(gzip.decompress(base64.b64decode(re.search(r'id="content">([^<]*)<', page)[1])))


@pytest.fixture(scope="module")
def practised(tmp_path_factory):
    "A finished run of seconds."
    folder = tmp_path_factory.mktemp("practised") / "run"
    practice_run(SMOKE, folder)
    return folder


@pytest.fixture(scope="module", params=[("folding", "respel"), ("layers", "respel"), ("bones", "basis")])
def atlas(practised, request):
    "A network with each cloud decoder, whose batch norms have statistics, and ten frames in its space."
    settings, data, network = open_run(practised)
    decoder, encoder = request.param
    settings = replace(settings, cloud_decoder=decoder, cloud_encoder=encoder)
    other = make_network(settings)
    assert type(other.decoders["C"]) is CLOUD_DECODERS[decoder]
    torch.manual_seed(1)
    for layer in other.modules():
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
    network.decoders["C"], network.encoders["C"] = other.decoders["C"], other.encoders["C"]
    if decoder == "bones":
        network.decoders["C"].follow(network.decoders["P"])
        network.decoders["C"].offsets[-2].weight.data *= 10  # some offsets end at their reach
    return network.eval(), make_atlas(network, data.test, settings, 10)


def test_fused_layers_say_what_the_decoders_say(atlas):
    network, _ = atlas
    code = torch.randn(3, SMOKE.latent)
    layers = fused(network.decoders["P"])
    values = code.double()
    for number, (weight, bias) in enumerate(layers):
        values = values @ weight.T + bias
        values = values.relu() if number < len(layers) - 1 else values
    expected = network.decoders["P"](code).detach()
    np.testing.assert_allclose(values.reshape(3, 21, 3), expected, atol=1e-5)


def test_atlas_holds_the_posteriors_and_their_product(practised, atlas):
    _, found = atlas
    assert set(found.codes) == {"R", "C", "joint"} and len(found.names) == 10
    precision = {name: np.exp(-code.log_variance) for name, code in found.codes.items()}
    total = precision["R"] + precision["C"] + SMOKE.prior_expert
    np.testing.assert_allclose(precision["joint"], total, rtol=1e-4)
    weighted = precision["R"] * found.codes["R"].mean + precision["C"] * found.codes["C"].mean
    np.testing.assert_allclose(found.codes["joint"].mean, weighted / total, atol=1e-5)


def test_page_asks_for_nothing(atlas, tmp_path):
    network, found = atlas
    assert write_explorer(tmp_path / "page.html", network, found, note="a < b") < 5
    page = (tmp_path / "page.html").read_text()
    own = re.sub(r'<script type="text/plain"[^>]*>[A-Za-z0-9+/=]*</script>|<a href="[^"]*"', "", page)
    loads = (
        r"https?:(?!//www\.w3\.org/2000/svg)|wss?://|//cdn|@import|url\("
        r"|<link (?!rel=\"icon\" href=\"data:,\")|<iframe|<script [^>]*src|fetch\(|XMLHttpRequest"
    )
    assert not re.search(loads, own) and "a &lt; b" in own
    content = content_of(page)
    assert all(image.startswith("data:image/jpeg") for image in content["frames"]["images"])
    assert page == explorer_page(network, found, TITLE, LEAD, "a < b")


def test_the_pages_files_are_part_of_its_code():
    own = {f"handlab/aligned/{name}" for name in ("page.py", "explorer.html", "explorer.css", "explorer.js")}
    assert own <= set(closure("handlab/aligned/page.py")) and not own & set(
        closure("handlab/aligned/figures.py")
    )


WAIT = (
    "const done = arguments[0], test = () => "
    "document.body.dataset.ready ? setTimeout(done, 400) : setTimeout(test, 50); test();"
)


def check_second_map(places, spots, codes):
    "The dots lie where they were computed; a free place takes the nearest four codes; the switch goes back."
    assert places["names"] == ["PCA", "UMAP"] and all(map(str.startswith, places["told"], places["names"]))
    shift = np.mean(places["UMAP"], 0) - np.mean(spots, 0) * (
        size := np.ptp(places["UMAP"], axis=0)[0] / np.ptp(spots, axis=0)[0]
    )
    np.testing.assert_allclose(places["UMAP"], spots * size + shift, atol=0.01)
    far = np.linalg.norm(spots - places["place"], axis=1)
    near = np.argsort(far)[:4]
    np.testing.assert_allclose(
        places["code"], np.average(codes[near], axis=0, weights=1 / far[near]), atol=1e-4
    )
    cross = re.match(r"M([\d.]+) ([\d.]+)", places["cross"]).groups()
    np.testing.assert_allclose([float(each) for each in cross], [21, 30], atol=1e-6)  # its left end
    assert places["line"] == "none"
    assert places["again"] == places["PCA"] != places["UMAP"]


def test_page_decodes_and_moves_in_a_browser(atlas, browser, tmp_path, capsys):
    "What the page computes is what PyTorch computes, and every control changes the drawing."
    network, found = atlas
    spots = np.random.default_rng(0).normal(size=(len(found.names), 2)).astype(np.float32)
    found = replace(found, maps={"UMAP": spots})
    write_explorer(tmp_path / "page.html", network, found)
    browser.set_window_size(1280, 1000)
    browser.get_log("performance")
    browser.get(f"file://{tmp_path}/page.html")
    result = browser.execute_async_script((Path(__file__).parent / "explorer_actions.js").read_text())
    assert not result.get("error"), result["error"]
    assert not headless.errors(browser)
    assert headless.requests(browser) == {f"file://{tmp_path}/page.html"}
    code = torch.tensor(result["codes"])
    np.testing.assert_allclose(code, found.codes["R"].mean[:3], atol=1e-6)
    with torch.no_grad():
        pose, cloud, maps = (network.decoders[letter](code) for letter in "PCH")
    np.testing.assert_allclose(np.array(result["poses"]).reshape(3, 21, 3), pose, atol=1e-4)
    np.testing.assert_allclose(np.array(result["clouds"]).reshape(cloud.shape), cloud, atol=1e-4)
    np.testing.assert_allclose(np.array(result["maps"]).reshape(maps.shape), maps, atol=1e-4)
    cell = SMOKE.crop / SMOKE.map_size
    y, x = np.unravel_index(maps[2].flatten(1).argmax(1).numpy(), (SMOKE.map_size,) * 2)
    peaks = (np.stack([x, y], 1) + 0.5) * cell - 0.5
    assert result["peaks"] == pytest.approx(np.linalg.norm(peaks - found.uv[2], axis=1).mean(), rel=1e-4)
    vertices = np.array(result["vertices"]).reshape(-1, 3)
    np.testing.assert_allclose(vertices, hand_vertices(pose[2].double().numpy()), atol=1e-4)
    steps = result["steps"]
    assert all(step["drawn"] for step in steps.values()), steps
    still = "turn,wheel,two fingers,keys,skeleton,solid,over,beside,no maps,one map".split(",")
    assert all(step["moved"] is (name not in still) for name, step in steps.items()), steps
    assert steps["click"]["told"] == found.names[7] and "mm off" in steps["click"]["hand"]
    assert steps["slider"]["told"] == "60 % of the way" and "mm" not in steps["slider"]["hand"]
    assert steps["random"]["told"] == "drawn from the prior"
    assert result["hover"] and all(result["coloured"]) and len(result["coloured"]) == 3
    assert result["kept"]  # the view, over the steps of a walk
    assert steps["dot of UMAP"]["told"] == found.names[4]
    check_second_map(result["places"], spots, found.codes["C"].mean)  # the chosen expert
    with capsys.disabled():
        told = ", ".join(f"{name} {value:.1f}" for name, value in result["times"].items())
        print(f"\nexplorer: ms per call and frames per second, idle and dragging: {told}")


def test_page_keeps_its_view_and_its_width_when_the_window_changes(atlas, browser, tmp_path):
    write_explorer(tmp_path / "page.html", *atlas)
    browser.set_window_size(1280, 1000)
    browser.get(f"file://{tmp_path}/page.html")
    browser.execute_async_script(WAIT)
    browser.execute_script("turnBy(0.5, 0.2, 1.5)")
    for width in (1280, 800, 500):
        browser.set_window_size(width, 900)
        browser.execute_async_script(WAIT)
        seen = browser.execute_script(
            "return [{...view}, [...document.querySelectorAll('canvas')].map(each => [each.width,"
            " each.clientWidth]),"
            " document.documentElement.scrollWidth - innerWidth]"
        )
        assert seen[0] == pytest.approx(dict(yaw=0.34 - 0.5, pitch=0.24 + 0.2, zoom=1.5))
        assert all(drawn == shown > 100 for drawn, shown in seen[1]) and seen[2] <= 0


@pytest.mark.parametrize(
    "address, chosen, told",
    [
        ("", 2, ""),
        ("#frame=4", 4, ""),
        ("#share=50", 2, "50 % of the way"),
        ("#frame=4&share=50", 4, "50 % of the way"),
        ("#frame=99", 2, ""),
        ("#frame=x&share=y", 2, ""),
    ],
)
def test_page_opens_at_an_address_with_all_its_parts(atlas, browser, tmp_path, address, chosen, told):
    network, found = atlas
    write_explorer(tmp_path / "page.html", network, found, ends=(2, 7))
    browser.get("about:blank")
    browser.get(f"file://{tmp_path}/page.html{address}")
    browser.execute_async_script(WAIT)
    state = browser.execute_script(
        "return [chosen, $('told').textContent, document.querySelectorAll('#codes button').length,"
        " [...document.querySelectorAll('figure.truth span')].map(each => each.textContent),"
        " closest(codeOf(5)), [...code].every(Number.isFinite)]"
    )
    between = told and ["of the nearest code"] * 3
    assert state == [chosen, told or found.names[chosen], 3, between or [""] * 3, 5, True]


def test_on_a_phone_the_decoded_hand_is_beside_the_map(atlas, browser, tmp_path):
    write_explorer(tmp_path / "page.html", *atlas)
    browser.set_window_size(500, 900)
    browser.get(f"file://{tmp_path}/page.html")
    browser.execute_async_script(WAIT)
    panels, space = browser.execute_script(
        "return ['panels', 'map'].map(id => [$(id).getBoundingClientRect().top,"
        " $(id).getBoundingClientRect().bottom])"
    )
    assert panels[1] < space[0] and space[1] - panels[0] < 900  # both fit the window


def test_page_says_that_it_needs_trust(atlas, browser, tmp_path):
    "JupyterLab shows an HTML file in a frame without scripts until it is trusted."
    write_explorer(tmp_path / "page.html", *atlas)
    (tmp_path / "frame.html").write_text('<iframe sandbox src="page.html" width="900" height="600"></iframe>')
    browser.get(f"file://{tmp_path}/frame.html")
    browser.switch_to.frame(0)
    told = browser.find_element("css selector", "noscript").text
    browser.switch_to.default_content()
    assert "Trust HTML" in told


def test_photographs_stand_among_the_images_without_a_truth(atlas, browser, tmp_path):
    network, found = atlas
    crops = torch.rand(2, 3, SMOKE.crop, SMOKE.crop) - 0.5
    spots = np.random.default_rng(0).normal(size=(len(found.names), 2))
    found = replace(found, maps={"UMAP": spots})
    more = add_photographs(found, network, crops, ["mine", "yours"])
    with torch.no_grad():
        expected = network.encoders["R"](crops).mean
    np.testing.assert_allclose(more.codes["R"].mean[-2:], expected, atol=1e-5)
    np.testing.assert_array_equal(more.codes["C"].mean[:-2], found.codes["C"].mean)
    far = np.linalg.norm(found.codes["R"].mean - more.codes["R"].mean[-1], axis=1)
    near = np.argsort(far)[:4]
    np.testing.assert_allclose(
        more.maps["UMAP"][-1], np.average(spots[near], axis=0, weights=1 / far[near]), rtol=1e-4
    )
    np.testing.assert_array_equal(more.maps["UMAP"][:-2], spots)
    write_explorer(tmp_path / "page.html", network, more)
    browser.get(f"file://{tmp_path}/page.html#frame={len(found.names)}")
    browser.execute_async_script(WAIT)
    told = browser.execute_script(
        "return [$('told').textContent, $('panels').textContent, inWords(chosen), $('codes').textContent]"
    )
    assert told[0] == "mine" and "mm off" not in told[1] and told[2] == "unknown"
    assert told[3].startswith("RGB") and "cloud" not in told[3]  # the only encoder that saw it
    assert not headless.errors(browser)


def test_stored_map_is_of_its_weights_and_its_images(practised, tmp_path, monkeypatch, capsys):
    settings, data, network = open_run(practised)
    folder = shutil.copytree(practised, tmp_path / "run")
    few, more = (make_atlas(network, data.test, settings, count) for count in (6, 9))
    monkeypatch.setattr("handlab.aligned.page.find_spec", lambda name: None)
    assert with_umap(few, folder).maps == {} and not (folder / "maps.json").exists()
    assert re.search(
        r"run has none stored.*pip install -c constraints.txt umap-learn", capsys.readouterr().out
    )
    computed = []

    def places(codes):
        computed.append(len(codes))
        return np.arange(2.0 * len(codes)).reshape(-1, 2) / 7

    monkeypatch.setattr("handlab.aligned.page.find_spec", lambda name: name)
    monkeypatch.setattr("handlab.aligned.page.umap_places", places)
    first = with_umap(few, folder).maps["UMAP"]
    np.testing.assert_allclose(with_umap(few, folder).maps["UMAP"], first, atol=1e-3)
    assert len(with_umap(more, folder).maps["UMAP"]) == 9 and computed == [6, 9]
    assert read_json(folder / "maps.json")["names"] == few.names  # other images replace nothing
    write_json(folder / "maps.json", {**read_json(folder / "maps.json"), "weights": "other"})
    with_umap(more, folder)
    assert computed == [6, 9, 9] and read_json(folder / "maps.json")["names"] == more.names


def test_shipped_page_is_made_with_its_map():
    "The committed page has the positions that are stored beside the shipped weights."
    stored = read_json(project_root() / "runs/shipped/train_aligned-S4-sim-rhd-seed0/maps.json")
    content = content_of((project_root() / "figures/explorer.html").read_text())
    places = np.frombuffer(base64.b64decode(content["frames"]["maps"]["UMAP"]), np.float32).reshape(-1, 2)
    assert stored["names"] == content["frames"]["names"]
    np.testing.assert_allclose(places, stored["UMAP"], atol=1e-3)


def test_shipped_page_is_small_enough_to_send():
    assert (project_root() / "figures/explorer.html").stat().st_size < 5_000_000


def test_umap_keeps_neighbours_together():
    pytest.importorskip("umap")
    middles = np.repeat(np.random.default_rng(0).normal(0, 20, (3, 16)), 12, axis=0)
    codes = middles + np.random.default_rng(1).normal(size=middles.shape)
    places = umap_places(codes)
    far = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(len(places))
    np.testing.assert_array_equal(far.argmin(1) // 12, np.arange(len(places)) // 12)
    np.testing.assert_array_equal(places, umap_places(codes))
    assert np.isfinite(umap_places(codes[::12])).all()  # as few as there may be


def test_stretched_fingers_are_counted():
    hand = normalise(example_hand())[0]
    fist = hand.copy()
    for first in range(1, 21, 4):
        fist[first + 3] = fist[first + 2] - (hand[first + 1] - hand[first])
    assert gesture(np.stack([hand, fist])).tolist() == [5, 0] and np.isnan(gesture(hand[None] * np.nan)).all()
    np.testing.assert_allclose(finger_angles(fist[None]), 180, atol=1e-3)


# ---------------------------------------------------------------- its parts
def test_hand_is_as_thick_as_said_and_follows_the_pose():
    hand = normalise(example_hand())[0]
    vertices, (faces, colours) = hand_vertices(hand), hand_faces()
    assert len(vertices) == len(colours) == faces.max() + 1 and faces.min() == 0
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    distances = np.linalg.norm(vertices[:, None] - hand[None], axis=2).min(1)
    assert distances.max() < 1.5 and np.isfinite(vertices).all()
    assert np.allclose(hand_vertices(hand + [1, 2, 3]), vertices + [1, 2, 3])
    assert (
        np.linalg.norm(hand_vertices(hand @ turn.T).mean(0) - vertices.mean(0) @ turn.T) < 0.02
    )  # rings may start elsewhere
    assert np.isfinite(hand_vertices(np.zeros((21, 3)))).all()  # a collapsed pose does not break the drawing


def test_capsule_is_round():
    tube = capsules(np.zeros(3), np.array([3.0, 4, 0]), np.array(1.0), np.array(2.0))
    along = tube @ np.array([0.6, 0.8, 0])
    radius = np.linalg.norm(tube - along[:, None] * np.array([0.6, 0.8, 0]), axis=1)
    assert (
        along.min() == pytest.approx(-1)
        and along.max() == pytest.approx(7)
        and radius.max() == pytest.approx(2)
    )


def test_pairs_are_the_farthest_of_the_best():
    codes, errors = np.array([[0.0], [10], [1], [9], [100], [4]]), np.array([1.0, 2, 3, 4, 90, 5])
    assert choose_pairs(codes, errors, 2, share=0.5) == [(0, 1), (2, 3)]
    with pytest.raises(HandlabError, match="at most 3"):
        choose_pairs(codes, errors, 4)


def test_run_opens_with_its_own_settings(practised):
    settings, data, network = open_run(practised)
    assert (
        settings == SMOKE
        and len(data.test) == 16
        and not any(weights.requires_grad for weights in network.parameters())
    )
    assert run_name(settings) == "train_aligned-S4-sim-rhd-seed0"


def test_a_run_opens_for_a_look_without_its_training_frames(practised, monkeypatch):
    drawn = []
    for module in ("experiment", "frames"):
        monkeypatch.setattr(f"handlab.train.{module}.prepare", lambda *given, **more: drawn.append(given[0]))
    monkeypatch.setattr("handlab.aligned.experiment.shared.experiment_data", None)  # prepares both splits
    settings, data, _ = open_run(practised, on_demand=True)
    assert (len(data.test), len(data.train)) == (16, settings.train_frames) and not drawn


def test_foreign_or_changed_run_is_refused(practised, tmp_path):
    shutil.copytree(practised, tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for change, words in (
        (dict(experiment="train_pi"), "a run of train_pi"),
        (dict(data={"fingerprint": "other"}), "its data have changed"),
        (dict(settings={**metrics["settings"], "colour": 1}), "'colour'"),
    ):
        write_json(tmp_path / "run" / "metrics.json", {**metrics, **change}, sealed=True)
        with pytest.raises(HandlabError, match=words):
            open_run(tmp_path / "run")


def test_walk_ends_at_the_two_frames(practised):
    settings, data, network = open_run(practised)
    walk, first, second = (
        make_walk(network, data.test, settings, *pair, 3) for pair in ((2, 7), (2, 2), (7, 7))
    )
    assert np.allclose(walk.poses[0], first.poses[1], atol=1e-5) and np.allclose(
        walk.poses[-1], second.poses[1], atol=1e-5
    )
    assert np.allclose(walk.clouds[0], first.clouds[1], atol=1e-5) and walk.names == (
        str(data.test.name[2]),
        str(data.test.name[7]),
    )
    with pytest.raises(HandlabError, match="no poses"):
        make_walk(
            make_network(make_settings(AlignedSettings, "smoke", strategy="R2C")),
            data.test,
            make_settings(AlignedSettings, "smoke", strategy="R2C"),
            0,
            1,
        )
    assert "the good and the bad ones" in note_on(settings, data, "x")


def test_walk_between_images_of_the_map_has_their_truth(practised):
    settings, data, network = open_run(practised)
    atlas = make_atlas(network, data.test, settings, len(data.test))
    walk, expected = atlas_walk(network, atlas, (2, 7), 3), make_walk(network, data.test, settings, 2, 7, 3)
    for name in ("images", "poses", "clouds", "true_poses"):  # each draws its own points of the true clouds
        np.testing.assert_allclose(getattr(walk, name), getattr(expected, name), atol=1e-4, err_msg=name)
    assert walk.names == expected.names and walk.true_clouds.shape == expected.true_clouds.shape
    unknown = decode_walk(network, torch.as_tensor(atlas.codes["R"].mean[[2, 7]]), atlas.images[[2, 7]], 3)
    assert [len(draw_walks([each]).axes) for each in (walk, unknown)] == [2 + 2 * 5, 2 + 2 * 3]
    plt.close("all")


def test_live_explorer_gives_its_page_when_asked(practised, monkeypatch):
    _, _, network = open_run(practised)
    live, sent = LiveExplorer(network, "<p>page</p>"), []
    monkeypatch.setattr(live, "send", sent.append)
    live._handle_custom_msg({"want": "page"}, [])
    live._handle_custom_msg({"want": "nothing"}, [])
    live.show(torch.arange(float(SMOKE.latent)))
    assert sent == [{"page": "<p>page</p>"}, {"code": list(map(float, range(SMOKE.latent)))}]
    assert "<p>" not in str(live.get_state())  # a saved notebook does not hold the page
    for wrong in (np.zeros(3), np.zeros((1, SMOKE.latent)), np.full(SMOKE.latent, np.nan)):
        with pytest.raises(HandlabError, match=f"give {SMOKE.latent} numbers"):
            live.show(wrong)
    with pytest.raises(HandlabError, match="no code yet"):
        live.decoded()
    live.code = [0.5] * SMOKE.latent
    expected = decode_all(network, torch.full((1, SMOKE.latent), 0.5))
    for letter, values in live.decoded().items():
        np.testing.assert_array_equal(values, expected[letter][0])
    for name, answer in (("notebook.ipynb", True), ("", False)):
        monkeypatch.setenv("JPY_SESSION_NAME", name)
        assert in_jupyterlab() is answer
