"A notebook from the command line, as the tests of whole runs call it."

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from handlab.core import project_root


def environment(root: Path) -> dict:
    "The project's root is elsewhere: nothing is written into the checkout, and no real frames are found."
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "IN_TEST" and not name.startswith("HANDLAB_")
    }
    return {**kept, "HANDLAB_ROOT": str(root), "OMP_NUM_THREADS": "1"}


def call(notebook: str, target: Path, **parameters) -> list:
    "A papermill call of a notebook, executed into the file `target`."
    words = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    return [
        sys.executable,
        "-m",
        "papermill",
        "--no-progress-bar",
        "--kernel",
        "python3",
        str(project_root() / "nbs" / f"{notebook}.ipynb"),
        str(target),
        *words,
    ]


def command(notebook: str, out: Path, **parameters) -> list:
    "A papermill call of a training notebook at the smoke profile, its run folder beside the notebook."
    given = {"profile": "smoke", "device": "cpu", "out": str(out), **parameters}
    return call(notebook, out.parent / f"{out.name}.ipynb", **given)


def run(notebook: str, out: Path, **parameters) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(notebook, out, **parameters),
        env=environment(out.parent),
        capture_output=True,
        text=True,
        timeout=900,
    )


def kill(notebook: str, out: Path, stage: str):
    "Begin a run, and kill -9 it as soon as a stage has written its first checkpoint."
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begun = command(notebook, out), environment(out.parent)
    process = subprocess.Popen(begun[0], env=begun[1], start_new_session=True, **quiet)
    while process.poll() is None and not (out / stage / "checkpoint.pt").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "metrics.json").exists()


def metrics_of(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())


def refuse(notebook: str, out: Path, parameters: dict, complaint: str):
    "Such a call ends with one line that says why, and writes no result."
    failed = run(notebook, out, **parameters)
    assert failed.returncode != 0
    assert complaint in failed.stderr
    assert not (out / "metrics.json").exists()
