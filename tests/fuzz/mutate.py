"""Damage: one random change of one file, of a kind that its content has."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEP = "[" * 100_000 + "]" * 100_000
DIGITS = "7" * 5000
TEXTS = (
    "", " ", "\x00", "-1", "0", "1", "1.5", "nan", "inf", "-inf", "1e308", "1e999", "none", "true",
    "a" * 1100, "../../etc/passwd", "/", ".", "$x_1$", "=1+1", "@a", "<script>alert(1)</script>",
    "é\u0301\u202e", "\ud83d\ude00", "%s%n", "{}", "[]", '"', ",", "\n", "4294967297", DIGITS,
)  # fmt: skip
NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 7, 255, 256, 32768, 65536, 2**31 - 1, 2**31, -(2**31), 2**32, 2**63, -(2**63),
    10**30, 0.5, -0.0, 1e-30, 1e30, 1e308, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
SHORT = struct.Struct("<h"), struct.Struct(">h")
LONG = struct.Struct("<i"), struct.Struct(">i")
FLOAT = struct.Struct("<f"), struct.Struct(">f")


# --- bytes ----------------------------------------------------------------------------------------


def damaged_bytes(content: bytes, rng: random.Random, head: int = 700) -> bytes:
    """One to three changes of bytes, most of them in the head, where formats keep their facts."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = bytearray(rng.choice(_BYTES)(data, rng, head))
    return bytes(data)


def _place(data: bytearray, rng: random.Random, head: int) -> int:
    end = min(len(data), head) if rng.random() < 0.7 else len(data)
    return rng.randrange(max(end, 1))


def _flip(data: bytearray, rng: random.Random, head: int) -> bytearray:
    for _ in range(rng.choice((1, 1, 4, 30))):
        if data:
            data[_place(data, rng, head)] ^= 1 << rng.randrange(8)
    return data


def _byte(data: bytearray, rng: random.Random, head: int) -> bytearray:
    if data:
        data[_place(data, rng, head)] = rng.choice((0, 1, 10, 32, 45, 127, 128, 255))
    return data


def _number(data: bytearray, rng: random.Random, head: int) -> bytearray:
    kind = rng.choice((*SHORT, *LONG, *FLOAT))
    place = _place(data, rng, head) // 2 * 2
    value = rng.choice(NUMBERS)
    try:
        packed = kind.pack(value if kind in FLOAT else int(value))
    except (struct.error, OverflowError, ValueError):
        packed = b"\xff" * kind.size
    data[place : place + kind.size] = packed
    return data


def _cut(data: bytearray, rng: random.Random, head: int) -> bytearray:
    return data[: _place(data, rng, head)]


def _extend(data: bytearray, rng: random.Random, head: int) -> bytearray:
    return data + rng.choice((b"\x00" * 100, rng.randbytes(100), bytes(data[:300])))


def _block(data: bytearray, rng: random.Random, head: int) -> bytearray:
    place, size = _place(data, rng, head), rng.choice((1, 4, 64, 4096))
    data[place : place + size] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size), b""))
    return data


def _twice(data: bytearray, rng: random.Random, head: int) -> bytearray:
    place, size = _place(data, rng, head), rng.choice((1, 4, 64, 1024))
    data[place:place] = data[place : place + size]
    return data


_BYTES: tuple[Callable[[bytearray, random.Random, int], bytearray], ...] = (
    _flip, _byte, _number, _number, _cut, _extend, _block, _twice,
)  # fmt: skip


# --- containers -----------------------------------------------------------------------------------


def damaged_gzip(content: bytes, rng: random.Random) -> bytes:
    """The packed bytes damaged, or what is in them, or a little that unpacks to very much."""
    draw = rng.random()
    if draw < 0.4:
        return damaged_bytes(content, rng, head=len(content))
    inside = gzip.decompress(content)
    if draw < 0.95:
        return gzip.compress(damaged_bytes(inside, rng), 1, mtime=0)
    packer = zlib.compressobj(9, wbits=31)  # some gigabytes of zeros behind a header
    zeros = bytes(1 << 20)
    parts = [packer.compress(inside)] + [packer.compress(zeros) for _ in range(2500)]
    return b"".join([*parts, packer.flush()])


def damaged_zip(content: bytes, rng: random.Random) -> bytes:
    """The archive damaged, or one of its members, or with a member missing, doubled or renamed."""
    if rng.random() < 0.3:
        return damaged_bytes(content, rng, head=len(content))
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = [(name, file.read(name)) for name in file.namelist()]
    n = rng.randrange(len(members))
    name, inside = members[n]
    draw = rng.random()
    if draw < 0.8:
        members[n] = (name, damaged(inside, name, rng))
    elif draw < 0.9:
        del members[n]
    else:
        members[n] = (rng.choice(("../out", "a" * 300, name + "x")), inside)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, inside in members:
            file.writestr(zipfile.ZipInfo(name), inside)
    return out.getvalue()


# --- texts ----------------------------------------------------------------------------------------


def damaged_json(content: bytes, rng: random.Random) -> bytes:
    """One value of another type or size, a name less or more; or the text itself damaged."""
    if rng.random() < 0.2:
        return damaged_bytes(content, rng, head=len(content))
    try:
        root = json.loads(content)
    except ValueError:
        return damaged_bytes(content, rng, head=len(content))
    mark = "\ufffcmark"
    holders = list(_holders(root))
    if not holders:
        return rng.choice((b"", b"null", b"3", DEEP.encode()))
    for _ in range(rng.choice((1, 1, 1, 2))):
        holder, key = rng.choice(holders)
        draw = rng.random()
        if isinstance(holder, dict) and key not in holder:
            continue
        if isinstance(holder, list) and key >= len(holder):
            continue
        if draw < 0.15:
            del holder[key]
        elif draw < 0.25 and isinstance(holder, dict):
            holder[rng.choice(TEXTS)] = holder.pop(key)
        elif draw < 0.3 and isinstance(holder, list):
            holder.append(holder[key])
        else:
            holder[key] = _other_value(holder[key], rng, mark)
    text = json.dumps(root)
    if rng.random() < 0.03:
        text = rng.choice(("null", "[]", "{}", "3", '"a"', DEEP, DIGITS))
    return text.replace(json.dumps(mark + "deep"), DEEP).replace(
        json.dumps(mark + "digits"), DIGITS
    ).encode("utf-8", "replace")  # fmt: skip


def _holders(node: Any) -> Any:
    """Every (container, key) of a tree."""
    if not isinstance(node, dict | list):
        return
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        yield node, key
        yield from _holders(value)


def _other_value(value: Any, rng: random.Random, mark: str) -> Any:
    draw = rng.random()
    if draw < 0.25:
        return rng.choice(TEXTS)
    if draw < 0.55:
        return rng.choice(NUMBERS)
    if draw < 0.6:
        return mark + rng.choice(("deep", "digits"))
    if isinstance(value, int | float) and not isinstance(value, bool) and draw < 0.8:
        return rng.choice((-value, value + 1, value * 1000, str(value), [value]))
    if isinstance(value, list) and draw < 0.8:
        return rng.choice((value[:-1], value * 2, value[::-1], dict.fromkeys("ab", value)))
    return rng.choice((None, True, [], {}, [None], {"a": 1}, [[1]], value, [value], {"0": value}))


def damaged_table(content: bytes, rng: random.Random) -> bytes:
    """A cell, a row or a column of a CSV table changed; or its text."""
    if rng.random() < 0.25:
        return damaged_bytes(content, rng, head=len(content))
    rows = list(csv.reader(io.StringIO(content.decode("utf-8", "replace"))))
    if not rows or not rows[0]:
        return damaged_bytes(content, rng)
    draw = rng.random()
    row = rng.randrange(len(rows))
    column = rng.randrange(len(rows[0]))
    if draw < 0.6:
        rows[row] = [*rows[row], *[""] * len(rows[0])][: len(rows[0])]
        rows[row][column] = rng.choice((*TEXTS, *map(str, NUMBERS)))
    elif draw < 0.7:
        rows[row].append("more")
    elif draw < 0.8:
        rows[row] = rows[row][:column]
    elif draw < 0.9:
        rows = [line[:column] + line[column + 1 :] for line in rows]
    else:
        rows = rng.choice((rows[:1], rows[1:], [*rows, rows[row]], [rows[0], *rows]))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


def damaged_lines(content: bytes, rng: random.Random) -> bytes:
    """A line of JSON changed, cut, doubled or taken out."""
    lines = content.split(b"\n")
    n = rng.randrange(len(lines))
    draw = rng.random()
    if draw < 0.5 and lines[n].strip():
        lines[n] = damaged_json(lines[n], rng)
    elif draw < 0.7:
        lines[n] = damaged_bytes(lines[n], rng)
    elif draw < 0.8:
        del lines[n]
    else:
        lines.insert(n, rng.choice((b"null", b"[]", b"{}", b"3", b'{"a": 1}', lines[n])))
    return b"\n".join(lines)


def damaged_header(content: bytes, rng: random.Random) -> bytes:
    """A field of a text header, NRRD's or MetaImage's, with another value."""
    if rng.random() < 0.3:
        return damaged_bytes(content, rng)
    gap = b"\n\n" if content.startswith(b"NRRD") else b"ElementDataFile"
    head, found, voxels = content.partition(gap)
    lines = head.split(b"\n")
    fields = [n for n, line in enumerate(lines) if b":" in line or b"=" in line]
    if not found or not fields:
        return damaged_bytes(content, rng)
    n = rng.choice(fields)
    mark = b"=" if b"=" in lines[n] else b":"
    name, _, value = lines[n].partition(mark)
    draw = rng.random()
    if draw < 0.15:
        del lines[n]
    elif draw < 0.3:
        parts = value.split() or [b""]
        parts[rng.randrange(len(parts))] = str(rng.choice(NUMBERS)).encode()
        lines[n] = name + mark + b" " + b" ".join(parts)
    elif draw < 0.4:
        lines.insert(n, lines[n])
    elif draw < 0.5:
        lines[n] = rng.choice(TEXTS).encode("utf-8", "replace") + mark + value
    else:
        new = rng.choice((*TEXTS, *map(str, NUMBERS)))
        lines[n] = name + mark + b" " + new.encode("utf-8", "replace")
    return b"\n".join(lines) + found + voxels


def damaged(content: bytes, name: str, rng: random.Random) -> bytes:
    """Content damaged by what it is: its name and its first bytes say so."""
    low = name.lower()
    if content.startswith(b"\x1f\x8b"):
        return damaged_gzip(content, rng)
    if content.startswith(b"PK\x03\x04"):
        return damaged_zip(content, rng)
    if content.startswith(b"NRRD") or b"ObjectType" in content[:200]:
        return damaged_header(content, rng)
    if low.endswith(".json"):
        return damaged_json(content, rng)
    if low.endswith(".jsonl"):
        return damaged_lines(content, rng)
    if low.endswith((".csv", ".txt")):
        return damaged_table(content, rng)
    return damaged_bytes(content, rng)


# --- files ----------------------------------------------------------------------------------------


def damage_file(path: Path, rng: random.Random) -> str:
    """Change one file; what was done, in words."""
    draw = rng.random()
    if draw < 0.9:
        content = path.read_bytes()
        path.unlink()  # it may be a link into the corpus
        path.write_bytes(damaged(content, path.name, rng))
        return "content"
    return rng.choice(_FILES)(path, rng)


def _gone(path: Path, rng: random.Random) -> str:
    path.unlink()
    return "gone"


def _empty(path: Path, rng: random.Random) -> str:
    path.unlink()
    path.write_bytes(b"")
    return "empty"


def _folder(path: Path, rng: random.Random) -> str:
    path.unlink()
    path.mkdir()
    return "a folder"


def _pipe(path: Path, rng: random.Random) -> str:
    path.unlink()
    os.mkfifo(path)
    return "a pipe"


def _loop(path: Path, rng: random.Random) -> str:
    path.unlink()
    path.symlink_to(path.name)
    return "a link to itself"


def _renamed(path: Path, rng: random.Random) -> str:
    end = "".join(path.suffixes[-2:])
    stem = rng.choice(("a" * (238 - len(end)), "$x_1$", "a b", "-rf", "é", "%d", "case_0001"))
    path.rename(path.with_name(stem + end))
    return "renamed"


def _other_content(path: Path, rng: random.Random) -> str:
    others = [p for p in sorted(path.parent.iterdir()) if p.is_file() and p != path]
    if not others:
        return _empty(path, rng)
    path.unlink()
    shutil.copyfile(rng.choice(others), path)
    return "content of another"


_FILES = (_gone, _empty, _folder, _pipe, _loop, _renamed, _other_content)
