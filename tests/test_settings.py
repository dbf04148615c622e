"""Every setting has one name, one type, and survives JSON."""

from __future__ import annotations

from dataclasses import replace

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
        ("steps=-1", "steps above 0"),
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


def test_aliases_that_people_type() -> None:
    done = Settings("data").set(["learning_rate=0.1", "batch=3", "iterations=5"])
    assert (done.training.lr, done.planning["batch_size"], done.training.steps) == (0.1, 3, 5)
    with pytest.raises(ContextsegError, match="write --set steps=2500") as caught:
        Settings("data").set(["epochs=10"])
    follow = caught.value.remedy.split("--set ")[1].split(",")[0]
    assert Settings("data").set([follow]).training.steps == 2500


def test_a_wrong_name_gets_the_five_nearest_at_most() -> None:
    for name in ("zzzz", "stpes", "patch"):
        with pytest.raises(ContextsegError) as caught:
            Settings("data").set([f"{name}=1"])
        assert len(caught.value.remedy) < 150
        assert caught.value.remedy.count(",") + caught.value.remedy.count(" or ") <= 4


@pytest.mark.parametrize(
    ("name", "near"), [("batch_size", "windows"), ("steps", "step"), ("epochs", "leave it out")]
)
def test_what_a_verb_does_not_use_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ContextsegError, match=f"does not use this setting.*{near}"):
        Settings("data").set([f"{name}=1"], used=["prediction"], by="predict")
    with pytest.raises(ContextsegError, match=r"method supervised does not use.*colab would"):
        Settings("data").set(["context_classes=3"])


def test_memory_bounds_the_plan_and_the_prediction() -> None:
    done = Settings("data").set(["memory_gb=4"])
    assert done.planning["memory_gb"] == done.prediction.memory_gb == 4
    assert not Settings("data").differences(replace(done, planning={}))
    done = Settings("data").set(["largest_of=liver, left kidney"])
    assert done.prediction.largest_of == ("liver", "left kidney")


def test_a_name_of_the_method_and_of_another_part_is_the_methods() -> None:
    changed = Settings("data", "pseudo").set(["keep=voxels", "training.keep=best"])
    assert changed.arguments == {"keep": "voxels"}
    assert changed.training.keep == "best"
    assert Settings("data").set(["keep=best"]).training.keep == "best"
