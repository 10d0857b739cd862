"""explore_latent run by a person in JupyterLab: the explorer stands in its cell and talks with Python."""

import json
import os
import secrets
import socket
import subprocess
import sys
import urllib.request

import headless
import nbformat
import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from handlab.aligned.experiment import AlignedSettings
from handlab.aligned.explorer import practice_run
from handlab.core import project_root
from handlab.settings import make_settings

LAB = "window.jupyterapp"  # its own object, shown by expose_app_in_browser
KERNEL = f"{LAB}.shell.currentWidget.context.sessionContext.session?.kernel"
CELLS = f"[...{LAB}.shell.currentWidget.model.cells]"
FRAME = "iframe[title^=explorer]"
ASK = f"""const [code, done] = arguments, said = [], asked = {KERNEL}.requestExecute({{code}});
asked.onIOPub = ({{content}}) => said.push(content.text ?? content.evalue ?? '');
asked.done.then(() => done(said.join('')));"""


def copy_notebook(folder, run):
    "The notebook in a folder of its own: JupyterLab saves what it runs, and its page goes there."
    notebook = nbformat.read(project_root() / "nbs/explore_latent.ipynb", 4)
    tagged = ["parameters" in cell.metadata.get("tags", []) for cell in notebook.cells]
    page = str(folder / "page.html")
    given = f"images, umap, page, device, run = 12, False, {page!r}, 'cpu', {str(run or '')!r}"
    notebook.cells.insert(tagged.index(True) + 1, nbformat.v4.new_code_cell(given))
    nbformat.write(notebook, folder / "explore_latent.ipynb")


def start_lab(folder, port, token):
    "JupyterLab on this machine alone, with no settings, trust or windows of the user's."
    own = {
        f"JUPYTER{name}_DIR": str(folder / "jupyter" / name.lower())
        for name in ("_CONFIG", "_DATA", "_RUNTIME", "LAB_WORKSPACES", "LAB_SETTINGS")
    }
    kept = {name: value for name, value in os.environ.items() if name != "IN_TEST"}
    words = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
    words += [f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True"]
    with open(folder / "lab.log", "w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *words, f"--notebook-dir={folder}"],
            env={**kept, **own, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(project_root())},
            stdout=log,
            stderr=log,
        )


@pytest.fixture(scope="module", params=["shipped", "bones"])
def lab(tmp_path_factory, request):
    "A browser with JupyterLab and the notebook's folder; it shows the shipped S4, or points on bones."
    browser, folder, token = headless.start(), tmp_path_factory.mktemp("lab"), secrets.token_hex()
    run = folder / "run" if request.param == "bones" else None
    if run:
        parts = dict(cloud_encoder="basis", cloud_decoder="bones")
        practice_run(make_settings(AlignedSettings, "smoke", **parts), run)
    copy_notebook(folder, run)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = start_lab(folder, port, token)

    def answers(_):
        assert server.poll() is None, (folder / "lab.log").read_text()
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=5)
        except OSError:
            return False

    try:
        WebDriverWait(browser, 120).until(answers)
        browser.set_window_size(1400, 1500)
        browser.get(f"http://127.0.0.1:{port}/lab?token={token}")
        yield browser
    finally:
        browser.quit()
        server.terminate()
        server.wait(60)


def until(browser, script, seconds=300):
    "Wait for a script's value."
    return WebDriverWait(browser, seconds, 0.2).until(lambda _: browser.execute_script(f"return {script}"))


def code_of(browser):
    return browser.execute_script("return [...code]")


def in_python(browser, line):
    "What a line prints in the notebook's kernel, asked from outside the explorer's frame."
    browser.switch_to.default_content()
    said = browser.execute_async_script(ASK, line)
    browser.switch_to.frame(browser.find_element("css selector", FRAME))
    return said


def run_all(browser):
    "Open the notebook, which nobody has trusted, run its cells, and go into the explorer's frame."
    run = f"{LAB}.commands.execute"
    until(browser, f"{LAB} && {LAB}.commands.hasCommand('docmanager:open')")
    until(browser, "!document.querySelector('#jupyterlab-splash')")
    browser.execute_script(f"{run}('docmanager:open', {{path: 'explore_latent.ipynb'}})")
    until(browser, f"{LAB}.shell.currentWidget?.context?.isReady && !!{KERNEL}")
    assert browser.execute_script(f"return {CELLS}.some(cell => cell.type === 'code' && !cell.trusted)")
    headless.errors(browser)
    browser.execute_script(f"{run}('notebook:run-all-cells').then(good => window.ran = [good])")
    assert until(browser, "window.ran") == [True]
    until(browser, f"document.querySelector('{FRAME}')", 30)
    browser.execute_script(f"document.querySelector('{FRAME}').scrollIntoView()")
    browser.switch_to.frame(browser.find_element("css selector", FRAME))
    until(browser, "document.body?.dataset.ready", 60)


@pytest.mark.end_to_end
def test_explorer_in_jupyterlab(lab):
    run_all(lab)
    assert until(lab, "document.documentElement.scrollHeight <= innerHeight && innerWidth > 900", 30)
    hand = "document.querySelector('#panels figure[data-part=hand] canvas').toDataURL()"
    before = lab.execute_script(f"return {hand}")
    lab.find_element("id", "share").send_keys(Keys.ARROW_RIGHT * 5)
    assert until(lab, "$('told').textContent === '5 % of the way' && !asked", 30)
    assert lab.execute_script(f"return {hand}") != before
    code, pose = code_of(lab), lab.execute_script("return [...decodePose(code)]")
    WebDriverWait(lab, 60, 0.5).until(
        lambda _: np.allclose(json.loads(in_python(lab, "print(watch.code)")), code, atol=1e-6)
    )
    decoded = json.loads(in_python(lab, "print(watch.decoded()['P'].ravel().tolist())"))
    np.testing.assert_allclose(pose, decoded, atol=1e-4)
    cloud = lab.execute_script("return [...decodeCloud(code)]")
    decoded = json.loads(in_python(lab, "print(watch.decoded()['C'].ravel().tolist())"))
    np.testing.assert_allclose(cloud, decoded, atol=1e-4)
    middle = json.loads(in_python(lab, "watch.show(codes[:2].mean(0)); print(codes[:2].mean(0).tolist())"))
    assert until(lab, "$('told').textContent === 'set in Python'", 30)
    np.testing.assert_allclose(code_of(lab), middle, atol=1e-6)
    assert f"give {len(code)} numbers" in in_python(lab, "watch.show([1])")
    assert not headless.errors(lab)
