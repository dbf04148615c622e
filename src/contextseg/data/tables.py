"""The JSON files of a data set: its labels and channels, and what is known of each case."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from contextseg.data.listing import Case, Problems, nfc, some
from contextseg.disk import read_json, visible_files
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.interop.totalsegmentator import class_map


def read_table(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.

    Returns:
        The object; {} where there is no file.

    Raises:
        ContextsegError: The file is no JSON, or holds something else than an object.
    """
    content = read_json(path) if os.path.lexists(path) else {}
    if not isinstance(content, dict):
        raise ContextsegError(path, "not a JSON object", "it must begin with { and end with }")
    return content


def read_label_table(
    labels: Mapping[str, Any] | str, where: str | Path
) -> tuple[tuple[str, ...], tuple[int, ...], int | None, dict[str, tuple[int, ...]]]:
    """Read a label table: nnU-Net's {name: value or list of values}, or Decathlon's {value: name}.

    With list-valued regions a network learns the single values. A value without a name of its own
    is called "label_V".

    Args:
        labels: The table; or the name of a published one, "TotalSegmentator total".
        where: The file, for the message.

    Returns:
        (classes, values, ignore, regions), as in `data.layouts.Dataset`.

    Raises:
        ContextsegError: The table is not one of whole numbers, or is ambiguous.

    Example:
        >>> table = {"background": 0, "tumour": [2, 7], "core": 7, "ignore": 9}
        >>> read_label_table(table, "dataset.json")
        (('background', 'label_2', 'core'), (0, 2, 7), 9, {'tumour': (1, 2), 'core': (2,)})
    """
    parts = _label_parts(labels, where)
    ignore = parts.pop("ignore", None)
    backgrounds = [n for n, values in parts.items() if n.lower() == "background" or values == (0,)]
    if backgrounds and parts.pop(backgrounds[0]) != (0,):
        remedy = "give background the value 0, in the table and in the files"
        raise ContextsegError(where, "background is not 0", remedy)

    single: dict[int, str] = {}
    for name, numbers in parts.items():
        if 0 in numbers:
            what = f"label {name!r} includes 0, the background"
            raise ContextsegError(where, what, "leave 0 out of it")
        if len(numbers) == 1 and single.setdefault(numbers[0], name) != name:
            what = f"{single[numbers[0]]!r} and {name!r} are both {numbers[0]}"
            raise ContextsegError(where, what, "give each its own value")
    values = (0, *sorted({number for numbers in parts.values() for number in numbers}))
    if ignore is not None and (len(ignore) > 1 or ignore[0] <= values[-1]):
        what = "the ignore label is not the highest value"
        raise ContextsegError(where, what, f"make it {values[-1] + 1}, here and in the files")

    classes = ("background", *(single.get(value, f"label_{value}") for value in values[1:]))
    regions = {
        name: tuple(values.index(number) for number in numbers) for name, numbers in parts.items()
    }
    return classes, values, ignore[0] if ignore else None, regions


def _label_parts(labels: Any, where: str | Path) -> dict[str, tuple[int, ...]]:
    """Each name and its values, ascending."""
    if isinstance(labels, str):
        labels = class_map(labels, where)
    if isinstance(labels, list):
        labels = {str(name): value for value, name in enumerate(labels)}
    if not isinstance(labels, Mapping):
        remedy = 'write {"background": 0, "liver": 1}'
        raise ContextsegError(where, "the labels are not a table", remedy)

    by_value = all(isinstance(name, str) and str(value).isdigit() for value, name in labels.items())
    if labels and by_value:
        by_name = {name: int(value) for value, name in labels.items()}
        if len(by_name) < len(labels):
            remedy = "give each value a name of its own"
            raise ContextsegError(where, "two label values have the same name", remedy)
        labels = by_name

    parts = {}
    for name, value in labels.items():
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(type(n) is int and 0 <= n < 2**31 for n in numbers):
            what = f"the value of label {name!r} is {value!r}"
            remedy = "give a whole number from 0 up, or a list of them for a region"
            raise ContextsegError(where, what, remedy)
        parts[name] = tuple(sorted(set(numbers)))
    return parts


def read_channels(table: Mapping[str, Any], where: Path) -> tuple[str, ...]:
    """The names of the channels that a table lists.

    Args:
        table: A `dataset.json` or `cases.json`.
        where: The file, for the message.

    Returns:
        The names in order; () if the table lists none.

    Raises:
        ContextsegError: The channels are not numbered 0, 1 and so on.
    """
    names = table.get("channel_names") or table.get("modality") or {}
    if isinstance(names, str):
        names = [names]
    if isinstance(names, list):
        names = dict(enumerate(names))
    try:
        names = {int(number): str(name) for number, name in names.items()}
        return tuple(names[i] for i in range(len(names)))
    except (KeyError, ValueError, AttributeError):
        what = "the channels are not numbered 0, 1, ..."
        raise ContextsegError(where, what, 'write "channel_names": {"0": "CT"}') from None


# --- statements about cases -----------------------------------------------------------------------


def with_statements(
    folder: Path,
    cases_table: Mapping[str, Any],
    classes: Sequence[str],
    train: Sequence[Case],
    test: Sequence[Case],
    problems: Problems,
) -> tuple[list[Case], list[Case]]:
    """The cases with what `cases.json`, `patients.json` and the files beside the labels state.

    Args:
        folder: The data set.
        cases_table: Its `cases.json`; {} without one.
        classes: Names of its classes, background first.
        train: The training cases by the layout.
        test: The test cases by the layout.
        problems: What is wrong with statements is appended.

    Returns:
        (training cases, test cases), by the statements.
    """
    facts: dict[str, dict[str, Any]] = {}
    for case in [*train, *test]:
        what = ""
        if case.name in facts:
            what = f"{case.name!r} is the name of two cases"
        elif Path(case.name).name != case.name:
            what = f"{case.name!r} holds a slash"
        if what:
            remedy = "rename the files of one of them"
            problems.append((case.name, ContextsegError(case.images[0], what, remedy)))
        facts[case.name] = {"split": "train"}
    facts |= {case.name: {"split": "test"} for case in test}
    for where, entries in _statements(folder, cases_table, [*train, *test]):
        _add_statements(where, entries, facts, classes, problems)

    splits: dict[str, list[Case]] = {"train": [], "test": []}
    for case in [*train, *test]:
        stated = facts[case.name]
        patient = str(stated.get("patient", case.patient))
        annotated = stated.get("annotated")
        splits[stated["split"]].append(replace(case, patient=patient, annotated=annotated))
    return splits["train"], splits["test"]


def _statements(
    folder: Path, cases_table: Mapping[str, Any], cases: Iterable[Case]
) -> list[tuple[Path, dict[str, dict[str, Any]]]]:
    """Each file with statements about cases, and its entries by case."""
    stated = cases_table.get("cases") or {}
    if not isinstance(stated, dict):
        what = "cases is not an object {...} with an entry for each case"
        raise ContextsegError(folder / "cases.json", what, "mend the file in a text editor")
    files = [(folder / "cases.json", dict(stated))]
    patients = read_table(folder / "patients.json")
    by_case = {name: {"patient": patient} for name, patient in patients.items()}
    files.append((folder / "patients.json", by_case))
    label_folders = {case.label.parent for case in cases if case.label}
    paths = (p for place in label_folders if place.is_dir() for p in visible_files(place, "*.json"))
    for path in sorted(paths):
        if path.name.startswith("."):
            continue
        table = read_table(path)
        if path.name == "annotated.json":
            files.append((path, {name: {"annotated": names} for name, names in table.items()}))
        elif "annotated" in table:  # a file of another program beside a label has no such key
            files.append((path, {path.stem: table}))
    return [
        (path, {nfc(name): entry for name, entry in entries.items()})
        for path, entries in files
        if entries
    ]


def _add_statements(
    where: Path,
    entries: Mapping[str, Any],
    facts: dict[str, dict[str, Any]],
    classes: Sequence[str],
    problems: Problems,
) -> None:
    """Add one file's entries to the facts of each case.

    Names without a scan are a problem only where a scan is left without an entry.
    """
    unknown = [name for name in entries if name not in facts]
    without_entry = [name for name in facts if name not in entries] if unknown else []
    if unknown and without_entry:
        what = f"names cases without an image: {some(unknown)}"
        remedy = did_you_mean(unknown[0], without_entry)
        problems.append(("", ContextsegError(where, what, remedy)))
    for name, entry in entries.items():
        if name not in facts:
            continue
        if not isinstance(entry, dict):
            what = f"what it says of {name} is not an object"
            remedy = 'write {"annotated": [...]}'
            problems.append((name, ContextsegError(where, what, remedy)))
            continue
        for key, value in entry.items():
            if problem := _wrong_statement(where, name, key, value, classes):
                problems.append((name, problem))
            elif key == "annotated":
                facts[name][key] = tuple(title for title in classes[1:] if title in value)
            else:
                facts[name][key] = value


def _wrong_statement(
    where: Path, case: str, key: str, value: Any, classes: Sequence[str]
) -> ContextsegError | None:
    """What is wrong with one statement.

    Other keys are a person's own, unless they look like a misspelt one of ours.
    """
    keys = ("annotated", "split", "patient")
    if key not in keys:
        near = get_close_matches(key, keys, 1, 0.8)
        if not near:
            return None
        return ContextsegError(where, f"{case}: {key!r} is not known", did_you_mean(key, near))
    if key == "split" and value not in ("train", "test"):
        return ContextsegError(where, f"{case}: the split is {value!r}", "choose from train, test")
    if key != "annotated":
        return None
    if not isinstance(value, list):
        remedy = 'write a list of classes, ["liver", "spleen"]'
        return ContextsegError(where, f"{case}: annotated is {value!r}", remedy)
    for title in value:
        if title not in classes:
            what = f"{case}: no class is called {title!r}"
            return ContextsegError(where, what, did_you_mean(str(title), classes[1:]))
    return None


def read_splits(
    path: Path, train: Sequence[Case], problems: Problems
) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """Read the folds of a `splits_final.json`.

    Args:
        path: The file.
        train: The training cases, which it may name.
        problems: What is wrong with the names is appended.

    Returns:
        (training names, validation names) of each fold; () where there is no file.

    Raises:
        ContextsegError: The file is no list of {"train": [...], "val": [...]}.
    """
    if not os.path.lexists(path):
        return ()
    try:
        splits = tuple(
            (tuple(nfc(str(n)) for n in split["train"]), tuple(nfc(str(n)) for n in split["val"]))
            for split in read_json(path)
        )
    except (TypeError, KeyError):
        remedy = 'write [{"train": [...], "val": [...]}, ...]'
        raise ContextsegError(path, "not a list of folds", remedy) from None
    labelled = {case.name: case.label is not None for case in train}
    for fold, (training, validation) in enumerate(splits):
        unknown = [name for name in (*training, *validation) if name not in labelled]
        if unknown:
            what = f"fold {fold} names cases that are not there: {some(unknown)}"
            problems.append(("", ContextsegError(path, what, did_you_mean(unknown[0], labelled))))
        if both := sorted(set(training) & set(validation)):
            what = f"fold {fold} trains and validates on {some(both)}"
            problems.append(("", ContextsegError(path, what, "keep each name in one of the two")))
        if unlabelled := [name for name in validation if not labelled.get(name, True)]:
            what = f"fold {fold} validates on cases without a label: {some(unlabelled)}"
            remedy = "add their labels, or take them out of val"
            problems.append(("", ContextsegError(path, what, remedy)))
    return splits
