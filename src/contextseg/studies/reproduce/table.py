"""What each data set is, how its download lies, and what the paper did with it and reported.

The numbers are those of Li, Kamnitsas, Ouyang, Chen, Glocker, "Context label learning", IEEE TMI
2023 (arXiv 2212.08423). What it leaves open is taken from the authors' public code
(ZerojumpLine/CoLab) where that says it, and noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from contextseg.errors import ContextsegError, did_you_mean

PublishedScores = tuple[float, float, float, float]
"""DSC, SEN and PRC in per cent, and HD95 in mm: a cell of the paper's tables."""

ROWS = ("none", "kmeans", "dilated", "CoLab-2", "CoLab-4", "CoLab-6", "anatomy", "predicted")
"""The rows of the paper's tables, by the names that a comparison gives them."""


@dataclass(frozen=True)
class Reproduction:
    """One data set of the paper.

    Attributes:
        name: Name on the command line, and the start of the names of its cases.
        title: What is segmented in what, for people.
        channel: "CT" or "MR".
        source: What to download, and where.
        licence: Terms of use.
        cite: The publication to cite.
        layout: How the download lies, for people.
        missing: The remedy for a download that is not whole.
        images: Regular expressions of paths of scans in the download. Their groups `case` and
            `scan` name a case.
        labels: The same of label files.
        classes: Values of the label files by class, without the background.
        roi: The classes that are segmented. The others are background, and the one called `organ`
            makes context masks, the "real anatomy" of the paper.
        count: Number of cases of the whole download.
        spacing_mm: Spacing of the paper's grid along D, H, W.
        train: Number of training cases of the paper.
        test: Number of test cases of the paper.
        epochs: Epochs of 100 batches.
        clusters: The k of the k-means row.
        published: For each class of the ROI, the paper's numbers by row.
        notes: What the paper leaves open, and where this differs from it.
        organ: The class whose masks are the context of the row "anatomy"; "" for none.
        masks: Whether label files are masks of any height (0/1, 0/255, smoothed), several to a
            scan, which are united.
        numbers: Numbers of the cases of the whole download; () where they are not numbered alike.
        published_split: Numbers of the training and of the test cases. None: drawn here.
        split_from: Who published that split.
        only_with_roi: Whether cases without a voxel of the ROI are left out, as in the paper.
    """

    name: str
    title: str
    channel: str
    source: str
    licence: str
    cite: str
    layout: str
    missing: str
    images: tuple[str, ...]
    labels: tuple[str, ...]
    classes: Mapping[str, int]
    roi: tuple[str, ...]
    count: int
    spacing_mm: tuple[float, float, float]
    train: int
    test: int
    epochs: int
    clusters: int
    published: Mapping[str, Mapping[str, PublishedScores]]
    notes: tuple[str, ...] = ()
    organ: str = ""
    masks: bool = False
    numbers: tuple[int, ...] = ()
    published_split: tuple[range, range] | None = None
    split_from: str = ""
    only_with_roi: bool = False


def find_reproduction(name: str) -> Reproduction:
    """The data set of that name.

    Args:
        name: One of `REPRODUCTIONS`.

    Returns:
        The data set.

    Raises:
        ContextsegError: There is none of that name; the remedy has the nearest known ones.

    Example:
        >>> find_reproduction("lits").spacing_mm
        (2.5, 1.9, 1.9)
    """
    if name not in REPRODUCTIONS:
        remedy = did_you_mean(name, REPRODUCTIONS)
        raise ContextsegError(name, "the paper has no data set of this name", remedy)
    return REPRODUCTIONS[name]


def _published(text: str) -> Mapping[str, PublishedScores]:
    """A line of the paper's tables, "DSC/SEN/PRC/HD95" for each of `ROWS`; "-" is no number."""
    cells: dict[str, PublishedScores] = {}
    for row, cell in zip(ROWS, text.split(), strict=True):
        if cell != "-":
            dsc, sen, prc, hd95 = map(float, cell.split("/"))
            cells[row] = (dsc, sen, prc, hd95)
    return MappingProxyType(cells)


_NII = r"\.nii(?:\.gz)?"
_DECATHLON = "Medical Segmentation Decathlon, medicaldecathlon.com"
_ANTONELLI = "Antonelli et al., The Medical Segmentation Decathlon, Nat Commun 13:4128, 2022"
_UNPACK = "unpack the archive again; if that does not help, download it again"
_NOT_SAID = (
    "We know of no list of the cases that the paper tested; the split is drawn here, and numbers "
    "differ by it too."
)
_THINNER = (
    "Slices are planned a hair thinner: where they are twice as thick as a pixel is wide, the "
    "planner would not halve all axes alike, as the paper's network does."
)
_VS_GONE = {39, 97, 130, 160, 168, 208, 219, 227}

_ALL = (
    Reproduction(
        name="lits",
        title="liver tumour in CT (LiTS)",
        channel="CT",
        source=(
            f"131 labelled CT scans: Task03_Liver of the {_DECATHLON}, the copy that the authors "
            "used; or the same scans from the challenge itself, "
            "competitions.codalab.org/competitions/17094."
        ),
        licence="the Decathlon's copy CC BY-SA 4.0; the challenge's own under its terms",
        cite=(
            "Bilic et al., The Liver Tumor Segmentation Benchmark (LiTS), Med Image Anal "
            "84:102680, 2023"
        ),
        layout="""\
Task03_Liver/imagesTr/liver_0.nii.gz ... liver_130.nii.gz
Task03_Liver/labelsTr/liver_0.nii.gz ... liver_130.nii.gz
or, in one folder or in several,
volume-0.nii ... volume-130.nii
segmentation-0.nii ... segmentation-130.nii""",
        missing=_UNPACK,
        images=(rf"volume-(?P<case>\d+){_NII}", rf"imagesTr/liver_(?P<case>\d+){_NII}"),
        labels=(rf"segmentation-(?P<case>\d+){_NII}", rf"labelsTr/liver_(?P<case>\d+){_NII}"),
        classes={"liver": 1, "tumour": 2},
        roi=("tumour",),
        organ="liver",
        count=131,
        numbers=tuple(range(131)),
        only_with_roi=True,
        spacing_mm=(2.5, 1.9, 1.9),
        train=83,
        test=35,
        published_split=(range(90), range(90, 131)),
        split_from="the authors' code (datafiles/liver0)",
        epochs=2000,
        clusters=2,
        published={
            "tumour": _published(
                "54.4/58.8/58.9/111.1 61.4/61.4/67.0/71.9 60.7/59.8/68.0/67.6 62.5/62.8/67.3/69.4 "
                "57.3/60.5/62.3/56.3 59.7/60.3/65.2/43.6 62.8/62.1/69.1/53.5 62.4/61.6/70.6/44.1"
            )
        },
    ),
    Reproduction(
        name="kits",
        title="kidney tumour in CT (KiTS19)",
        channel="CT",
        source=(
            "210 labelled CT scans of the KiTS19 challenge: github.com/neheller/kits19, which has"
            " the labels; its script starter_code/get_imaging.py fetches the scans."
        ),
        licence="CC BY-NC-SA, says the challenge's page (kits19.grand-challenge.org/data)",
        cite=(
            "Heller et al., The state of the art in kidney and kidney tumor segmentation, Med "
            "Image Anal 67:101821, 2021"
        ),
        layout="""\
data/case_00000/imaging.nii.gz
data/case_00000/segmentation.nii.gz
... case_00209""",
        missing=(
            "run `python3 -m starter_code.get_imaging` in the kits19 repository again; it fetches"
            " what is missing"
        ),
        images=(rf"case_(?P<case>\d+)/imaging{_NII}",),
        labels=(rf"case_(?P<case>\d+)/segmentation{_NII}",),
        classes={"kidney": 1, "tumour": 2},
        roi=("tumour",),
        organ="kidney",
        count=210,
        numbers=tuple(range(210)),
        spacing_mm=(3.2, 1.6, 1.6),
        train=140,
        test=70,
        epochs=2000,
        clusters=2,
        published={
            "tumour": _published(
                "74.9/83.2/71.9/120.4 76.8/83.5/74.3/87.1 76.4/83.9/73.1/95.3 78.5/82.2/77.7/75.7 "
                "76.4/80.6/76.5/63.7 74.9/81.0/73.3/79.4 79.9/84.1/78.9/54.7 79.2/81.3/82.7/38.1"
            )
        },
        notes=(
            _NOT_SAID,
            _THINNER,
            (
                "Labels were corrected after the challenge (changelog of the repository); which "
                "the paper used is open."
            ),
        ),
    ),
    Reproduction(
        name="colon",
        title="colon tumour in CT (Medical Decathlon, task 10)",
        channel="CT",
        source=f"126 labelled CT scans: Task10_Colon of the {_DECATHLON}.",
        licence="CC BY-SA 4.0",
        cite=_ANTONELLI,
        layout="""\
Task10_Colon/dataset.json
Task10_Colon/imagesTr/colon_001.nii.gz ...
Task10_Colon/labelsTr/colon_001.nii.gz ...""",
        missing=_UNPACK,
        images=(rf"imagesTr/colon_(?P<case>\d+){_NII}",),
        labels=(rf"labelsTr/colon_(?P<case>\d+){_NII}",),
        classes={"tumour": 1},
        roi=("tumour",),
        count=126,
        spacing_mm=(3.1, 1.6, 1.6),
        train=88,
        test=38,
        epochs=2000,
        clusters=2,
        published={
            "tumour": _published(
                "45.6/53.9/45.3/154.9 44.9/47.2/48.7/111.7 47.1/49.8/52.8/83.3 48.9/53.9/50.3/86.0 "
                "45.3/48.1/51.5/81.2 46.1/50.2/49.7/88.9 - -"
            )
        },
        notes=(_NOT_SAID,),
    ),
    Reproduction(
        name="vs",
        title="vestibular schwannoma in T2 MR (Vestibular-Schwannoma-SEG)",
        channel="MR",
        source=(
            "242 patients of TCIA's Vestibular-Schwannoma-SEG (doi.org/10.7937/TCIA.9YTJ-5Q73): "
            "images, contours and registration matrices, made into NIfTI by the authors' "
            "data_conversion.py (github.com/KCL-BMEIS/VS_Seg, preprocessing/README.md)."
        ),
        licence="see the data set's page at TCIA",
        cite="Shapey et al., Segmentation of vestibular schwannoma from MRI, Sci Data 8:286, 2021",
        layout="""\
vs_gk_1/vs_gk_t2_refT2.nii.gz
vs_gk_1/vs_gk_seg_refT2.nii.gz
... vs_gk_250 (242 folders; eight numbers are not there)
or, however they were converted, one folder for each patient, numbered alike,
vs_gk_1/t2.nii.gz
vs_gk_1/tumour.nii.gz""",
        missing=(
            "run the conversion again for these patients (VS_Seg, preprocessing/data_conversion.py)"
        ),
        images=(
            rf"vs_gk_(?P<case>\d+)[^/]*/vs_gk_t2_refT2{_NII}",
            rf"[^/]*?(?P<case>\d+)/t2{_NII}",
        ),
        labels=(
            rf"vs_gk_(?P<case>\d+)[^/]*/vs_gk_seg_refT2{_NII}",
            rf"[^/]*?(?P<case>\d+)/tumour{_NII}",
        ),
        classes={"tumour": 1},
        roi=("tumour",),
        count=242,
        numbers=tuple(n for n in range(1, 251) if n not in _VS_GONE),
        spacing_mm=(1.0, 1.0, 1.0),
        train=176,
        test=46,
        published_split=(range(1, 182), range(202, 251)),
        split_from=(
            "the data set's authors (VS_Seg, params/split_TCIA.csv), whose counts are the paper's"
        ),
        epochs=1000,
        clusters=6,
        published={
            "tumour": _published(
                "84.3/91.2/80.5/15.2 85.0/91.3/80.3/9.4 84.8/91.6/81.1/8.8 85.2/90.4/82.5/7.8 "
                "89.0/91.7/86.7/1.4 87.9/92.0/84.9/2.5 88.2/90.9/86.2/3.1 -"
            )
        },
        notes=(
            "The T2 scans alone; the contrast-enhanced T1 scans are not used.",
            (
                "The data set's authors keep 20 patients (182 to 201) for validation; the paper's"
                " counts leave them out."
            ),
            "Masks for the anatomy row are not part of the download.",
        ),
    ),
    Reproduction(
        name="atlas",
        title="stroke lesion in T1 MR (ATLAS R1.2)",
        channel="MR",
        source=(
            "229 T1 scans of 220 patients: Anatomical Tracings of Lesions After Stroke, release "
            "1.2, the part in standard space "
            "(fcon_1000.projects.nitrc.org/indi/retro/atlas.html)."
        ),
        licence="terms of use that everybody who downloads it accepts",
        cite=(
            "Liew et al., A large, open source dataset of stroke anatomical brain images and "
            "manual lesion segmentations, Sci Data 5:180011, 2018"
        ),
        layout="""\
Site1/031768/t01/031768_t1w_deface_stx.nii.gz
Site1/031768/t01/031768_LesionSmooth_stx.nii.gz, and 031768_LesionSmooth_1_stx.nii.gz and so on
or, as the release names them in other places,
c0001s0004t01/c0001s0004t01_t1w_stx.nii.gz
c0001s0004t01/c0001s0004t01_LesionSmooth_stx.nii.gz""",
        missing="unpack the part in standard space again, and give the folder that holds it alone",
        images=(
            rf"(?P<case>[^/]+)/(?P<scan>t\d+)/[^/]+_t1[^/]*{_NII}",
            rf"(?P<case>c\d+s\d+)(?P<scan>t\d+)_t1[^/]*{_NII}",
            rf"(?P<case>[^/]+?)_t1[^/]*{_NII}",
        ),
        labels=(
            rf"(?P<case>[^/]+)/(?P<scan>t\d+)/[^/]+_[Ll]esion[^/]*{_NII}",
            rf"(?P<case>c\d+s\d+)(?P<scan>t\d+)_[Ll]esion[^/]*{_NII}",
            rf"(?P<case>[^/]+?)_[Ll]esion[^/]*{_NII}",
        ),
        classes={"lesion": 1},
        roi=("lesion",),
        masks=True,
        count=220,
        spacing_mm=(1.0, 1.0, 1.0),
        train=145,
        test=75,
        epochs=1000,
        clusters=6,
        published={
            "lesion": _published(
                "58.5/68.2/58.6/51.7 60.0/60.7/70.5/19.5 61.9/69.8/63.3/35.3 62.8/68.2/67.4/28.1 "
                "62.6/68.1/65.4/25.1 61.7/66.7/65.7/24.5 - -"
            )
        },
        notes=(
            _NOT_SAID,
            (
                "145 + 75 is the number of patients: one scan of each is used, the first. That "
                "this was so is our guess."
            ),
            (
                "The masks of a scan are united; inside is what is above half of a mask's largest"
                " value."
            ),
            "Intensities are normalised inside the head; the paper does so inside a brain mask.",
        ),
    ),
    Reproduction(
        name="pancreas",
        title="pancreas and its tumour in CT (Medical Decathlon, task 7)",
        channel="CT",
        source=f"281 labelled CT scans: Task07_Pancreas of the {_DECATHLON}.",
        licence="CC BY-SA 4.0",
        cite=_ANTONELLI,
        layout="""\
Task07_Pancreas/dataset.json
Task07_Pancreas/imagesTr/pancreas_001.nii.gz ...
Task07_Pancreas/labelsTr/pancreas_001.nii.gz ...""",
        missing=_UNPACK,
        images=(rf"imagesTr/pancreas_(?P<case>\d+){_NII}",),
        labels=(rf"labelsTr/pancreas_(?P<case>\d+){_NII}",),
        classes={"pancreas": 1, "tumour": 2},
        roi=("pancreas", "tumour"),
        count=281,
        spacing_mm=(2.6, 1.3, 1.3),
        train=197,
        test=84,
        epochs=2000,
        clusters=2,
        published={
            "pancreas": _published(
                "82.9/82.9/85.1/13.9 82.1/82.3/84.6/14.6 83.5/84.6/84.4/11.4 83.3/83.3/85.3/7.7 "
                "82.7/81.7/86.0/7.3 82.7/82.9/84.7/8.0 - -"
            ),
            "tumour": _published(
                "48.9/49.2/59.3/52.0 44.8/45.4/54.8/64.4 48.1/48.2/58.0/58.2 51.1/50.8/63.2/44.8 "
                "48.7/45.9/62.0/57.3 49.6/48.4/61.5/52.8 - -"
            ),
        },
        notes=(
            _NOT_SAID,
            _THINNER,
            (
                "Pancreas and tumour are two classes here; whether the paper's pancreas includes "
                "its tumour is open."
            ),
        ),
    ),
)

REPRODUCTIONS: Mapping[str, Reproduction] = MappingProxyType({one.name: one for one in _ALL})
"""The six data sets by name."""

COMMON_NOTES = (
    (
        "The authors' public code (for the liver) scores on the resampled grid, inside the body; "
        "here the scan's own grid counts, all of it."
    ),
    "Augmentation is this library's, nnU-Net's in kind, as is theirs.",
)
"""Notes on all of them."""
