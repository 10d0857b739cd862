"Kill a job within its own process, at a chosen call that changes files."

import contextlib
import itertools
import os
import sys

_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_running = []  # of the job at hand: its calls and the one that kills it


class Killed(BaseException):
    "The end of a process, which nothing catches."


def _changes_files(event, details):
    if event == "open":
        path, mode, flags = details
        return not str(path).startswith(("/proc", "/dev", "/sys")) and bool((flags or 0) & _WRITING)
    return event in _CHANGES


def _kill(event, details):
    if _running and _changes_files(event, details):
        calls, last = _running[-1]
        if next(calls) >= last:
            raise Killed


sys.addaudithook(_kill)  # for good: a hook cannot be taken away


@contextlib.contextmanager
def killed_at(call):
    "The given call, from 0 on, raises Killed, and so does every later one."
    _running.append((itertools.count(), call))
    try:
        yield
    finally:
        _running.pop()


def kills_of(job, most=1000):
    "Run `job(call)`, killed at call 0, 1, 2 ..., until it is not killed; after each kill yields the number."
    for call in range(most):
        try:
            with killed_at(call):
                job(call)
            return
        except Killed:
            yield call
    raise AssertionError(f"it was still killed at call {most}")
