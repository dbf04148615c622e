"""A folder of scans as one `Dataset`: nnU-Net v2 raw, Medical Decathlon, or plain folders.

The label values of the files end here: `to_classes` on the way in, `to_values` on the way out.
Which scans are labelled, and which classes were annotated in them, are facts of each `Case`.

Beside any layout may lie

- `cases.json`: {"labels": {name: value}, "channel_names": [...], "cases": {case: {"annotated":
  [...], "split": "train" or "test", "patient": ...}}}, each part optional;
- `patients.json`: {case: patient};
- nnU-Net's `splits_final.json`;
- beside the labels, `annotated.json` ({case: [...]}) or `CASE.json` ({"annotated": [...]}).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.data.listing import (
    ENDINGS,
    Case,
    Problems,
    decathlon_cases,
    nnunet_cases,
    plain_cases,
    some,
    unlabelled_cases,
)
from contextseg.data.tables import (
    read_channels,
    read_label_table,
    read_splits,
    read_table,
    with_statements,
)
from contextseg.data.unused import name_unused, unused_of_cases
from contextseg.disk import readable
from contextseg.errors import ContextsegError, plural
from contextseg.formats import WRITABLE, ending
from contextseg.interop.names import named_values, segments_by_value
from contextseg.interop.segments import Colour
from contextseg.parallel import map_cases
from contextseg.slabs import slabs, unique_values
from contextseg.volume import read, read_labels

_WRITTEN_AS = {".mhd": ".mha", ".nhdr": ".nrrd", ".bmp": ".png", ".jpg": ".png", ".jpeg": ".png"}


@dataclass(frozen=True)
class Dataset:
    """What a folder of scans holds.

    Attributes:
        name: Name of the data set, from its table or its folder.
        folder: Where it lies.
        channels: Names of the channels of each scan.
        classes: Names of the K classes, background first.
        values: The value of each class in label files. Gaps are normal.
        ignore: The file value that means "not annotated" (nnU-Net's ignore label), or None.
        regions: What is evaluated: the indices of the classes that each name unites. Without
            list-valued labels, each class is a region.
        ending: The file ending of predictions.
        train: The training cases, labelled or not.
        test: The test cases.
        splits: (training names, validation names) of each fold of `splits_final.json`; () without
            that file.
        others: More file values that are background: those of the classes outside the ROI
            (`data.roi.restricted`).
        unused: Files in the folders of images and labels that no case uses.
        colours: Colour of a class by name, red, green and blue from 0 to 1, where `.seg.nrrd` or
            DICOM SEG labels or a label description of ITK-SNAP beside the labels give one.
        terminology: 3D Slicer's terminology entry of a class by name, where the labels have one.
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
    unused: tuple[Path, ...] = ()
    colours: Mapping[str, Colour] = field(default_factory=dict)
    terminology: Mapping[str, str] = field(default_factory=dict)

    def region_values(self) -> dict[str, list[int]]:
        """The label values of each region in label files, in the order of `regions`."""
        return {name: [self.values[k] for k in union] for name, union in self.regions.items()}


def open_dataset(folder: str | Path) -> Dataset:
    """Open the data set in a folder.

    Label files are read only where no table says what their values mean. `contextseg.data.check`
    finds every problem, in the scans too.

    Args:
        folder: The data set, in any of the known layouts.

    Returns:
        The data set.

    Raises:
        ContextsegError: The layout has a problem (a missing channel, a label without an image, an
            unknown name); the message names the first.
    """
    dataset, problems = survey(folder)
    if not problems:
        return dataset
    first = problems[0][1]
    remedy = first.remedy
    if len(problems) > 1:
        remedy += f" ({len(problems) - 1} more: `contextseg check {folder}` lists them)"
    raise ContextsegError(first.where, first.what, remedy)


def cases_in(path: str | Path) -> tuple[Case, ...]:
    """The cases to predict in a scan, a folder of scans, a DICOM series or a data set.

    Args:
        path: The file or folder.

    Returns:
        The cases; of a data set its test cases or, where there are none, its training cases.

    Raises:
        ContextsegError: There is no such path, or no scan.
    """
    return scans_in(path)[0]


@readable
def scans_in(path: str | Path) -> tuple[tuple[Case, ...], tuple[Path, ...]]:
    """The cases to predict, as `cases_in`, and the files that are left out.

    Args:
        path: A scan, a folder of scans, a DICOM series or a data set.

    Returns:
        The cases, and the files that may be scans and are none of the cases'.

    Raises:
        ContextsegError: There is no such path, or no scan.
    """
    path = Path(path)
    problems: Problems = []
    if not path.exists():
        raise ContextsegError(path, "there is no such file or folder", "check the path")
    if is_dataset(path):
        dataset = open_dataset(path)
        return dataset.test or dataset.train, dataset.unused
    cases = unlabelled_cases(path, problems)
    if problems:
        raise problems[0][1]
    unused = unused_of_cases([path], cases)
    if not cases:
        what = f"there is no scan of a known ending; {name_unused(unused)}".rstrip("; ")
        remedy = f"give a scan ({', '.join(ENDINGS)}), a folder of scans, or a data set's folder"
        raise ContextsegError(path, what, remedy)
    return tuple(cases), unused


def is_dataset(path: str | Path) -> bool:
    """Whether a path is a data set of a known layout, in contrast to a folder of scans alone.

    Args:
        path: A file or folder.
    """
    path = Path(path)
    return _looks_like_data_set(path) and not _is_table_beside_scans(path)


def _is_table_beside_scans(folder: Path) -> bool:
    """Whether a `dataset.json` lies among scans and lists none, as nnU-Net leaves it."""
    if any((folder / name).exists() for name in ("images", "imagesTr", "imagesTs")):
        return False
    return not {"training", "test", "dataset"} & set(read_table(folder / "dataset.json"))


@readable
def survey(folder: str | Path) -> tuple[Dataset, Problems]:
    """The data set in a folder, and every problem of its layout.

    Args:
        folder: The data set, in any of the known layouts.

    Returns:
        The data set as far as it can be used, and each problem with its case's name ("" for the
        whole data set).

    Raises:
        ContextsegError: The folder cannot be used at all: no known layout, no scan, or a broken
            table.
    """
    folder = _recognised(Path(folder))
    problems: Problems = []
    where = folder / ("dataset.json" if (folder / "dataset.json").is_file() else "cases.json")
    cases_table = read_table(folder / "cases.json")
    table = {**cases_table, **read_table(folder / "dataset.json")}
    channels = read_channels(table, where)
    try:
        v2 = where.name == "dataset.json" and ("file_ending" in table or "channel_names" in table)
        if table.get("training") or (table.get("test") and "training" in table and not v2):
            train, test = decathlon_cases(folder, table, problems)
        elif v2:
            train, test = nnunet_cases(folder, table, channels, problems)
        else:
            train, test = plain_cases(folder, channels, problems)
    except (KeyError, TypeError, AttributeError) as error:
        remedy = "compare it with nnU-Net's documentation"
        raise ContextsegError(where, f"not the expected table ({error!r})", remedy) from error
    if not train and not test:
        end = table.get("file_ending")
        remedy = f"put scans into its images folder ({', '.join(ENDINGS)})"
        if end:
            remedy = f"dataset.json says that they end in {end}; is that so?"
        unused = name_unused(unused_of_cases(_folders(folder, ()), ()))
        what = f"there is no image; {unused}" if unused else "there is no image"
        raise ContextsegError(folder, what, remedy)

    channels = channels or _guess_channels([*train, *test])
    labels = table.get("labels") or _table_of_values([*train, *test], problems)
    classes, values, ignore, regions = read_label_table(labels, where)
    train, test = with_statements(folder, cases_table, classes, train, test, problems)
    colours, terminology = _appearance([*train, *test], classes, values, bool(table.get("labels")))
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
        splits=read_splits(folder / "splits_final.json", train, problems),
        unused=_unused(folder, [*train, *test], problems),
        colours=colours,
        terminology=terminology,
    )
    return dataset, problems


def _folders(folder: Path, cases: Sequence[Case]) -> list[Path]:
    """The folders of images and labels of a data set, those of listed files too."""
    usual = [folder / f"{kind}{part}" for kind in ("images", "labels") for part in ("", "Tr", "Ts")]
    files = [path for case in cases for path in (*case.images, case.label) if path]
    return [*usual, *dict.fromkeys(p.parent for p in files if folder in p.parent.parents)]


def _unused(folder: Path, cases: Sequence[Case], problems: Problems) -> tuple[Path, ...]:
    """The files of a data set that no case uses, without those that are a problem already."""
    reported = [Path(problem.where) for _, problem in problems]
    return unused_of_cases(_folders(folder, cases), cases, reported)


def _recognised(folder: Path) -> Path:
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "the folder does not exist"
        raise ContextsegError(folder, what, "give the folder that holds the data set")
    if _looks_like_data_set(folder):
        return folder

    inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    near = [str(p) for p in (folder.resolve().parent, *inside) if _looks_like_data_set(p)]
    remedy = (
        "a data set has a dataset.json (nnU-Net v2, Decathlon), or folders called images and labels"
    )
    if near:
        remedy = f"did you mean {some(near, 3)}?"
    raise ContextsegError(folder, "not a data set of a known layout", remedy)


def _looks_like_data_set(folder: Path) -> bool:
    signs = ("dataset.json", "images", "imagesTr", "imagesTs")
    return folder.is_dir() and any((folder / sign).exists() for sign in signs)


def _guess_channels(cases: Sequence[Case]) -> tuple[str, ...]:
    """Names of unnamed channels, from the first readable scan: "CT" where it reaches below -500."""
    for case in cases:
        try:
            scan = read(*case.images)
        except ContextsegError:
            continue  # the check reads every scan and reports it
        return tuple(
            "CT" if channel.min() <= -500 else f"channel_{i}"
            for i, channel in enumerate(scan.array)
        )
    return tuple(f"channel_{i}" for i in range(max(len(case.images) for case in cases)))


def _table_of_values(cases: Sequence[Case], problems: Problems, most: int = 255) -> dict[str, int]:
    """A label table from the label files themselves, read once.

    Values are named by `.seg.nrrd` files and ITK-SNAP's label descriptions, else "label_V".
    """

    def label_values(case: Case) -> set[int]:
        if not case.label:
            return set()
        return set(unique_values(read_labels(case.label, small=True).array).tolist())

    known: set[int] = set()
    for case, values in map_cases(label_values, cases):
        if isinstance(values, ContextsegError):
            problems.append((case.name, values))
        elif min(values, default=0) < 0 or len(values) > most:
            extent = f"from {min(values)} to {max(values)}"
            what = f"{len(values)} label values {extent}; a scan instead of a label?"
            remedy = "use whole numbers from 0 up, one for each class"
            problems.append((case.name, ContextsegError(str(case.label), what, remedy)))
        else:
            known |= values
    try:
        return named_values(known, [case.label for case in cases if case.label])
    except ContextsegError as error:
        problems.append(("", error))
        return named_values(known, ())


def _appearance(
    cases: Sequence[Case], classes: Sequence[str], values: Sequence[int], tabled: bool
) -> tuple[dict[str, Colour], dict[str, str]]:
    """Colour and terminology of the classes that label files describe.

    Where a table names the classes (`tabled`), only files that are called as 3D Slicer's are opened
    for it, since a data set has thousands.
    """
    files = [case.label for case in cases if case.label]
    if tabled and not any(path.name.lower().endswith(".seg.nrrd") for path in files):
        return {}, {}
    found = segments_by_value(files)
    known = {name: found[value] for name, value in zip(classes, values) if value in found}
    return (
        {name: segment.colour for name, segment in known.items() if segment.colour},
        {name: segment.terminology for name, segment in known.items() if segment.terminology},
    )


def _ending(table: Mapping[str, Any], cases: Sequence[Case]) -> str:
    """The ending of predictions: that of the labels, else of the images, else NIfTI's.

    Pairs of a header and its voxels cannot be replaced atomically, and lossy formats change labels;
    neither is written.
    """
    files = [case.label for case in cases if case.label]
    files = files or [case.images[0] for case in cases if case.images]
    counted = Counter(ending(path) for path in files if not path.is_dir())
    end = table.get("file_ending") or (counted.most_common(1)[0][0] if counted else ".nii.gz")
    if end == ".nrrd" and all(path.name.lower().endswith(".seg.nrrd") for path in files):
        return ".seg.nrrd"  # 3D Slicer's, with the names of the classes
    return _WRITTEN_AS.get(end, end if end in WRITABLE else ".nii.gz")


# --- label values ---------------------------------------------------------------------------------


def to_classes(
    dataset: Dataset, label_array: np.ndarray, where: str | Path, small: bool = False
) -> np.ndarray:
    """Label values of a file to class indices.

    Args:
        dataset: Whose label table it is.
        label_array: Label values, any integer type, any shape.
        where: The file, for the message.
        small: Give int8 where that holds all of the classes.

    Returns:
        Class indices, int16, of the same shape, with `IGNORE` for the ignore value.

    Raises:
        ContextsegError: There are values that the label table lacks; the message names them and
            says where they may come from.
    """
    values = unique_values(label_array)
    kind: Any = np.int8 if small and len(dataset.values) <= 127 else np.int16
    codes = np.array(classes_of_values(dataset, values, where), kind)
    if not len(values):
        return np.zeros(label_array.shape, kind)

    first = int(values[0])
    span = int(values[-1]) - first
    if span > 1 << 20:  # too many for a table
        return codes[np.searchsorted(values, label_array)]
    lookup = np.zeros(span + 1, kind)
    lookup[values.astype(np.int64) - first] = codes
    out = np.empty(label_array.shape, kind)
    for part in slabs(out.shape):
        out[part] = lookup[label_array[part].astype(np.int32, copy=False) - np.int32(first)]
    return out


def classes_of_values(dataset: Dataset, values: np.ndarray, where: str | Path) -> tuple[int, ...]:
    """The class of each label value.

    Args:
        dataset: Whose label table it is.
        values: Label values, each once.
        where: The file, for the message.

    Returns:
        A class index, or `IGNORE`, for each.

    Raises:
        ContextsegError: As `to_classes`.
    """
    known = dict.fromkeys(dataset.others, 0) | {value: k for k, value in enumerate(dataset.values)}
    if dataset.ignore is not None:
        known[dataset.ignore] = IGNORE
    unknown = [int(value) for value in values if int(value) not in known]
    if unknown:
        raise _unknown_values(dataset, unknown, where)
    return tuple(known[int(value)] for value in values)


def _unknown_values(dataset: Dataset, unknown: Sequence[int], where: str | Path) -> ContextsegError:
    """The error for label values that the label table lacks."""
    table = ", ".join(f"{value} {name}" for name, value in zip(dataset.classes, dataset.values))
    if dataset.others:
        table += f"; as background {some(map(str, dataset.others), 8)}"
    subject = "label values that are" if len(unknown) > 1 else "a label value that is"
    what = f"{subject} not in the label table: {some(map(str, unknown), 8)} (the table: {table})"
    return ContextsegError(where, what, _remedy_for_values(dataset, unknown))


def _remedy_for_values(dataset: Dataset, unknown: Sequence[int]) -> str:
    """What to do about unknown label values, by where they may come from."""
    if len(unknown) > 20:
        return (
            "this looks like a scan, or like labels resampled with interpolation; "
            "export the label map again"
        )
    if unknown == [255] and len(dataset.classes) == 2:
        name, value = dataset.classes[1], dataset.values[1]
        return f"255 is often {name} saved as a picture; save it as {value}"
    ignore = max((*dataset.values, *dataset.others)) + 1
    if min(unknown) < 0 or (dataset.ignore is None and unknown == [ignore]):
        return (
            f'if it means "not annotated", add "ignore": {ignore} to the labels and use {ignore}; '
            "else correct the file"
        )
    return "add them to the labels of the data set, or correct the file"


def to_values(dataset: Dataset, class_array: np.ndarray) -> np.ndarray:
    """Class indices to the label values of the data set's files.

    Args:
        dataset: Whose label values are wanted.
        class_array: Class indices, any shape, with `IGNORE`.

    Returns:
        Label values, of the same shape, in the smallest unsigned type that holds all of them.
        `IGNORE` becomes the ignore value, or 0 where the data set has none.

    Raises:
        IndexError: A class does not exist.
    """
    ignore = 0 if dataset.ignore is None else dataset.ignore
    values = [*dataset.values, ignore]  # the last, which IGNORE = -1 picks
    if class_array.size and not -1 <= class_array.min() <= class_array.max() < len(dataset.values):
        extent = f"{class_array.min()} to {class_array.max()}"
        raise IndexError(f"classes {extent}, of {len(dataset.values)}")
    return np.array(values, np.min_scalar_type(max(values)))[class_array]


# --- folds ----------------------------------------------------------------------------------------


def folds(
    dataset: Dataset, fold: int, of: int = 5, seed: int = 12345
) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """The training and validation cases of one fold.

    The folds are those of `splits_final.json` where there is one; else the labelled patients,
    sorted, are shuffled and cut into `of` parts. With one scan for each patient these are nnU-Net
    v2's own splits. Unlabelled cases are in every training part, except those of validated patients
    and those that `splits_final.json` places itself.

    Args:
        dataset: The data set.
        fold: Index of the fold from 0; -1 trains on all cases and validates on none.
        of: Number of folds, where there is no `splits_final.json`.
        seed: Seed of the shuffle, where there is no `splits_final.json`.

    Returns:
        (training cases, validation cases), each in the order of the data set.

    Raises:
        ContextsegError: The fold does not exist, or there are fewer labelled patients than folds.
    """
    if fold == -1:
        return dataset.train, ()
    if dataset.splits:
        training, validation = _split_of_file(dataset, fold)
    else:
        held_out = _held_out(dataset, fold, of, seed)
        validation = {c.name for c in dataset.train if c.label and c.patient in held_out}
        training = {c.name for c in dataset.train if c.patient not in held_out}
    return (
        tuple(case for case in dataset.train if case.name in training),
        tuple(case for case in dataset.train if case.name in validation),
    )


def _split_of_file(dataset: Dataset, fold: int) -> tuple[set[str], set[str]]:
    """The names of a fold of `splits_final.json`, and the unlabelled cases that it leaves out."""
    if not 0 <= fold < len(dataset.splits):
        where = dataset.folder / "splits_final.json"
        remedy = f"choose from 0 to {len(dataset.splits) - 1}, or -1 for all"
        raise ContextsegError(where, f"there is no fold {fold}", remedy)
    training, validation = (set(names) for names in dataset.splits[fold])
    held_out = {case.patient for case in dataset.train if case.name in validation}
    placed = {name for split in dataset.splits for side in split for name in side}
    free = {
        case.name
        for case in dataset.train
        if not case.label and case.name not in placed and case.patient not in held_out
    }
    return training | free, validation


def _held_out(dataset: Dataset, fold: int, of: int, seed: int) -> set[str]:
    """The patients that one fold validates on."""
    if not 0 <= fold < of:
        remedy = f"choose from 0 to {of - 1}, or -1 for all"
        raise ContextsegError(dataset.folder, f"there is no fold {fold} of {of}", remedy)
    patients = sorted({case.patient for case in dataset.train if case.label})
    if of < 2 or len(patients) < of:
        what = f"{plural(len(patients), 'labelled patient')}, for {of} folds"
        remedy = "use --fold all, which trains on everything, or 2 folds with a patient each"
        raise ContextsegError(dataset.folder, what, remedy)
    order = np.arange(len(patients))
    np.random.RandomState(seed).shuffle(order)  # a stream that numpy has frozen; nnU-Net's
    return {patients[i] for i in np.array_split(order, of)[fold]}
