"""A trained model, or an ensemble, as one zip file that predicts where it is opened.

    model.json               version, settings of prediction, and how each member is built
    members/1/plan.json      the plan
    members/1/recipe.json    how it was trained: settings without paths and names of cases
    members/1/weights.pt     tensors by name
    MODEL_CARD.md  LICENCE.txt

There is no voxel and no name of a case in it. Reading one constructs a method of this package by
its name and gives it tensors; nothing else is unpickled, and no file is unpacked to the disk.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch

import contextseg
from contextseg import methods as known_methods
from contextseg.data.plan import Plan
from contextseg.disk import replacing
from contextseg.errors import ContextsegError
from contextseg.inputs import from_json, misfit, reason_of, refuse_impossible, refuse_no_file
from contextseg.memory_errors import raise_memory_error
from contextseg.methods import Method
from contextseg.methods.presence import head_of
from contextseg.models.card import card, licence_text, recipe_of
from contextseg.predictor import Member
from contextseg.runs import Run
from contextseg.settings import PredictionSettings
from contextseg.stopping import Stopped
from contextseg.training import pick_device

FORMAT = "contextseg model"
FORMAT_VERSION = 1
"""What `model.json` says of itself; a reader refuses later versions."""

_MODEL = "model.json"
_REMEDY = "make it again with `contextseg export RUN model.zip`"


class TrainedModel(NamedTuple):
    """What a model predicts with.

    Attributes:
        members: The trained methods with their plans.
        settings: How they are applied.
        largest_validated: Classes whose largest connected part alone is kept, by validation.
    """

    members: list[Member]
    settings: PredictionSettings
    largest_validated: tuple[str, ...] = ()


# --- writing --------------------------------------------------------------------------------------


def export_archive(
    runs: Sequence[Run],
    output: str | Path,
    licence: str = "",
    note: str = "",
    largest_validated: Sequence[str] = (),
) -> Path:
    """Write finished runs as one zip file; several are an ensemble.

    Args:
        runs: The runs; the settings of prediction are the first one's.
        output: The file, ending in .zip; the same runs give the same bytes.
        licence: The model's licence: words, or a file of text.
        note: What the model card should say besides; words, or a file of text.
        largest_validated: Classes whose largest connected part alone is kept, by validation.

    Returns:
        `output`.

    Raises:
        ContextsegError: A run is not finished, or the file cannot be written.
    """
    output = Path(output)
    parts: dict[str, bytes] = {}
    members = []
    for number, run in enumerate(runs, 1):
        lead = f"members/{number}"
        method = run.finished("cpu")
        members.append({**_described(method), "folder": lead})
        parts[f"{lead}/plan.json"] = _json(asdict(run.plan))
        parts[f"{lead}/recipe.json"] = _json(recipe_of(run))
        parts[f"{lead}/weights.pt"] = _weights(method)
    model = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "contextseg": contextseg.__version__,
        "prediction": asdict(runs[0].settings.prediction),
        "largest_validated": list(largest_validated),
        "members": members,
    }
    words = {
        "MODEL_CARD.md": card(runs, licence, note),
        "LICENCE.txt": licence_text(licence),
    }
    parts = {_MODEL: _json(model), **{k: v.encode() for k, v in words.items()}, **parts}
    with replacing(output) as temporary, zipfile.ZipFile(temporary, "w") as file:
        for name, content in parts.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            file.writestr(entry, content)
    return output


def _described(method: Method) -> dict[str, Any]:
    """How a method is built again, without its weights and without paths of start weights."""
    paths = set(method.start_weights.values())
    arguments = {name: value for name, value in method.made_with.items() if value not in paths}
    head = head_of(method)
    gate = None if head is None else {"gate": list(head.gate), "seen": list(head.seen)}
    return {"class": type(method).__name__, "arguments": arguments, "presence": gate}


def _weights(method: Method) -> bytes:
    """The state, with zeros for what it holds of training scans."""
    state = {
        name: torch.zeros_like(x) if name in method.private_state else x.detach().cpu().clone()
        for name, x in method.state_dict().items()
    }
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


# --- reading --------------------------------------------------------------------------------------


def open_archive(path: str | Path, device: str = "") -> TrainedModel:
    """The model in a zip file that `export_archive` wrote.

    Args:
        path: The file.
        device: Where the networks run; "" takes the GPU or CPU that is here.

    Returns:
        The trained methods in evaluation mode with their plans, and how they are applied.

    Raises:
        ContextsegError: The file is missing, damaged, no model, or of a later version.
    """
    refuse_no_file(path)
    try:
        with zipfile.ZipFile(path) as file:
            _refuse_bomb(path, file)
            names = set(file.namelist())
            if _MODEL not in names:
                raise ContextsegError(path, "this zip file holds no model", _REMEDY)
            content = dict(json.loads(file.read(_MODEL)))
            _check_version(path, content)
            if what := misfit(content, ModelFile):
                raise ContextsegError(f"{path}, {_MODEL}", what, _REMEDY)
            settings = from_json(PredictionSettings, content["prediction"])
            largest = tuple(str(name) for name in content.get("largest_validated", ()))
            members = [_member(path, file, row) for row in content["members"]]
    except FileNotFoundError:
        remedy = "give the folder of a run, or the file of an exported model"
        raise ContextsegError(path, "there is no such file", remedy) from None
    except (zipfile.BadZipFile, OSError) as error:
        what = f"this file is no model, or damaged ({error})"
        raise ContextsegError(
            path, what, "give the folder of a run, or a zip file of `contextseg export`"
        ) from error
    except (ContextsegError, Stopped):
        raise
    except Exception as error:  # a damaged archive raises many classes
        raise_memory_error(path, error)
        what = f"this file is no model that can be read ({reason_of(error)})"
        raise ContextsegError(path, what, _REMEDY) from error
    if not members:
        raise ContextsegError(path, "there is no network in this model", _REMEDY)
    where = pick_device(device or "auto")
    placed = [Member(member.method.to(where).eval(), member.plan) for member in members]
    return TrainedModel(placed, settings, largest)


def archived_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], Plan]:
    """The weights of the first member of a zip file, and its plan.

    Args:
        path: The file.

    Returns:
        Tensors by name, on the CPU, and the plan.

    Raises:
        ContextsegError: As `open_archive`.
    """
    first = open_archive(path, "cpu").members[0]
    return dict(first.method.state_dict()), first.plan


_MemberFacts = TypedDict(
    "_MemberFacts",
    {"folder": str, "class": str, "arguments": dict[str, Any], "presence": Any},
)
"""What `model.json` says of a member."""


class ModelFile(TypedDict):
    """The content of `model.json`, as far as it is read."""

    format: str
    version: int
    prediction: PredictionSettings
    members: list[_MemberFacts]


def _refuse_bomb(path: str | Path, file: zipfile.ZipFile) -> None:
    """Refuse an archive that says itself that it unpacks to more than it can hold."""
    size = sum(entry.file_size for entry in file.infolist())
    refuse_impossible(path, size, packed=True)


def _check_version(path: str | Path, content: Mapping[str, Any]) -> None:
    if content.get("format") != FORMAT:
        raise ContextsegError(path, "this zip file holds no model", _REMEDY)
    if what := misfit(content.get("version"), int, "version"):
        raise ContextsegError(path, what, _REMEDY)
    if content["version"] > FORMAT_VERSION:
        what = f"this model is of version {content['version']}, later than {FORMAT_VERSION}"
        remedy = f"install a later contextseg (it was made with {content.get('contextseg')})"
        raise ContextsegError(path, what, remedy)


def _member(path: str | Path, file: zipfile.ZipFile, row: Mapping[str, Any]) -> Member:
    folder = row["folder"]
    plan = Plan.from_json(json.loads(file.read(f"{folder}/plan.json")), path)
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in row["arguments"].items()}
    method = _method_class(path, row["class"])(plan, **arguments)
    try:
        weights = io.BytesIO(file.read(f"{folder}/weights.pt"))
        method.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except KeyError:
        raise
    except Exception as error:  # an unpickler may raise anything on a damaged file
        raise_memory_error(path, error)
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ContextsegError(path, f"its weights cannot be read ({why})", _REMEDY) from error
    head = head_of(method)
    if head is not None and row["presence"]:
        head.gate = tuple(float(x) for x in row["presence"]["gate"])
        head.seen = tuple(float(x) for x in row["presence"]["seen"])
    return Member(method, plan)


def _method_class(path: str | Path, name: str) -> type[Method]:
    """The class of that name among the methods that are there; a file can name no other."""
    left: list[type[Method]] = [Method]  # type: ignore[type-abstract]
    known: dict[str, type[Method]] = {}
    while left:
        below = left.pop().__subclasses__()
        left += below
        known = {kind.__name__: kind for kind in below} | known
    own = getattr(known_methods, name, None)
    if isinstance(own, type) and issubclass(own, Method):
        return own
    if name not in known:
        what = f"its method {name} is not known here"
        raise ContextsegError(path, what, "install or import what defines it")
    return known[name]
