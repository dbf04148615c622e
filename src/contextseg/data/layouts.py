"""A folder of scans, whoever laid it out, as one `Dataset`: nnU-Net v2 raw, Medical Decathlon, or plain folders.

The label values of the files end here: `to_classes` on the way in, `to_values` on the way out. Which scans are
labelled, and which classes somebody looked for, are facts of each `Case`.

Beside any layout may lie `cases.json` ({"labels": {name: value}, "channel_names": [...], "cases": {case: {"annotated":
[...], "split": "train" or "test", "patient": ...}}}, each part optional), `patients.json` ({case: patient}) and
nnU-Net's `splits_final.json`; beside the labels, `annotated.json` ({case: [...]}) or `CASE.json` ({"annotated": []}).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.data.listing import Case, Wrong, decathlon, loose, nnunet, plain, some
from contextseg.data.tables import read_channels, read_label_table, read_splits, read_table, with_statements
from contextseg.disk import Problem
from contextseg.formats import WRITABLE, ending
from contextseg.volume import read, read_labels

_WRITTEN_AS = {".mhd": ".mha", ".nhdr": ".nrrd", ".bmp": ".png", ".jpg": ".png", ".jpeg": ".png"}


@dataclass(frozen=True)
class Dataset:
    """What a folder of scans holds.

    classes    K names, background first, and in `values` what the label files say for each; gaps are normal.
    ignore     the file value that means "not annotated" (nnU-Net's ignore label), or None.
    regions    what is evaluated: a name and the classes that it unites; without list-valued labels, one for each class.
    ending     the file ending that predictions get.
    splits     (train names, validation names) of each fold of `splits_final.json`; () without that file.
    others     more file values that are background: of classes that nobody asks for (`data.roi.restricted`).
    """

    name: str
    folder: Path
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    values: tuple[int, ...]
    ignore: int | None
    regions: dict[str, tuple[int, ...]]
    ending: str
    train: tuple[Case, ...]
    test: tuple[Case, ...]
    splits: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    others: tuple[int, ...] = ()


def open_dataset(folder: str | Path) -> Dataset:
    """The data set in `folder`. Label files are opened only where no table says what their values mean.

    Raises `Problem` for the first thing that is wrong with the layout (a missing channel, a label without an image, an
    unknown name); `contextseg.data.check` finds them all, and reads the scans too.
    """
    dataset, wrong = survey(folder)
    if not wrong:
        return dataset
    first = wrong[0][1]
    more = f" ({len(wrong) - 1} more: `contextseg check {folder}` lists them)" if len(wrong) > 1 else ""
    raise Problem(first.where, first.what, first.remedy + more)


def cases_in(path: str | Path) -> tuple[Case, ...]:
    """What there is to predict in `path`: a scan, a folder of scans, a DICOM series, or a data set's test cases.

    Of a data set without test cases, its training cases. Raises `Problem` where there is no scan.
    """
    path = Path(path)
    wrong: Wrong = []
    if not path.exists():
        raise Problem(path, "there is no such file or folder", "check the path")
    if _looks_like_data_set(path):
        dataset = open_dataset(path)
        return dataset.test or dataset.train
    cases = loose(path, wrong)
    if wrong:
        raise wrong[0][1]
    if not cases:
        raise Problem(path, "there is no scan", "give a scan, a folder of scans, or a data set's folder")
    return tuple(cases)


def survey(folder: str | Path) -> tuple[Dataset, Wrong]:
    """The data set in `folder`, and all that is wrong with its layout, each with its case's name ("" for the whole).

    Raises `Problem` only where nothing can be made of the folder: no known layout, no scan, a broken table.
    """
    folder = _recognised(Path(folder))
    wrong: Wrong = []
    where = folder / ("dataset.json" if (folder / "dataset.json").is_file() else "cases.json")
    cases_table = read_table(folder / "cases.json")
    table = {**cases_table, **read_table(folder / "dataset.json")}
    channels = read_channels(table, where)
    try:
        if "training" in table:
            train, test = decathlon(folder, table, wrong)
        elif where.name == "dataset.json" and ("file_ending" in table or "channel_names" in table):
            train, test = nnunet(folder, table, channels, wrong)
        else:
            train, test = plain(folder, channels, wrong)
    except (KeyError, TypeError, AttributeError) as error:
        raise Problem(
            where, f"not the expected table ({error!r})", "compare it with nnU-Net's documentation"
        ) from error
    if not train and not test:
        end = table.get("file_ending")
        remedy = f"dataset.json says that they end in {end}; is that so?" if end else "put scans into its images folder"
        raise Problem(folder, "there is no image", remedy)
    channels = channels or _guess_channels([*train, *test])
    labels = table.get("labels") or _found_values([*train, *test], wrong)
    classes, values, ignore, regions = read_label_table(labels, where)
    train, test = with_statements(folder, cases_table, classes, train, test, wrong)
    dataset = Dataset(
        name=str(table.get("name") or folder.resolve().name),
        folder=folder,
        channels=channels,
        classes=classes,
        values=values,
        ignore=ignore,
        regions=regions,
        ending=_ending(table, [*train, *test]),
        train=tuple(train),
        test=tuple(test),
        splits=read_splits(folder / "splits_final.json", train, wrong),
    )
    return dataset, wrong


def _recognised(folder: Path) -> Path:
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "the folder does not exist"
        raise Problem(folder, what, "give the folder that holds the data set")

    if _looks_like_data_set(folder):
        return folder
    around = [folder.resolve().parent, *sorted(p for p in folder.iterdir() if not p.name.startswith("."))]
    near = [str(p) for p in around if _looks_like_data_set(p)]
    layouts = "a data set has a dataset.json (nnU-Net v2, Decathlon), or folders called images and labels"
    remedy = f"did you mean {some(near, 3)}?" if near else layouts
    raise Problem(folder, "not a data set of a known layout", remedy)


def _looks_like_data_set(folder: Path) -> bool:
    signs = ("dataset.json", "images", "imagesTr", "imagesTs")
    return folder.is_dir() and any((folder / sign).exists() for sign in signs)


def _guess_channels(cases: Sequence[Case]) -> tuple[str, ...]:
    """Names for channels that nobody named, from the first scan that can be read: "CT" where it reaches below -500."""
    for case in cases:
        try:
            scan = read(*case.images)
        except Problem:
            continue  # the check reads every scan and says so
        return tuple("CT" if channel.min() <= -500 else f"channel_{i}" for i, channel in enumerate(scan.array))
    return tuple(f"channel_{i}" for i in range(max(len(case.images) for case in cases)))


def _found_values(cases: Sequence[Case], wrong: Wrong, most: int = 255) -> dict[str, int]:
    """A label table made from the files themselves, read once, several at a time: each value is its own name."""

    def one(case: Case) -> set[int] | Problem:
        try:
            return set(np.unique(read_labels(case.label).array).tolist()) if case.label else set()
        except Problem as problem:
            return problem

    values: set[int] = set()
    with ThreadPoolExecutor(4) as pool:
        for case, found in zip(cases, pool.map(one, cases)):
            if isinstance(found, Problem):
                wrong.append((case.name, found))
            elif min(found, default=0) < 0 or len(found) > most:
                what = f"{len(found)} label values from {min(found)} to {max(found)}; a scan instead of a label?"
                wrong.append(
                    (case.name, Problem(str(case.label), what, "use whole numbers from 0 up, one for each class"))
                )
            else:
                values |= found
    return {f"label_{value}": value for value in sorted(values - {0})}


def _ending(table: Mapping[str, Any], cases: Sequence[Case]) -> str:
    """What predictions are called like: the labels if there are some, else the images, else NIfTI.

    Not as pairs of a header and its voxels, which cannot be replaced atomically, nor with loss.
    """
    files = [case.label for case in cases if case.label] or [case.images[0] for case in cases if case.images]
    counted = Counter(ending(path) for path in files if not path.is_dir())
    end = table.get("file_ending") or (counted.most_common(1)[0][0] if counted else ".nii.gz")
    return _WRITTEN_AS.get(end, end if end in WRITABLE else ".nii.gz")


# --- label values ---------------------------------------------------------------------------------------------------


def to_classes(dataset: Dataset, label_array: np.ndarray, where: str | Path) -> np.ndarray:
    """File values (any integer type, any shape) to class indices, int16, with `IGNORE` for the ignore value.

    Raises `Problem` that names the values which the label table does not have, and where they may come from; `where` is
    the file.
    """
    known = dict.fromkeys(dataset.others, 0) | {value: k for k, value in enumerate(dataset.values)}
    if dataset.ignore is not None:
        known[dataset.ignore] = IGNORE
    values = np.unique(label_array)
    strange = [int(value) for value in values if int(value) not in known]
    if strange:
        table = ", ".join(f"{value} {name}" for name, value in zip(dataset.classes, dataset.values))
        table += f"; as background {some(map(str, dataset.others), 8)}" if dataset.others else ""
        plural = "label values that are" if len(strange) > 1 else "a label value that is"
        what = f"{plural} not in the label table: {some(map(str, strange), 8)} (the table: {table})"
        raise Problem(where, what, _whence(dataset, strange))
    codes = np.array([known[int(value)] for value in values], np.int16)
    if not len(values) or int(values[-1]) - int(values[0]) > 1 << 20:
        return codes[np.searchsorted(values, label_array)] if len(values) else np.zeros(label_array.shape, np.int16)
    lookup = np.zeros(int(values[-1]) - int(values[0]) + 1, np.int16)
    lookup[values.astype(np.int64) - int(values[0])] = codes
    return lookup[label_array.astype(np.int32, copy=False) - np.int32(values[0])]


def _whence(dataset: Dataset, strange: Sequence[int]) -> str:
    """Where wrong label values may come from, and so what to do."""
    if len(strange) > 20:
        return "this looks like a scan, or like labels resampled with interpolation; export the label map again"
    if strange == [255] and len(dataset.classes) == 2:
        return f"255 is often {dataset.classes[1]} saved as a picture; save it as {dataset.values[1]}"
    ignore = max((*dataset.values, *dataset.others)) + 1
    if min(strange) < 0 or (dataset.ignore is None and strange == [ignore]):
        return (
            f'if it means "not annotated", add "ignore": {ignore} to the labels and use {ignore}; else correct the file'
        )
    return "add them to the labels of the data set, or correct the file"


def to_values(dataset: Dataset, class_array: np.ndarray) -> np.ndarray:
    """Class indices, any shape, to the file's own values, in the smallest unsigned type that holds all of them.

    `IGNORE` becomes the ignore value, or 0 where the data set has none. Raises IndexError for a class that is not
    there.
    """
    values = [*dataset.values, 0 if dataset.ignore is None else dataset.ignore]  # the last, which IGNORE = -1 picks
    if class_array.size and not -1 <= class_array.min() <= class_array.max() < len(dataset.values):
        raise IndexError(f"classes {class_array.min()} to {class_array.max()}, of {len(dataset.values)}")
    return np.array(values, np.min_scalar_type(max(values)))[class_array]


# --- folds ----------------------------------------------------------------------------------------------------------


def folds(dataset: Dataset, fold: int, of: int = 5, seed: int = 12345) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """(training cases, validation cases) of one fold; fold -1 trains on everything and validates on nothing.

    The folds of `splits_final.json` where there is one; else the labelled patients, sorted, in `of` shuffled parts.
    With one scan for each patient these are nnU-Net v2's own splits. Unlabelled cases are in every training part, but
    for those of patients that are validated on, and those that `splits_final.json` places itself.
    Raises `Problem` for a fold that is not there, and for fewer labelled patients than folds.
    """
    if fold == -1:
        return dataset.train, ()
    if dataset.splits:
        if not 0 <= fold < len(dataset.splits):
            where = dataset.folder / "splits_final.json"
            raise Problem(
                where, f"there is no fold {fold}", f"choose from 0 to {len(dataset.splits) - 1}, or -1 for all"
            )
        first, second = (set(names) for names in dataset.splits[fold])
        held = {case.patient for case in dataset.train if case.name in second}
        placed = {name for split in dataset.splits for half in split for name in half}
        first |= {c.name for c in dataset.train if not c.label and c.name not in placed and c.patient not in held}
    else:
        held = _held_out(dataset, fold, of, seed)
        second = {case.name for case in dataset.train if case.label and case.patient in held}
        first = {case.name for case in dataset.train if case.patient not in held}
    return tuple(c for c in dataset.train if c.name in first), tuple(c for c in dataset.train if c.name in second)


def _held_out(dataset: Dataset, fold: int, of: int, seed: int) -> set[str]:
    """The patients of one fold."""
    if not 0 <= fold < of:
        raise Problem(dataset.folder, f"there is no fold {fold} of {of}", f"choose from 0 to {of - 1}, or -1 for all")
    patients = sorted({case.patient for case in dataset.train if case.label})
    if of < 2 or len(patients) < of:
        what = f"{len(patients)} labelled patient{'' if len(patients) == 1 else 's'}, for {of} folds"
        raise Problem(
            dataset.folder, what, "use fold -1, which trains on everything, or 2 folds or more with a patient each"
        )
    order = np.arange(len(patients))
    np.random.RandomState(seed).shuffle(order)  # a stream that numpy has frozen; nnU-Net's
    return {patients[i] for i in np.array_split(order, of)[fold]}
