"""Who is trained on and who is held out."""

from pathlib import Path

import numpy as np
import pytest

from contextseg.data.layouts import Case, Dataset, folds
from contextseg.errors import ContextsegError
from test_layouts import names


def cases_of(patients: list[str], unlabelled: tuple[int, ...] = ()) -> tuple[Case, ...]:
    return tuple(
        Case(
            f"case_{i:02d}",
            (Path(f"{i}"),),
            None if i in unlabelled else Path(f"{i}"),
            None,
            patient,
        )
        for i, patient in enumerate(patients)
    )


def with_cases(cases: tuple[Case, ...], splits: tuple = ()) -> Dataset:
    return Dataset(
        "d", Path("d"), ("CT",), ("background", "a"), (0, 1), None, {}, ".nii.gz", cases, (), splits
    )


@pytest.mark.parametrize(("count", "of", "seed"), [(12, 5, 12345), (23, 5, 12345), (7, 3, 1)])
def test_folds_are_those_of_nnunet(count: int, of: int, seed: int) -> None:
    from sklearn.model_selection import KFold  # what nnU-Net v2 calls, on sorted names

    data = with_cases(cases_of([""] * count)[::-1])
    sorted_names = np.array(sorted(names(data.train)))
    expected = KFold(of, shuffle=True, random_state=seed).split(sorted_names)
    for fold, (train, validation) in enumerate(expected):
        first, second = folds(data, fold, of, seed)
        assert sorted(names(first)) == sorted_names[train].tolist()
        assert sorted(names(second)) == sorted_names[validation].tolist()


def test_folds_keep_patients_together_and_hold_each_labelled_case_out_once() -> None:
    data = with_cases(cases_of([f"P{i % 6}" for i in range(15)], unlabelled=(0, 7, 14)))
    held: list[str] = []
    for fold in range(3):
        first, second = folds(data, fold, of=3)
        assert not {case.patient for case in first} & {case.patient for case in second}
        assert all(case.label for case in second)
        held += names(second)
        missing = set(data.train) - set(first) - set(second)
        assert all(
            not case.label and case.patient in {c.patient for c in second} for case in missing
        )
    assert sorted(held) == [case.name for case in data.train if case.label]
    assert folds(data, 1, of=3) == folds(data, 1, of=3)
    drawn = {
        str([names(folds(data, fold, of=3, seed=seed)[1]) for fold in range(3)])
        for seed in range(10)
    }
    assert len(drawn) > 1


def test_fold_minus_one_is_everything() -> None:
    data = with_cases(cases_of(["", "", ""], unlabelled=(2,)))
    assert folds(data, -1) == (data.train, ())


def test_folds_of_a_splits_file() -> None:
    cases = cases_of(["", "", "", "P", "P"], unlabelled=(2, 4))
    splits = ((("case_00", "case_01"), ("case_03",)), (("case_03",), ("case_00",)))
    data = with_cases(cases, splits)
    first, second = folds(data, 0)
    assert names(second) == ["case_03"]
    assert names(first) == [
        "case_00",
        "case_01",
        "case_02",
    ]  # 04 is an unlabelled scan of the patient of 03
    first, second = folds(data, 1)
    assert (names(first), names(second)) == (
        ["case_02", "case_03", "case_04"],
        ["case_00"],
    )  # 01 is left out, as asked
    with pytest.raises(ContextsegError, match=r"splits_final.json: there is no fold 2.*0 to 1"):
        folds(data, 2)


def test_folds_that_are_not_there() -> None:
    data = with_cases(cases_of(["P", "P", "Q"]))
    with pytest.raises(ContextsegError, match=r"no fold 5 of 5.*0 to 4, or -1 for all"):
        folds(data, 5)
    with pytest.raises(ContextsegError, match="2 labelled patients, for 5 folds"):
        folds(data, 0)
    with pytest.raises(ContextsegError, match="1 labelled patient, for 2 folds"):
        folds(with_cases(cases_of(["P", "P"])), 0, of=2)
    assert [len(half) for half in folds(data, 0, of=2)] in ([1, 2], [2, 1])
