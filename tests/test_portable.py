"Machines that are not Linux: what they lack is not asked for, or there is another way."

import subprocess
import sys
from types import SimpleNamespace

from handlab.core import project_root
from handlab.graph import run
from handlab.predict.command import short_names

LACKING = """
import ctypes, importlib, mmap, os, pkgutil, sys
import torch, matplotlib.pyplot, pandas, cv2, scipy, filelock, psutil, numba, IPython

lacking = ["sched_getaffinity", "sysconf", "getuid", "fork", "posix_fadvise", "killpg", "uname"]
for name in [each for each in lacking if hasattr(os, each)]:
    delattr(os, name)
for name in [each for each in dir(mmap) if each.startswith("MADV_")]:
    delattr(mmap, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None


def no_library(name):
    raise TypeError("a name is needed on Windows")


ctypes.CDLL = no_library
import handlab

for module in pkgutil.walk_packages(handlab.__path__, "handlab."):
    importlib.import_module(module.name)

import numpy as np
from handlab.machine import hardware, usable_cores
from handlab.data.batches import memory_of_machine, read_at_random
from handlab.data.measure import *
from handlab.train.loop import keep_memory

assert usable_cores() == os.cpu_count() and hardware()["cores"] == os.cpu_count()
assert memory_of_machine() == 0 and not keep_memory()
read_at_random([np.zeros(3)])
print("all imported")
"""


def test_what_only_linux_has_is_not_needed():
    words = [sys.executable, "-c", LACKING]
    said = subprocess.run(words, cwd=project_root(), capture_output=True, text=True, timeout=600)
    assert said.returncode == 0 and "all imported" in said.stdout, said.stderr


def test_the_lock_of_windows(monkeypatch):
    asked = []
    fake = SimpleNamespace(LK_NBLCK=2, locking=lambda *words: asked.append(words))
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(run.sys, "platform", "win32")
    run._lock(7)
    assert asked == [(7, 2, 1)]


def test_files_on_several_drives_have_names(monkeypatch, tmp_path):
    def several(paths):
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr("handlab.predict.command.os.path.commonpath", several)
    names = short_names([tmp_path / "a.png", tmp_path / "b" / "a.png"])
    assert len({*names}) == 2 and all(name.endswith("a.png") and ":" not in name for name in names)
