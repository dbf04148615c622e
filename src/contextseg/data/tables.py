"""What the JSON files of a data set say: its labels and channels, and what is known of each case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from contextseg.data.listing import Case, Wrong, some
from contextseg.disk import Problem, did_you_mean, read_json


def read_table(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no file. Raises `Problem` for anything else in the file."""
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise Problem(path, "not a JSON object", "it must begin with { and end with }")
    return content


def read_label_table(
    labels: Mapping[str, Any], where: str | Path
) -> tuple[tuple[str, ...], tuple[int, ...], int | None, dict[str, tuple[int, ...]]]:
    """(classes, values, ignore, regions) of a label table: nnU-Net's {name: value or list}, Decathlon's {value: name}.

    With list-valued regions the single values are what a network learns; one without a name of its own is "label_V".
    Raises `Problem` for what is not a table of whole numbers, or is ambiguous.

    >>> read_label_table({"background": 0, "tumour": [2, 7], "core": 7, "ignore": 9}, "dataset.json")
    (('background', 'label_2', 'core'), (0, 2, 7), 9, {'tumour': (1, 2), 'core': (2,)})
    """
    parts = _label_parts(labels, where)
    ignore = parts.pop("ignore", None)
    background = next((name for name, numbers in parts.items() if name.lower() == "background" or numbers == (0,)), "")
    if parts.pop(background, (0,)) != (0,):
        raise Problem(where, "background is not 0", "give background the value 0, in the table and in the files")
    single: dict[int, str] = {}
    for name, numbers in parts.items():
        if 0 in numbers:
            raise Problem(where, f"label {name!r} includes 0, the background", "leave 0 out of it")
        if len(numbers) == 1 and single.setdefault(numbers[0], name) != name:
            raise Problem(
                where, f"{single[numbers[0]]!r} and {name!r} are both {numbers[0]}", "give each its own value"
            )
    values = (0, *sorted({number for numbers in parts.values() for number in numbers}))
    if ignore is not None and (len(ignore) > 1 or ignore[0] <= values[-1]):
        raise Problem(
            where, "the ignore label is not the highest value", f"make it {values[-1] + 1}, here and in the files"
        )
    classes = ("background", *(single.get(value, f"label_{value}") for value in values[1:]))
    regions = {name: tuple(values.index(number) for number in numbers) for name, numbers in parts.items()}
    return classes, values, ignore[0] if ignore else None, regions


def _label_parts(labels: Any, where: str | Path) -> dict[str, tuple[int, ...]]:
    """Each name and its values, ascending."""
    if isinstance(labels, list):
        labels = {str(name): value for value, name in enumerate(labels)}
    if not isinstance(labels, Mapping):
        raise Problem(where, "the labels are not a table", 'write {"background": 0, "liver": 1}')
    if labels and all(isinstance(name, str) and str(value).isdigit() for value, name in labels.items()):
        turned = {name: int(value) for value, name in labels.items()}
        if len(turned) < len(labels):
            raise Problem(where, "two label values have the same name", "give each value a name of its own")
        labels = turned
    parts = {}
    for name, value in labels.items():
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(type(n) is int and 0 <= n < 2**31 for n in numbers):
            what = f"the value of label {name!r} is {value!r}"
            raise Problem(where, what, "give a whole number from 0 up, or a list of them for a region")
        parts[name] = tuple(sorted(set(numbers)))
    return parts


def read_channels(table: Mapping[str, Any], where: Path) -> tuple[str, ...]:
    """The names of the channels that a table lists, in order; () if it lists none. Raises `Problem` for gaps."""
    names = table.get("channel_names") or table.get("modality") or {}
    if isinstance(names, str):
        names = [names]
    if isinstance(names, list):
        names = dict(enumerate(names))
    try:
        names = {int(number): str(name) for number, name in names.items()}
        return tuple(names[i] for i in range(len(names)))
    except (KeyError, ValueError, AttributeError):
        raise Problem(where, "the channels are not numbered 0, 1, ...", 'write "channel_names": {"0": "CT"}') from None


# --- statements about cases -----------------------------------------------------------------------------------------


def with_statements(
    folder: Path,
    cases_table: Mapping[str, Any],
    classes: Sequence[str],
    train: Sequence[Case],
    test: Sequence[Case],
    wrong: Wrong,
) -> tuple[list[Case], list[Case]]:
    """(train, test) with what `cases.json`, `patients.json` and the files beside the labels say of each case."""
    said: dict[str, dict[str, Any]] = {}
    for case in [*train, *test]:
        if case.name in said or Path(case.name).name != case.name:
            what = f"{case.name!r} is the name of two cases" if case.name in said else f"{case.name!r} holds a slash"
            wrong.append((case.name, Problem(case.images[0], what, "rename the files of one of them")))
        said[case.name] = {"split": "train"}
    said |= {case.name: {"split": "test"} for case in test}
    for where, entries in _statements(folder, cases_table, [*train, *test]):
        _heard(where, entries, said, classes, wrong)
    both: dict[str, list[Case]] = {"train": [], "test": []}
    for case in [*train, *test]:
        facts = said[case.name]
        patient, annotated = str(facts.get("patient", case.patient)), facts.get("annotated")
        both[facts["split"]].append(replace(case, patient=patient, annotated=annotated))
    return both["train"], both["test"]


def _statements(
    folder: Path, cases_table: Mapping[str, Any], cases: Iterable[Case]
) -> list[tuple[Path, dict[str, dict[str, Any]]]]:
    """Each file that says something of cases, and what it says of which."""
    found = [(folder / "cases.json", dict(cases_table.get("cases") or {}))]
    patients = read_table(folder / "patients.json")
    found.append((folder / "patients.json", {name: {"patient": patient} for name, patient in patients.items()}))
    places = {case.label.parent for case in cases if case.label}
    for path in sorted(path for place in places if place.is_dir() for path in place.glob("*.json")):
        if path.name.startswith("."):
            continue
        table = read_table(path)
        if path.name == "annotated.json":
            found.append((path, {name: {"annotated": names} for name, names in table.items()}))
        elif "annotated" in table:  # another program's file beside a label is none of ours
            found.append((path, {path.stem: table}))
    return [(path, entries) for path, entries in found if entries]


def _heard(
    where: Path, entries: Mapping[str, Any], said: dict[str, dict[str, Any]], classes: Sequence[str], wrong: Wrong
) -> None:
    """Add one file's entries to what is `said`. Names without a scan matter only if a scan is left without an entry."""
    silent = [name for name in said if name not in entries]
    unknown = [name for name in entries if name not in said]
    if unknown and silent:
        what = f"names cases without an image: {some(unknown)}"
        wrong.append(("", Problem(where, what, did_you_mean(unknown[0], silent))))
    for name, entry in entries.items():
        if name not in said:
            continue
        if not isinstance(entry, dict):
            wrong.append(
                (name, Problem(where, f"what it says of {name} is not an object", 'write {"annotated": [...]}'))
            )
            continue
        for key, value in entry.items():
            if problem := _wrong_statement(where, name, key, value, classes):
                wrong.append((name, problem))
            elif key == "annotated":
                said[name][key] = tuple(title for title in classes[1:] if title in value)
            else:
                said[name][key] = value


def _wrong_statement(where: Path, case: str, key: str, value: Any, classes: Sequence[str]) -> Problem | None:
    """What is wrong with one statement. People's own keys are theirs, unless they look like a misspelt one of ours."""
    keys = ("annotated", "split", "patient")
    if key not in keys:
        near = get_close_matches(key, keys, 1, 0.8)
        return Problem(where, f"{case}: {key!r} is not known", did_you_mean(key, near)) if near else None
    if key == "split" and value not in ("train", "test"):
        return Problem(where, f"{case}: the split is {value!r}", "choose from train, test")
    if key == "annotated":
        if not isinstance(value, list):
            return Problem(where, f"{case}: annotated is {value!r}", 'write a list of classes, ["liver", "spleen"]')
        for title in value:
            if title not in classes:
                return Problem(where, f"{case}: no class is called {title!r}", did_you_mean(str(title), classes[1:]))
    return None


def read_splits(path: Path, train: Sequence[Case], wrong: Wrong) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """The folds of `splits_final.json`, () without the file: (train names, validation names) each.

    Raises `Problem` where the file is no list of {"train": [...], "val": [...]}; what the names get wrong is collected.
    """
    if not path.is_file():
        return ()
    try:
        splits = tuple((tuple(map(str, s["train"])), tuple(map(str, s["val"]))) for s in read_json(path))
    except (TypeError, KeyError):
        raise Problem(path, "not a list of folds", 'write [{"train": [...], "val": [...]}, ...]') from None
    labelled = {case.name: case.label is not None for case in train}
    for fold, (first, second) in enumerate(splits):
        unknown = [name for name in (*first, *second) if name not in labelled]
        if unknown:
            what = f"fold {fold} names cases that are not there: {some(unknown)}"
            wrong.append(("", Problem(path, what, did_you_mean(unknown[0], labelled))))
        if both := sorted(set(first) & set(second)):
            what = f"fold {fold} trains and validates on {some(both)}"
            wrong.append(("", Problem(path, what, "keep each name in one of the two")))
        if bare := [name for name in second if not labelled.get(name, True)]:
            what = f"fold {fold} validates on cases without a label: {some(bare)}"
            wrong.append(("", Problem(path, what, "add their labels, or take them out of val")))
    return splits
