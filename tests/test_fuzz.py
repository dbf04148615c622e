"""Damaged inputs: right, or one error with file, cause and remedy; and what `inputs` promises."""

from __future__ import annotations

import gzip
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest

import contextseg as cs
from contextseg.cells import frame_text, read_table_file, refuse_words
from contextseg.disk import csv_text, read_rows, write_text
from contextseg.errors import ContextsegError
from contextseg.inputs import damage_named, misfit, read_json, read_json_lines
from contextseg.leftovers import temporary_beside
from contextseg.parallel import map_cases
from contextseg.volume import as_volume

pytest.importorskip("resource")  # the limits of the processes that read
from fuzz import corpus, outcome, pool
from fuzz.mutate import DEEP, DIGITS, damaged

SEED = 0
INPUTS = 300


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus.make(tmp_path_factory.mktemp("fuzz") / "corpus")


def test_every_input_is_right_or_one_error(files: Path, tmp_path: Path) -> None:
    results = list(pool.outcomes(files, tmp_path / "work", SEED, range(INPUTS)))
    bad = [r for r in results if r["outcome"] not in (outcome.RIGHT, outcome.ERROR)]
    assert bad == [], json.dumps(bad, indent=1)
    facts = pool.summary(results)
    assert set(facts["readers"]) == set(outcome.READERS)
    assert facts["total"][outcome.RIGHT] > INPUTS / 5
    assert facts["total"][outcome.ERROR] > INPUTS / 5


def test_other_exceptions_and_crashes_are_seen(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(folder: Path, path: Path) -> None:
        raise ValueError("not mended")

    monkeypatch.setitem(
        outcome.READERS, outcome.reader_of(0), outcome.Reader("texts", ("*",), (fails,))
    )
    found = outcome.tried(files, tmp_path, SEED, 0)
    assert (found.outcome, found.what) == (outcome.OTHER, "ValueError: not mended")
    child = pool._Child(tmp_path / "no-corpus", tmp_path, SEED)
    assert child.tried(0)["outcome"] == outcome.CRASH


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.jsonl", "a.nii"])
def test_an_input_is_the_same_each_time(name: str) -> None:
    content = b'{"a": [1, 2], "b": "c"}\n{"d": 1}\n'
    made = [[damaged(content, name, random.Random(n)) for n in range(30)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > 10


# --- JSON -----------------------------------------------------------------------------------------


@dataclass
class Shape:
    steps: int
    parts: tuple[float, ...] = ()
    way: Literal["a", "b"] = "a"
    more: dict[str, int] | None = None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"steps": 1, "parts": [1, 2.5], "more": {"x": 1}, "unknown": []}, ""),
        ({"steps": 1, "more": None}, ""),
        ({}, "steps is missing"),
        ({"steps": True}, "steps is True, not a whole number"),
        ({"steps": 1.5}, "steps is 1.5, not a whole number"),
        ({"steps": 10**20}, "steps is 100000000000000000000, not a whole number"),
        ({"steps": 1, "parts": [1, "2"]}, "parts.1 is '2', not a number"),
        ({"steps": 1, "parts": {}}, "parts is {}, not a list [...]"),
        ({"steps": 1, "way": "c"}, "way is 'c', not one of a, b"),
        ({"steps": 1, "more": {"x": "y"}}, "more.x is 'y', not a whole number"),
        ([1], "it is [1], not an object {...}"),
    ],
)
def test_a_value_of_another_type_is_named(content: Any, words: str) -> None:
    assert misfit(content, Shape) == words


@pytest.mark.parametrize(
    "content",
    [b"", b"{", DEEP.encode(), DIGITS.encode(), b"\xff\xfe", b'{"a": "b"}', b"null", b"[]"],
)
def test_json_is_read_or_one_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ContextsegError) as caught:
        read_json(path, dict[str, int], "mend it")
    assert caught.value.where == str(path)
    assert len(str(caught.value)) < 300 + len(str(path))
    path.unlink()
    path.mkdir()
    with pytest.raises(ContextsegError, match="a folder, not a file"):
        read_json(path)


def test_a_line_that_was_cut_off_is_left_out_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_json_lines(path) == []
    path.write_text('{"a": 1}\n{"b": 2}\n{"c"', encoding="utf-8")
    assert read_json_lines(path) == [{"a": 1}, {"b": 2}]
    path.write_text('{"a": 1}\n{"b"\n{"c": 3}\n', encoding="utf-8")
    with pytest.raises(ContextsegError, match="line 2"):
        read_json_lines(path)


# --- files ----------------------------------------------------------------------------------------


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "a.json", "a.mhd", "a.dcm", "a.png"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ContextsegError, match="a named pipe"):
            cs.read(tmp_path / name)
    with pytest.raises(ContextsegError, match="a named pipe"):
        read_json(tmp_path / "a.json")


def test_a_file_that_unpacks_to_very_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    as_volume(np.ones((3, 4, 5), np.int16), (2, 1, 1)).save(path)
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content + bytes(1 << 28)))
    with pytest.raises(ContextsegError, match="twice what its header asks for"):
        cs.read(path)
    path.write_bytes(gzip.compress(content + bytes(1000)))  # a little after the voxels does no harm
    assert cs.read(path).shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a.mha", b"NDims = 3", b"NDims = -1"),
        ("a.mha", b"DimSize = 5 4 3", b"DimSize = 5 4 30000000"),
        ("a.mha", b"TransformMatrix = ", b"TransformMatrix = " + b"1" * 1100),
        ("a.mha", b"CompressedData = True", b"CompressedData = " + b"a" * 1100),
        ("a.nrrd", b"dimension: 3", b"dimension: 3000"),
        ("a.nrrd", b"sizes: 5 4 3", b"sizes: 5 4 300000000"),
        ("a.nrrd", b"sizes: 5 4 3", b"sizes: 5 4 0"),
        ("a.nrrd", b"space origin: ", b"a" * 1100 + b":=b\nspace origin: "),
    ],
)
def test_headers_are_checked_before_itk_sees_them(
    name: str, old: bytes, new: bytes, tmp_path: Path
) -> None:
    as_volume(np.ones((3, 4, 5), np.int16), (2, 1, 1)).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert old in content
    (tmp_path / name).write_bytes(content.replace(old, new, 1))
    with pytest.raises(ContextsegError, match=r"header|without a voxel"):
        cs.read(tmp_path / name)


def test_whatever_a_reader_raises_is_one_error() -> None:
    for error in (
        MemoryError(),
        ValueError("a\n\x00b"),
        KeyError("k"),
        EOFError(),
        OSError(5, "io"),
    ):
        with pytest.raises(ContextsegError) as caught, damage_named("a.npz", "copy it"):
            raise error
        assert caught.value.where == "a.npz"
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is error


def test_memory_that_one_case_lacks_stops_no_other() -> None:
    def work(size: int) -> int:
        if size > 1:
            raise MemoryError
        return size

    results = [result for _, result in map_cases(work, [1, 2, 0])]
    assert results[::2] == [1, 0]
    assert isinstance(results[1], ContextsegError)


def test_one_damaged_scan_is_one_finding(tmp_path: Path) -> None:
    for n, name in enumerate("abcd"):
        array = np.random.default_rng(n).integers(0, 99, (6, 9, 8)).astype(np.int16)
        label = np.zeros((6, 9, 8), np.uint8)
        label[2:4, 3:6, 3:6] = 1
        as_volume(array[None], (2, 1, 1)).save(tmp_path / "images" / f"{name}.nii.gz")
        volume = as_volume(label, (2, 1, 1))
        volume.with_array(label).save(tmp_path / "labels" / f"{name}.nii.gz")
    path = tmp_path / "images" / "b.nii.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :][:64] = bytes(64)
    path.write_bytes(content[: len(content) // 2] + b"\xff" * 300)
    errors = [f for f in cs.check(tmp_path, verbose=False) if f.level == "error"]
    assert {f.case for f in errors} == {"b"}
    assert {f.kind for f in errors} == {"unreadable"}


# --- names ----------------------------------------------------------------------------------------

NAMES = ["=1+1", "-a", "+a", "@a", "'=a", "'tis", "a,b", 'a"b', "-1.5", "1", "$x_1$", "<script>"]


def test_a_table_holds_no_formula_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_text(path, csv_text(["case", "dsc"], [{"case": n, "dsc": -0.5} for n in NAMES]))
    assert [row["case"] for row in read_rows(path, ["case", "dsc"])] == NAMES
    assert "\n'=1+1,-0.5\n" in path.read_text(encoding="utf-8")
    frame = pd.DataFrame({"case": NAMES, "dsc": -0.5})
    write_text(path, frame_text(frame))
    again = read_table_file(path, ["case"])
    pd.testing.assert_frame_equal(again, frame)
    for line in path.read_text(encoding="utf-8").splitlines():
        assert line[0] not in "=+@"
    path.write_text("case,dsc\na,0.5\nb,word\n", encoding="utf-8")
    with pytest.raises(ContextsegError, match="line 3: dsc is 'word'"):
        refuse_words(read_table_file(path, ["case"]), ["dsc"], path, "mend it")


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    for name in ("a" * 238 + ".nii.gz", "é" * 120 + ".json"):
        temporary = temporary_beside(tmp_path / name)
        assert len(os.fsencode(temporary.name)) <= 255
        assert temporary.name.endswith(name[-7:])
        write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text(encoding="utf-8") == "text"


def test_dollars_in_names_are_no_formula(tmp_path: Path) -> None:
    from contextseg.reports.charts import chart

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], label=r"$\frac$")
        axes.set_title("case $a_$ and $b^$")
        axes.set_xticks([0, 1], ["$_$", "$^$"])
        axes.legend()

    assert chart(draw).startswith(b"<?xml")
