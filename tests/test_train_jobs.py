"Several trainings side by side: own processes, one thread, errors last, nobody left behind."

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from handlab.core import HandlabError
from handlab.train import jobs as jobs_module
from handlab.train.jobs import Job, practice_job, run_jobs

ROOT = Path(jobs_module.__file__).parents[2]


def alive(process_id):
    try:
        return Path(f"/proc/{process_id}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def write_and_wait(folder, seconds=300.0, report=None):
    "A job that tells its process id and then takes its time."
    (Path(folder) / f"{os.getpid()}.id").touch()
    time.sleep(seconds)


def interrupts_parent(folder, report=None):
    "A job that presses Ctrl-C for the parent once its neighbour runs."
    while len(list(Path(folder).glob("*.id"))) < 1:
        time.sleep(0.05)
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(300)


def fails_otherwise(report=None):
    raise ValueError("an inner matter")


def dies(report=None):
    os._exit(7)


def test_own_processes_with_one_thread(capsys):
    results = run_jobs(
        [Job("one", practice_job, {"steps": 3}), Job("two", practice_job, {"steps": 5})],
        places=2,
        seconds=0.01,
    )
    assert {name: result["steps"] for name, result in results.items()} == {"one": 3, "two": 5}
    assert all(result["threads"] == 1 for result in results.values())
    assert len({os.getpid(), *(result["process"] for result in results.values())}) == 3
    assert "one: 3 steps" in capsys.readouterr().out


def test_errors_come_after_the_others_end(capfd):
    jobs = [
        Job("bad", practice_job, {"steps": 1, "fail": "spoilt"}),
        Job("odd", fails_otherwise),
        Job("gone", dies),
        Job("good", practice_job, {"steps": 4, "seconds": 0.05}),
    ]
    with pytest.raises(HandlabError):
        run_jobs(jobs, places=2)
    out, err = capfd.readouterr()
    assert "good: 4 steps" in out  # brought to its end
    said = err + str(pytest.raises(HandlabError, run_jobs, jobs[:1], show=False).value)
    assert "practice: spoilt; ask for no failure" in said
    assert "odd: ValueError: an inner matter" in err and "Traceback" in err
    assert "gone: its process was killed or ended early" in err


def test_names_must_differ():
    with pytest.raises(HandlabError, match="same name"):
        run_jobs([Job("a", practice_job), Job("a", practice_job)])


def test_device_that_is_not_there():
    with pytest.raises(HandlabError, match="device 'cuda:9'"):
        run_jobs([Job("a", practice_job)], device="cuda:9")


@pytest.fixture
def interruptible():
    "An interrupt is heard also where the tests were begun in the background, which has it ignored."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_children_end_with_their_parent(kill, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_train_jobs import *\n"
        "if __name__ == '__main__':\n"
        "    run_jobs([Job(n, write_and_wait, {'folder': sys.argv[1]}) for n in 'ab'], places=2)\n"
    )
    (tmp_path / "start.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "start.py", tmp_path, Path(__file__).parent],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 60
    while len(list(tmp_path.glob("*.id"))) < 2 and time.time() < deadline:
        time.sleep(0.05)
    children = [int(path.stem) for path in tmp_path.glob("*.id")]
    assert len(children) == 2 and all(alive(child) for child in children)
    parent.send_signal(kill)
    assert parent.wait(30) != 0
    deadline = time.time() + 15
    while any(alive(child) for child in children) and time.time() < deadline:
        time.sleep(0.05)
    assert not any(alive(child) for child in children)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_ends_the_children_while_the_parent_lives(tmp_path):
    "As in a notebook, whose kernel goes on after an interrupt."
    with pytest.raises(KeyboardInterrupt):
        run_jobs(
            [
                Job("a", write_and_wait, {"folder": tmp_path}),
                Job("b", interrupts_parent, {"folder": tmp_path}),
            ],
            places=2,
            show=False,
        )
    child = int(next(tmp_path.glob("*.id")).stem)
    deadline = time.time() + 10
    while alive(child) and time.time() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def test_one_by_one_keeps_going_after_an_error(capsys):
    outcomes = jobs_module._one_by_one(
        [Job("bad", practice_job, {"fail": "spoilt"}), Job("good", practice_job)]
    )
    assert outcomes["bad"][0] == "error" and outcomes["good"][1]["process"] == os.getpid()
