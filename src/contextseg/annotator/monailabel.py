"""MONAI Label's API, so that its clients work unchanged: 3D Slicer's module, MONAI's own client.

Our model is one of type "scribbles": the client draws some slices of its segments and sends them
all; what comes back is the selected segment, filled. The client's next round sends the filled
slices too, as if somebody had drawn them. So the last reply is remembered, and a slice counts as
drawn only where it differs from that. The token is the password; the user name is free.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser, parse_options_header
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from contextseg import __version__
from contextseg.annotator.drawing import Drawing
from contextseg.annotator.guard import read_body, same_token
from contextseg.annotator.planes import FRAME, SCREEN_PLANES, screen_slice
from contextseg.annotator.server import handled
from contextseg.annotator.session import AnnotationSession
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.formats import ending
from contextseg.formats.parts import files_of
from contextseg.volume import as_labels, write

MODEL = "contextseg"
"""The name of our one model."""

STRATEGY = "worklist"
"""The name of our one strategy: the next case of the worklist."""

_JSON_BYTES = 65536
_OWN_SEGMENTS = ("background", "foreground_scribbles", "background_scribbles")
_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha")


@dataclass
class MonaiLabel:
    """The routes of MONAI Label over a session.

    Args:
        session: The session.
        token: The password that a client gives.
    """

    session: AnnotationSession
    token: str
    _held: dict[int, np.ndarray] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def public(path: str) -> bool:
        """Whether a path needs no token: those where a client gets it."""
        return path in ("/auth/", "/auth/token")

    def routes(self) -> list[Route]:
        """All routes."""
        table: list[tuple[str, str, Any]] = [
            ("GET", "/auth/", self._auth),
            ("POST", "/auth/token", self._give_token),
            ("GET", "/auth/token/valid", self._valid),
            ("GET", "/info/", self._info),
            ("GET", "/datastore/", self._datastore),
            ("GET", "/datastore/image", self._image),
            ("GET", "/datastore/label", self._get_label),
            ("PUT", "/datastore/label", self._put_label),
            ("POST", "/activelearning/{strategy:str}", self._next),
            ("POST", "/infer/{model:str}", self._infer),
            ("GET", "/train/", self._train_status),
            ("POST", "/train/", self._train),
            ("POST", "/train/{model:str}", self._train),
            ("DELETE", "/train/", self._train_stop),
        ]
        return [Route(path, handled(handler), methods=[method]) for method, path, handler in table]

    # --- who asks -----------------------------------------------------------------------------

    async def _auth(self, request: Request) -> Response:
        return JSONResponse({"enabled": True, "client_id": None, "realm": None})

    async def _give_token(self, request: Request) -> Response:
        form = parse_qs((await read_body(request, _JSON_BYTES)).decode("latin-1"))
        if not same_token(form.get("password", [""])[0], self.token):
            return JSONResponse({"detail": "the password is the program's token"}, 401)
        return JSONResponse({"access_token": self.token, "token_type": "bearer"})

    async def _valid(self, request: Request) -> Response:
        return JSONResponse({"username": "annotator"})

    # --- what there is ------------------------------------------------------------------------

    async def _info(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self.info))

    def info(self) -> dict[str, Any]:
        """What a client shows: labels, the model, the strategy, how far the worklist is."""
        project = self.session.project
        labels = {kind.name: k for k, kind in enumerate(project.classes, 1)}
        about = "Draw some slices of a segment, then update: the others are filled."
        model = {"type": "scribbles", "labels": labels, "dimension": 3, "description": about}
        return {
            "name": "contextseg",
            "description": "Labelled scans from a few drawn slices",
            "version": __version__,
            "labels": list(labels),
            "models": {MODEL: {**model, "config": {}}},
            "trainers": {MODEL: {"description": "On the finished cases", "config": {}}},
            "strategies": {STRATEGY: {"description": "The next case of the worklist"}},
            "scoring": {},
            "train_stats": {MODEL: {}},
            "datastore": self.stats(),
        }

    def stats(self) -> dict[str, Any]:
        """How many cases there are, and how many are finished."""
        rows = self.session.project.worklist()
        finished = [row["name"] for row in rows if row["state"] == "finished"]
        counts = {"total": len(rows), "completed": len(finished)}
        return {**counts, "label_tags": {"final": len(finished)}, "train": []}

    async def _datastore(self, request: Request) -> Response:
        output = request.query_params.get("output", "stats")
        if output not in ("stats", "all", "train"):
            raise ContextsegError(f"output={output}", "there is no such output", "ask for all")
        content: Any = {"stats": self.stats, "all": self.objects, "train": self.pairs}[output]
        return JSONResponse(await run_in_threadpool(content))

    def objects(self) -> dict[str, Any]:
        """All cases with their label maps, as MONAI Label lists them."""
        objects = {}
        for row in self.session.project.worklist():
            case = self.session.project.case(row["n"])
            labels = {}
            if row["state"] == "finished":
                labels["final"] = {"ext": ".nii.gz", "info": {"ts": int(time.time())}}
            image = {"ext": ending(case.images[0]), "info": {"name": case.images[0].name}}
            objects[row["name"]] = {"image": image, "labels": labels}
        return {"name": "contextseg", "description": "", "objects": objects}

    def pairs(self) -> list[dict[str, str]]:
        """Images and label maps of the finished cases."""
        project = self.session.project
        rows = [row["n"] for row in project.worklist() if row["state"] == "finished"]
        return [
            {
                "image": str(project.case(n).images[0].resolve()),
                "label": str(project.filled_file(project.case(n)).resolve()),
            }
            for n in rows
        ]

    async def _next(self, request: Request) -> Response:
        name = request.path_params["strategy"]
        if name != STRATEGY:
            what = "there is no such strategy"
            raise ContextsegError(f"strategy {name!r}", what, did_you_mean(name, [STRATEGY]))
        await read_body(request, _JSON_BYTES)
        return JSONResponse(await run_in_threadpool(self.next_case))

    def next_case(self) -> dict[str, Any]:
        """The case that is next on the worklist; {} where all are finished."""
        project = self.session.project
        rows = [row for row in project.worklist() if row["state"] != "finished"]
        if not rows:
            return {}
        case = project.case(rows[0]["n"])
        image = case.images[0].resolve()
        sample = {"id": case.name, "name": image.name, "weight": 1, "ts": int(time.time())}
        if image.is_file():
            sample |= {"path": str(image), "checksum": f"SHA256:{_sha256(image)}"}
        return sample

    def number(self, name: str) -> int:
        """The number of a case by its name.

        Raises:
            ContextsegError: There is no such case.
        """
        for n, case in enumerate(self.session.project.cases):
            if case.name == name:
                return n
        names = [case.name for case in self.session.project.cases]
        raise ContextsegError(
            f"image {name[:80]!r}", "there is no such case", did_you_mean(name, names)
        )

    async def _image(self, request: Request) -> Response:
        n = self.number(request.query_params.get("image", ""))
        return await run_in_threadpool(self._image_of, n)

    def _image_of(self, n: int) -> Response:
        case = self.session.project.case(n)
        path = case.images[0]
        if len(case.images) == 1 and path.is_file() and len(files_of(path)) == 1:
            return _download(path.read_bytes(), path.name)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{case.name}.nii.gz"
            write(file, self.session.drawing(n).scan)
            return _download(file.read_bytes(), file.name)

    async def _get_label(self, request: Request) -> Response:
        n = self.number(request.query_params.get("label", ""))
        path = self.session.project.filled_file(self.session.project.case(n))
        if not path.exists():
            raise ContextsegError(path.name, "there is no such label map", "finish the case first")
        return _download(await run_in_threadpool(path.read_bytes), path.name)

    # --- drawn slices -------------------------------------------------------------------------

    async def _put_label(self, request: Request) -> Response:
        n = self.number(request.query_params.get("image", ""))
        params, upload = await self._form(request, n)
        if upload is None:
            raise ContextsegError("label", "no file was sent", "send a label map")
        await run_in_threadpool(partial(self.save, n, *upload, params))
        name = self.session.project.case(n).name
        return JSONResponse({"image": name, "label": name})

    def save(self, n: int, name: str, content: bytes, params: dict[str, Any]) -> None:
        """Take a label map that somebody calls finished, and finish the case.

        Args:
            n: Number of the case.
            name: Name of the file.
            content: Its bytes.
            params: `label_info` names the values.

        Raises:
            ContextsegError: It is no label map of this scan, or holds segments that are no classes.
        """
        drawing = self.session.drawing(n)
        with self._lock:
            sent = self._received(drawing, name, content, params)
            self._draw(n, drawing, sent)
            with drawing.lock:
                drawing.filled[...] = _turned(drawing, sent)
            self._held[n] = sent
        self.session.finish(n, accept=True)

    async def _infer(self, request: Request) -> Response:
        model = request.path_params["model"]
        if model != MODEL:
            what = "there is no such model"
            raise ContextsegError(f"model {model!r}", what, did_you_mean(model, [MODEL]))
        n = self.number(request.query_params.get("image", ""))
        params, upload = await self._form(request, n)
        content, name = await run_in_threadpool(partial(self.infer, n, upload, params))
        output = request.query_params.get("output", "all")
        facts = {"label_names": {k.name: i for i, k in enumerate(self._classes, 1)}}
        if output == "image":
            return _download(content, name)
        if output == "json":
            return JSONResponse(facts)
        return _multipart(facts, content, name)

    @property
    def _classes(self) -> list[Any]:
        return self.session.project.classes

    def infer(
        self, n: int, upload: tuple[str, bytes] | None, params: dict[str, Any]
    ) -> tuple[bytes, str]:
        """Fill a case from the slices of a label map that somebody drew.

        Args:
            n: Number of the case.
            upload: Name and bytes of the label map; None fills from what is drawn already.
            params: `label_info` names the values; `selected_label_name` is the segment that the
                client replaces by the reply. Without it the reply holds all classes.

        Returns:
            (a label map, a name for it). Of one segment it holds 0 and 1.

        Raises:
            ContextsegError: As `save`, and where nothing is drawn.
        """
        drawing = self.session.drawing(n)
        selected = params.get("selected_label_name")
        with self._lock:
            sent = None
            if upload is not None:
                sent = self._received(drawing, *upload, params)
                self._draw(n, drawing, sent)
            if not drawing.touched(drawing.plane):
                raise ContextsegError("label", "no slice is drawn", "draw a slice of a segment")
            drawing.fill(self.session.model)
            whole = drawing.on_scan(drawing.whole).array
            reply = whole
            if isinstance(selected, str) and selected:
                k = self._class(selected)
                reply = (whole == k).astype(np.uint8)
                held = np.zeros_like(whole) if sent is None else sent.copy()
                held[held == k] = 0
                held[reply > 0] = k
            else:
                held = whole
            self._held[n] = held
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{self.session.project.case(n).name}.nii.gz"
            write(file, drawing.scan.with_array(reply))
            return file.read_bytes(), file.name

    def _class(self, name: str) -> int:
        names = [kind.name for kind in self._classes]
        if name not in names:
            what = "no class of this folder"
            raise ContextsegError(f"segment {name[:80]!r}", what, did_you_mean(name, names))
        return names.index(name) + 1

    def _received(
        self, drawing: Drawing, name: str, content: bytes, params: dict[str, Any]
    ) -> np.ndarray:
        """Classes (D, H, W) on the scan's grid of a label map that was sent."""
        end = next((e for e in _ENDINGS if name.lower().endswith(e)), ".nii.gz")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"label{end}"
            path.write_bytes(content)
            label = as_labels(path, drawing.scan).array
        label_info = params.get("label_info")
        if not label_info:
            return self.session.project.as_classes(label, "label")
        table = self._table(label_info)
        values = np.unique(label).tolist()
        unknown = [v for v in values if v and v not in table]
        if unknown:
            what = f"the value {unknown[0]}, which label_info does not name"
            raise ContextsegError("label", what, "name each segment")
        out = np.zeros(label.shape, np.uint8)
        for value, k in table.items():
            out[label == value] = k
        return out

    def _table(self, label_info: Any) -> dict[int, int]:
        """Value in the label map -> class, by names of segments; scribbles are nothing."""
        table = {}
        try:
            for place, entry in enumerate(label_info, 1):
                value = int(entry.get("idx", entry.get("id", place)))
                name = str(entry["name"])
                table[value] = 0 if name in _OWN_SEGMENTS else self._class(name)
        except (TypeError, KeyError, ValueError, AttributeError):
            remedy = 'send a list such as [{"name": "liver", "idx": 1}]'
            raise ContextsegError("label_info", "not a list of segments", remedy) from None
        return table

    def _draw(self, n: int, drawing: Drawing, sent: np.ndarray) -> list[tuple[str, int]]:
        """Save the slices that differ from what the client was given."""
        now = _turned(drawing, sent)
        held = self._held.get(n)
        before = np.zeros_like(now) if held is None else _turned(drawing, held)
        differs = now != before
        if not differs.any():
            return []
        places = {
            plane: np.flatnonzero(differs.any(tuple({0, 1, 2} - {axis})))
            for axis, plane in enumerate(SCREEN_PLANES)
        }
        plane = min(SCREEN_PLANES, key=lambda p: len(places[p]))
        changed = [(plane, int(k)) for k in places[plane]]
        for _, k in changed:
            pixels = np.ascontiguousarray(screen_slice(now, plane, k)).tobytes()
            self.session.put(n, plane, k, pixels, fill=False, tool="other", origin="monailabel")
        return changed

    # --- training -----------------------------------------------------------------------------

    async def _train(self, request: Request) -> Response:
        await read_body(request, _JSON_BYTES)
        job = await run_in_threadpool(self.session.train)
        return JSONResponse(_task(job.facts()))

    async def _train_status(self, request: Request) -> Response:
        jobs = [job for job in self.session.jobs.facts() if job["kind"] == "train"]
        if not jobs:
            return JSONResponse({"detail": "No Tasks Found"}, 404)
        return JSONResponse(_task(jobs[0]))

    async def _train_stop(self, request: Request) -> Response:
        jobs = [job for job in self.session.jobs.facts() if job["kind"] == "train"]
        for job in jobs:
            self.session.jobs.cancel(job["number"])
        return JSONResponse(_task(jobs[0]) if jobs else {})

    async def _form(
        self, request: Request, n: int
    ) -> tuple[dict[str, Any], tuple[str, bytes] | None]:
        """Parameters and the file of a form, no larger than label maps of the scan can be."""
        drawing = await run_in_threadpool(self.session.drawing, n)
        limit = 4 * int(np.prod(drawing.shape)) + (1 << 20)
        body = await read_body(request, limit)

        async def stream() -> AsyncGenerator[bytes, None]:
            yield body

        kind, _ = parse_options_header(request.headers.get("content-type", ""))
        if kind != b"multipart/form-data":
            return {}, None
        try:
            parser = MultiPartParser(
                request.headers, stream(), max_files=2, max_fields=8, max_part_size=_JSON_BYTES
            )
            form = await parser.parse()
            upload = form.get("label") or form.get("file")
            params = form.get("params", "{}")
            parameters = json.loads(params) if isinstance(params, str) and params else {}
            file = None
            if isinstance(upload, UploadFile):
                file = upload.filename or "label.nii.gz", await upload.read()
            await form.close()
        except (MultiPartException, ValueError, KeyError, RecursionError) as error:
            what = f"not a form ({type(error).__name__})"
            raise ContextsegError("request", what, "send params and label") from error
        if not isinstance(parameters, dict):
            raise ContextsegError("params", "not an object", 'send {"label_info": [...]}')
        return parameters, file


def _turned(drawing: Drawing, classes: np.ndarray) -> np.ndarray:
    """A map on the scan's grid along `FRAME`."""
    return drawing.scan.with_array(classes).oriented(FRAME).array


def _task(job: dict[str, Any]) -> dict[str, Any]:
    """A job as MONAI Label tells of its tasks."""
    status = {"waiting": "PENDING", "running": "RUNNING", "done": "DONE", "failed": "ERROR"}
    return {
        "id": str(job["number"]),
        "model": MODEL,
        "status": status.get(job["state"], "CANCELED"),
        "details": [{"message": job["note"], "done": job["done"], "of": job["of"]}],
    }


def _sha256(path: Path) -> str:
    hashed = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            hashed.update(chunk)
    return hashed.hexdigest()


def _download(content: bytes, name: str) -> Response:
    headers = {"Content-Disposition": f"attachment; filename*=utf-8''{quote(name)}"}
    if name.isascii() and not set(name) & set('";\\\r\n'):
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, headers=headers, media_type="application/octet-stream")


def _multipart(facts: dict[str, Any], content: bytes, name: str) -> Response:
    """Parameters and a file in one answer, as MONAI Label's clients read it."""
    boundary = hashlib.sha256(content).hexdigest()
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\n'
        f"Content-Type: application/json\r\n\r\n{json.dumps(facts)}\r\n"
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{safe}"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}")
