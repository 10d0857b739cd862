"The process pool: one thread per worker, bounded hand-out, errors come through, nobody outlives the parent."

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import cv2
import numba
import numpy as np
import pytest

from handlab import machine
from handlab.core import HandlabError
from handlab.machine import WorkerDied, can_spawn, in_processes, one_thread, usable_cores

HERE = Path(__file__).parent


def threads(_):
    "What a worker computes with."
    return os.getpid(), numba.get_num_threads(), cv2.getNumThreads(), os.environ["OMP_NUM_THREADS"]


def fails_at_five(number):
    if number == 5:
        raise HandlabError("frame 5", "it is broken", "repair it")
    return number


def dies_at_five(number):
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def write_and_wait(folder):
    (Path(folder) / f"{os.getpid()}.id").touch()
    time.sleep(300)


class Holder:
    "Its method travels to the workers with all that it holds."

    def __init__(self, held=None):
        self.held, self.array = held, np.arange(5)

    def add(self, number):
        return int(self.array.sum()) + number


def alive(process_id):
    try:
        return Path(f"/proc/{process_id}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=60):
    deadline = time.time() + seconds
    while not condition() and time.time() < deadline:
        time.sleep(0.05)
    return condition()


def test_workers_have_one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    found = list(in_processes(threads, range(4), workers=2))
    assert os.getpid() not in {process for process, *_ in found}
    assert {tuple(rest) for _, *rest in found} == {(1, 1, "1")}
    assert os.environ["OMP_NUM_THREADS"] == "2"  # as before


def test_one_thread_puts_back_what_was(monkeypatch):
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with contextlib.suppress(ZeroDivisionError), one_thread():
        assert os.environ["MKL_NUM_THREADS"] == "1"
        1 / 0
    assert "MKL_NUM_THREADS" not in os.environ


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_once(workers):
    assert sorted(in_processes(Holder().add, iter(range(50)), workers)) == list(range(10, 60))
    assert list(in_processes(math.factorial, [], workers)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_come_through(workers):
    with pytest.raises(HandlabError, match="frame 5: it is broken; repair it"):
        list(in_processes(fails_at_five, range(100), workers))


def test_a_dead_worker_is_noticed():
    with pytest.raises(WorkerDied, match="one was killed or ended early; memory is the usual cause"):
        list(in_processes(dies_at_five, range(100), workers=2))


@pytest.mark.parametrize(
    "work",
    [
        "print(sum(in_processes(abs, range(9), workers=2)))",
        # the parent holds a lock that its workers wait for when they run the script
        "with folder_lock(HERE / 'crops'): print(sum(in_processes(abs, range(9), workers=2)))",
        "run_jobs([Job('one', practice_job)], show=False)",
    ],
)
def test_a_script_without_a_main_guard_gets_one_line(work, tmp_path):
    script, start = tmp_path / "my script.py", "if __name__ == '__main__':\n    "
    imports = (
        "from pathlib import Path\nfrom handlab.machine import in_processes\n"
        "from handlab.data.arrays import folder_lock\n"
        "from handlab.train.jobs import Job, practice_job, run_jobs\nHERE = Path(__file__).parent\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}

    def say():
        return subprocess.run(
            [sys.executable, script], env=environment, capture_output=True, text=True, timeout=300
        )

    script.write_text(imports + work)
    said = say()
    line = f"WorkerDied: {script}: its worker processes run it from the top; start the work under"
    assert said.returncode == 1 and said.stderr.count("Traceback") == 1, said.stderr
    assert said.stderr.splitlines()[-1] == f'handlab.machine.{line} `if __name__ == "__main__":`'
    assert not said.stdout
    script.write_text(imports + start + work)
    assert say().returncode == 0


def test_few_items_are_handed_out_at_a_time(monkeypatch):
    "A million items need no memory, and an iterable is taken as results come."
    handed_out, most, taken = [], [], []

    class Pool:
        def __init__(self, workers, prepare, *arguments):
            pass

        def submit(self, function, item):
            handed_out.append((Future(), item))
            most.append(len(handed_out))
            return handed_out[-1][0]

        def shutdown(self, **options):
            pass

    def finish_first(futures, return_when=None):
        future, item = handed_out.pop(0)
        future.set_result(item)
        return {future}, futures - {future}

    def finish_rest(futures):
        for future, item in handed_out:
            future.set_result(item)
        return futures

    def items():
        for item in range(1000):
            taken.append(item)
            yield item

    monkeypatch.setattr(machine, "WorkerPool", Pool)
    monkeypatch.setattr(machine, "wait", finish_first)
    monkeypatch.setattr(machine, "as_completed", finish_rest)
    results = in_processes(math.factorial, items(), workers=2, ahead=4)
    assert next(results) == 0 and len(taken) == 8
    assert next(results) == 1 and len(taken) == 9
    assert sum(results) == sum(range(2, 1000)) and max(most) == 8


def test_what_is_defined_in_a_notebook_stays_in_this_process(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", None, raising=False)
    assert can_spawn(math.factorial) and can_spawn(Holder(Holder()).add)
    monkeypatch.setattr(Holder, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "Holder", Holder, raising=False)
    assert not can_spawn(Holder().add)
    assert not can_spawn(_Outer(Holder()).add)  # somewhere inside
    assert list(in_processes(_Outer(Holder()).add, range(2), workers=2)) == [0, 1]


class _Outer:
    def __init__(self, held):
        self.held = {"deep": [held]}

    def add(self, number):
        return number


def test_usable_cores():
    assert 1 <= usable_cores() <= os.cpu_count()


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(kill, tmp_path):
    code = (
        "import sys; from test_machine import *\n"
        "if __name__ == '__main__': list(in_processes(write_and_wait, [sys.argv[1]] * 2, workers=2))\n"
    )
    (tmp_path / "start.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "start.py", tmp_path], env=environment, stderr=subprocess.DEVNULL
    )
    assert wait_until(lambda: len(list(tmp_path.glob("*.id"))) == 2)
    workers = [int(path.stem) for path in tmp_path.glob("*.id")]
    assert all(alive(worker) for worker in workers)
    parent.send_signal(kill)
    assert parent.wait(30) != 0
    assert wait_until(lambda: not any(alive(worker) for worker in workers), 15)
