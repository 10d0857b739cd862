"""Damaged files: whatever happens to a file, reading gives the right samples or one HandlabError.

    outcomes = fuzz(folder, lambda folder: list(STB(folder, 'evaluation')), rounds=100)

Each round damages one file (or swaps two) in a way drawn from a seed, reads, and puts the file back. A sample
that is not what it was before, an exception of another kind, a message of several lines: each is a failure
that names file, damage and seed. A crash of the interpreter ends the test run, and is noticed as well."""

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from handlab.core import HandlabError

FIELDS = ("image", "depth", "mask", "joints", "uv", "visible", "K", "side", "name")


class Outcome(NamedTuple):
    file: str  # relative to the folder
    damage: str
    result: str  # 'right', 'refused', or what is wrong
    message: str


def same_samples(got, reference):
    "Two lists of samples agree bit for bit, NaN included."
    return len(got) == len(reference) and all(
        same_field(getattr(one, field), getattr(two, field))
        for one, two in zip(got, reference)
        for field in FIELDS
    )


def same_field(one, two):
    if not isinstance(one, np.ndarray) or not isinstance(two, np.ndarray):
        return type(one) is type(two) and one == two
    return (
        one.dtype == two.dtype
        and one.shape == two.shape
        and np.array_equal(one, two, equal_nan=one.dtype.kind == "f")
    )


def span(generator, length, most):
    "A random piece [start, stop) of `length` bytes, at least one byte of at most `most`."
    size = int(min(length, 1 + generator.integers(0, most)))
    start = int(generator.integers(0, max(1, length - size + 1)))
    if generator.random() < 0.3:
        start = int(min(start, generator.integers(0, 128)))  # headers are short but matter
    return start, min(start + size, length)


# each takes a generator and the file's bytes, and gives other bytes


def flip_bit(generator, data):
    at, changed = span(generator, len(data), 1)[0], bytearray(data)
    changed[at] ^= 1 << int(generator.integers(8))
    return bytes(changed)


def random_bytes(generator, data):
    start, stop = span(generator, len(data), 64)
    return data[:start] + generator.bytes(stop - start) + data[stop:]


def zero_bytes(generator, data):
    start, stop = span(generator, len(data), 4096)
    return data[:start] + bytes(stop - start) + data[stop:]


def other_digit(generator, data):
    "Another digit where there is one: text stays text."
    digits = [i for i in range(min(len(data), 200000)) if 48 <= data[i] < 58]
    if not digits:
        return flip_bit(generator, data)
    at = digits[int(generator.integers(len(digits)))]
    return data[:at] + bytes([48 + (data[at] - 48 + int(generator.integers(1, 10))) % 10]) + data[at + 1 :]


def cut_end(generator, data):
    return data[: int(generator.integers(0, len(data)))]


def cut_few(generator, data):
    return data[: -int(generator.integers(1, min(64, len(data)) + 1))]


def cut_out(generator, data):
    start, stop = span(generator, len(data), 256)
    return data[:start] + data[stop:]


def put_in(generator, data):
    start = span(generator, len(data), 1)[0]
    return data[:start] + generator.bytes(int(generator.integers(1, 64))) + data[start:]


def twice(generator, data):
    start, stop = span(generator, len(data), 512)
    return data[:stop] + data[start:stop] + data[stop:]


def add_end(generator, data):
    return data + generator.bytes(int(generator.integers(1, 200)))


def text_instead(generator, data):
    return b"<html><body>404 not found</body></html>\n"


DAMAGES = (
    flip_bit,
    random_bytes,
    zero_bytes,
    other_digit,
    cut_end,
    cut_few,
    cut_out,
    put_in,
    twice,
    add_end,
    text_instead,
)


def damage_file(generator, path: Path, others, kinds):
    "Damage a file in place; the name of the damage."
    kind = kinds[int(generator.integers(len(kinds)))]
    data = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "a folder":
        path.unlink(), path.mkdir()
    elif kind == "swapped":  # the place is taken by another file of its kind
        alike = [other for other in others if other.suffix == path.suffix and other.read_bytes() != data] or [
            path
        ]
        path.write_bytes(alike[int(generator.integers(len(alike)))].read_bytes())
    else:
        changed = kind(generator, data) if data else b"\0"
        path.write_bytes(changed)
        return kind.__name__, changed == data
    return kind, False


def restore(path: Path, data: bytes):
    if path.is_dir():
        shutil.rmtree(path)
    path.write_bytes(data)


def judge(read, folder, reference, same):
    "What reading a damaged folder comes to: (result, message)."
    try:
        got = read(folder)
    except HandlabError as error:
        text = str(error)
        return (
            "refused"
            if "\n" not in text and ": " in text and "; " in text
            else "a message that is not one line with place, complaint and what to do"
        ), text
    except Exception as error:
        return f"another exception: {type(error).__name__}", str(error)
    return ("right", "") if same(got, reference) else ("a silent wrong sample", "")


def fuzz(
    folder,  # a small dataset; it is put back as it was
    read,  # folder -> samples (any value that `same` can compare)
    reference=None,  # what `read` gives for whole files; None: read them first
    rounds: int = 100,
    seed: int = 0,
    same=same_samples,  # (got, reference) -> bool
    choose=lambda path: True,  # which files to damage
    kinds=(*DAMAGES, "missing", "a folder", "swapped"),
):
    "Damage files one at a time and read; the outcomes. Anything but 'right' or 'refused' fails with a list."
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and choose(path))
    assert files, "there is no file to damage"
    reference = read(folder) if reference is None else reference
    assert same(read(folder), reference), (
        "the reader does not give the reference even where nothing is damaged"
    )
    suffixes, outcomes = sorted({path.suffix for path in files}), []
    for turn in range(rounds):
        generator = np.random.default_rng([seed, turn])
        alike = [
            path for path in files if path.suffix == suffixes[turn % len(suffixes)]
        ]  # few labels and many images: each kind has its turn
        path = alike[int(generator.integers(len(alike)))]
        data = path.read_bytes()
        try:
            kind, unchanged = damage_file(generator, path, files, kinds)
            outcomes.append(
                Outcome(
                    os.fspath(path.relative_to(folder)),
                    f"{kind} (seed {seed}, {turn})",
                    *judge(read, folder, reference, same),
                )
            )
        finally:
            restore(path, data)
        if unchanged:
            outcomes[-1] = outcomes[-1]._replace(damage="nothing " + outcomes[-1].damage)
    wrong = [outcome for outcome in outcomes if outcome.result not in ("right", "refused")]
    assert not wrong, f"{len(wrong)} of {rounds} damages were not noticed as they should:\n" + "\n".join(
        f"{o.result}: {o.file}, {o.damage} {o.message}" for o in wrong[:20]
    )
    return outcomes


def counts(outcomes):
    "How often each result came out."
    return dict(Counter(outcome.result for outcome in outcomes))
