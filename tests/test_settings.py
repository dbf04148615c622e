"""Every setting has one name, one type, and survives JSON."""

from __future__ import annotations

import pytest

from contextseg.data.augment import Augmentation
from contextseg.errors import ContextsegError
from contextseg.methods import METHODS
from contextseg.settings import Settings, names
from contextseg.training import Training


def test_assignments_reach_every_part() -> None:
    done = Settings("data").set(
        [
            "steps=7",
            "rotation_deg=5",
            "spacing_mm=4, 4,2",
            "net=resenc",
            "step=0.25",
            "planning.dims=2",
            "mirror=none",
        ][:-1]
    )
    assert done.training == Training(steps=7)
    assert done.augmentation == Augmentation(rotation_deg=5.0)
    assert done.planning == {"spacing_mm": (4, 4, 2), "dims": 2}
    assert done.arguments == {"net": "resenc"}
    assert done.prediction.step == 0.25
    for text, meant in {"true": True, "no": False, "none": None}.items():
        assert Settings("data").set([f"batch_dice={text}"]).planning == {"batch_dice": meant}


def test_a_name_that_two_parts_share_must_say_which() -> None:
    with pytest.raises(ContextsegError, match=r"augmentation\.mirror or prediction\.mirror"):
        Settings("data").set(["mirror=false"])
    done = Settings("data").set(["prediction.mirror=false", "augmentation.mirror=true,true,false"])
    assert done.prediction.mirror is False
    assert done.augmentation.mirror == (True, True, False)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("stpes=7", "did you mean steps"),
        ("steps=many", "not a value of type int"),
        ("steps=1.5", "not a value of type int"),
        ("lr=fast", "not a value of type float"),
        ("steps", "write --set name=value"),
        ("tensorboard=perhaps", "type bool"),
        ("batch_dice=2", "type bool.*give true or false"),
        ("scale=2,1", "scale"),
        ("memory_gb=true", "not a value of type float"),
        ("lr=-1", "lr above 0"),
        ("lr=nan", "type float"),
        ("steps=0", "steps above 0"),
        ("save_every=0", "save_every above 0"),
        ("check_every=-1", "give 0, for never"),
        ("precision=float31", "did you mean float32"),
        ("prediction.step=0", "more than 0, at most 1"),
        ("windows=-1", "windows=-1"),
    ],
)
def test_what_cannot_be_set_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(ContextsegError, match=message):
        Settings("data").set([assignment])


def test_a_seed_is_not_negative() -> None:
    with pytest.raises(ContextsegError, match="seed=-3"):
        Settings("data", seed=-3)


def test_unknown_method() -> None:
    with pytest.raises(ContextsegError, match="did you mean supervised"):
        Settings("data", method="supervized").set(["steps=1"])


@pytest.mark.parametrize("method", METHODS)
def test_every_name_is_listed_once_and_json_is_the_same(method: str) -> None:
    listed = names(method)
    assert len(listed) == len(set(listed))
    assert "training.steps" in listed
    settings = Settings("data", method).set(["steps=3", "spacing_mm=1,2,3", "noise_sd=0,0.5"])
    again = Settings.from_json(settings.to_json())
    assert again.to_json() == settings.to_json()
    assert again.training == settings.training
    assert again.augmentation == settings.augmentation
