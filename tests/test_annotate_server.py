"""The annotator's server: who may ask, what a request may hold, and what never happens."""

from __future__ import annotations

import http.client
import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import contextseg as cs
from contextseg.annotator import monailabel
from contextseg.annotator.drawing import Drawing
from contextseg.annotator.jobs import Job
from contextseg.annotator.launch import Annotating, start_annotating
from contextseg.annotator.server import Events
from contextseg.errors import ContextsegError
from test_annotate_session import disc, noise, scan_file

TOKEN = "a-token-for-these-tests"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Annotating]:
    for name in ("a", "b", "c"):
        scan_file(tmp_path / "scans", name, noise(seed=ord(name)))
    with start_annotating(
        tmp_path / "scans", tmp_path / "work", token=TOKEN, classes=["tumour", "organ"], monai=True
    ) as running:
        yield running


def ask(
    server: Annotating,
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    token: str = TOKEN,
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        own = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request(method, path, body, {**own, **(headers or {})})
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def ask_json(server: Annotating, method: str, path: str, **rest: Any) -> Any:
    status, _, body = ask(server, method, path, **rest)
    assert status == 200, body
    return json.loads(body)


LABEL = disc((14, 16), (6, 6), 3)


def put(server: Annotating, k: int, revision: int = 0, label: np.ndarray = LABEL) -> Any:
    path = f"/api/cases/0/label/axial/{k}?tool=brush&seconds=2"
    return ask(server, "PUT", path, label.tobytes(), {"If-Match": f'"{revision}"'})


# --- the page and its requests --------------------------------------------------------------------


def test_the_page_comes_with_everything_and_asks_no_other_host(server: Annotating) -> None:
    status, headers, page = ask(server, "GET", "/", token="")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert "unsafe" not in policy
    for name in (
        "style.css",
        "main.js",
        "editor.js",
        "keys.js",
        "marks.js",
        "tools.js",
        "icon.svg",
    ):
        status, headers, content = ask(server, "GET", f"/static/{name}", token="")
        assert status == 200
        assert headers["x-content-type-options"] == "nosniff"
        assert b"http://" not in content.replace(b"http://www.w3.org/", b"")
        assert b"https://" not in content
    assert b" style=" not in page  # the policy would drop it
    assert b"Not a medical device" in page


def test_the_modules_of_the_page_are_short() -> None:
    static = files("contextseg.annotator") / "static"
    lines = {
        path.name: len(path.read_text(encoding="utf-8").splitlines())
        for path in static.iterdir()
        if path.name.endswith(".js")
    }
    assert lines["editor.js"] < 500
    assert max(lines.values()) < 600, lines


def test_a_case_is_opened_drawn_filled_and_finished(server: Annotating) -> None:
    assert [c["name"] for c in ask_json(server, "GET", "/api/cases")["cases"]] == ["a", "b", "c"]
    facts = ask_json(server, "POST", "/api/cases/0/open")
    assert facts["planes"]["axial"] == {
        "slices": 12, "shape": [14, 16], "mm": [1.0, 1.5], "slice_mm": 3.0
    }  # fmt: skip
    status, headers, grey = ask(server, "GET", "/api/cases/0/slice/axial/3")
    assert "immutable" in headers["cache-control"]
    values = np.frombuffer(grey, "<u2").reshape(14, 16) + facts["channels"][0]["low"]
    assert np.array_equal(values, cs.read(server.session.project.case(0).images[0])
                          .oriented("SPL").array[0, 3])  # fmt: skip
    for k in (2, 8):
        status, headers, body = put(server, k)
        assert (status, headers["etag"]) == (200, f'"{json.loads(body)["revision"]}"')
    strip = ask_json(server, "POST", "/api/cases/0/fill")
    assert strip["filled"] == list(range(2, 9))
    assert strip["suggested"] == 5
    status, headers, label = ask(server, "GET", "/api/cases/0/label/axial/5")
    assert headers["etag"] == '"0"'
    assert label == b"\xff" * 224 + LABEL.tobytes()
    status, headers, content = ask(server, "GET", "/api/cases/0/segmentation")
    assert headers["content-disposition"] == 'attachment; filename="a.seg.nrrd"'
    assert b"Segment0_Name:=tumour" in content[:4000]
    done = ask_json(server, "POST", "/api/cases/0/finish")
    assert done["next"] == 1
    assert Path(done["label"]).exists()
    [row] = [c for c in ask_json(server, "GET", "/api/cases")["cases"] if c["n"] == 0]
    assert (row["state"], row["slices"], row["seconds"]) == ("finished", 2, 4.0)
    ask_json(server, "POST", "/api/cases/0/reopen")
    assert ask_json(server, "GET", "/api/cases")["cases"][0]["state"] == "drawn"


def test_a_stale_slice_is_409_and_nothing_is_lost(server: Annotating) -> None:
    assert put(server, 3)[0] == 200
    status, _, body = put(server, 3, 0, disc((14, 16), (9, 9), 2))
    assert (status, json.loads(body)["revision"]) == (409, 1)
    assert "another tab" in json.loads(body)["error"]
    assert put(server, 4)[0] == 200
    assert put(server, 3, 1, disc((14, 16), (9, 9), 2))[0] == 200
    assert ask(server, "PUT", "/api/cases/0/label/axial/5", LABEL.tobytes())[0] == 400


def test_classes_are_added(server: Annotating) -> None:
    body = json.dumps({"name": "vessel"})
    told = ask_json(server, "POST", "/api/classes", body=body)
    assert [c["name"] for c in told["classes"]] == ["tumour", "organ", "vessel"]
    assert put(server, 1, 0, LABEL * np.uint8(3))[0] == 200
    assert put(server, 2, 0, LABEL * np.uint8(4))[0] == 400
    for wrong in (b"", b"[]", b"{", b'{"name": 3}', b"[" * 4000, b"\xff", body.encode()):
        assert ask(server, "POST", "/api/classes", wrong)[0] == 400


def test_events_tell_every_tab(server: Annotating) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", "/api/events", headers={"Authorization": f"Bearer {TOKEN}"})
    response = connection.getresponse()
    assert response.getheader("content-type") == "text/event-stream; charset=utf-8"
    assert response.readline() == b": open\n"
    put(server, 3)
    kinds = []
    while "filled" not in kinds:
        line = response.readline()
        if line.startswith(b"data: "):
            kinds.append(json.loads(line[6:])["type"])
    assert kinds == ["drawn", "filled"]
    connection.close()


def test_a_tab_that_does_not_listen_costs_no_memory() -> None:
    import asyncio

    async def flood() -> int:
        events = Events()
        events.loop = asyncio.get_running_loop()
        events.stream()
        for i in range(5000):
            events._send({"type": "drawn", "slice": i})
        [tab] = events._tabs
        assert tab.get_nowait()["type"] == "reset"
        return tab.qsize()

    assert asyncio.run(flood()) < 1000


def test_drawing_goes_on_while_a_job_runs_and_cancel_ends_it(server: Annotating) -> None:
    going = threading.Event()

    def work(job: Job) -> str:
        for i in range(10**9):
            job.progress(i, 10**9)
            going.set()
            time.sleep(0.001)
        return "never"

    job = server.session.jobs.start("refine", 0, work)
    assert going.wait(20)
    for k in range(5):
        assert put(server, k)[0] == 200
    assert job.state == "running"
    [told] = ask_json(server, "GET", "/api/cases")["jobs"]
    assert told["of"] == 10**9
    assert ask(server, "DELETE", f"/api/jobs/{job.number}")[0] == 200
    assert ask(server, "DELETE", "/api/jobs/99")[0] == 404
    while job.state == "running":
        time.sleep(0.01)
    assert job.state == "cancelled"


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_too_little_memory_is_an_answer_and_drawing_goes_on(
    server: Annotating, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: Any) -> str:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Drawing, "fill", full)
        patch.setattr(Drawing, "fill_around", full)
        assert put(server, 3)[0] == 200
        status, _, body = ask(server, "POST", "/api/cases/0/fill")
        assert status == 507
        assert "out of memory" in json.loads(body)["error"]
        job = server.session.jobs.start("refine", 0, full)
        while job.state in ("waiting", "running"):
            time.sleep(0.01)
        assert job.note.startswith("refine: out of memory")
    assert put(server, 6)[0] == 200
    assert ask(server, "POST", "/api/cases/0/fill")[0] == 200


# --- who may ask ----------------------------------------------------------------------------------

EVERY = [
    ("GET", "/api/cases"),
    ("POST", "/api/cases/0/open"),
    ("GET", "/api/cases/0/slice/axial/0"),
    ("GET", "/api/cases/0/label/axial/0"),
    ("PUT", "/api/cases/0/label/axial/0"),
    ("POST", "/api/cases/0/fill"),
    ("POST", "/api/cases/0/refine"),
    ("POST", "/api/cases/0/finish"),
    ("POST", "/api/cases/0/reopen"),
    ("GET", "/api/cases/0/segmentation"),
    ("POST", "/api/classes"),
    ("POST", "/api/train"),
    ("DELETE", "/api/jobs/1"),
    ("GET", "/api/events"),
    ("GET", "/info/"),
    ("GET", "/datastore/"),
    ("GET", "/datastore/image?image=a"),
    ("PUT", "/datastore/label?image=a"),
    ("POST", "/activelearning/worklist"),
    ("POST", "/infer/contextseg?image=a"),
    ("POST", "/train/"),
    ("GET", "/auth/token/valid"),
]


@pytest.mark.parametrize(("method", "path"), EVERY)
def test_nobody_asks_without_the_token_or_from_elsewhere(
    server: Annotating, method: str, path: str
) -> None:
    for token in ("", "wrong", TOKEN[:-1], TOKEN + "x"):
        assert ask(server, method, path, token=token)[0] == 403
    for headers in (
        {"Host": "evil.example"},
        {"Host": f"evil.example:{server.port}"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        status, answer, _ = ask(server, method, path, headers=headers)
        assert status == 403, headers
        assert "access-control-allow-origin" not in answer
    assert not any((server.session.project.work / "drawn").rglob("*.npz"))


def test_our_own_page_may_ask(server: Annotating) -> None:
    for host in (f"127.0.0.1:{server.port}", f"localhost:{server.port}", "LOCALHOST:9"):
        headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        assert ask(server, "GET", "/api/cases", headers=headers)[0] == 200
    assert ask(server, "OPTIONS", "/api/cases")[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        "/static/../launch.py",
        "/static/..%2flaunch.py",
        "/static/%2e%2e/launch.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/page.html%00",
        "/static/",
        "/etc/passwd",
        "/../../etc/passwd",
        "/api/cases/../../etc/passwd",
        "/api/cases/a/open",
        "/api/cases/-1/open",
        "/api/cases/99/open",
        "/api/cases/0/slice/axial/99",
        "/api/cases/0/slice/oblique/0",
        "/api/cases/0/slice/..%2f..%2faxial/0",
        "/api/cases/0/slice/axial/0?c=7",
        "/api/cases/99999999999999999999/slice/axial/0",
    ],
)
def test_there_is_no_path_to_anything_else(server: Annotating, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for method in ("GET", "POST"):
        connection.putrequest(method, path, skip_host=False)
        connection.putheader("Authorization", f"Bearer {TOKEN}")
        connection.putheader("Content-Length", "0")
        connection.endheaders()
        response = connection.getresponse()
        body = response.read()
        assert response.status in (404, 405), (method, path, response.status)
        assert b"root:" not in body
    connection.close()


def test_a_body_is_at_most_one_slice(server: Annotating) -> None:
    status, _, body = ask(
        server, "PUT", "/api/cases/0/label/axial/0", b"x" * 225, {"If-Match": "0"}
    )
    assert (status, b"larger than 224" in body) == (413, True)
    # A body whose length is a lie, or not told at all.
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    headers = {"Authorization": f"Bearer {TOKEN}", "If-Match": "0"}
    parts = (b"x" * 100 for _ in range(50))
    connection.request("PUT", "/api/cases/0/label/axial/0", parts, headers, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    assert ask(server, "POST", "/api/classes", b" " * 5000)[0] == 413
    limit = 4 * 12 * 14 * 16 + (1 << 20)
    assert ask(server, "POST", "/infer/contextseg?image=a", b" " * (limit + 1))[0] == 413


def test_slow_and_broken_clients_hold_up_nobody(server: Annotating) -> None:
    sockets = []
    for i in range(40):
        half = socket.create_connection(("127.0.0.1", server.port))
        head = f"PUT /api/cases/0/label/axial/0 HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        head += f"Authorization: Bearer {TOKEN}\r\nIf-Match: 0\r\nContent-Length: 224\r\n"
        half.sendall((head + ("\r\n" + "x" * 10 if i % 2 else "")).encode())
        sockets.append(half)
    assert put(server, 3)[0] == 200
    for half in sockets:
        half.close()
    assert put(server, 4)[0] == 200
    assert ask(server, "GET", "/api/cases/0/label/axial/0")[2][:224] == b"\xff" * 224


def test_connections_that_are_cut_hold_up_nobody(
    server: Annotating, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the middle of an answer, of events and of a request."""
    for path in ("/api/cases/0/slice/axial/0", "/api/events", "/api/cases/0/segmentation"):
        for _ in range(10):
            cut = socket.create_connection(("127.0.0.1", server.port))
            head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
            cut.sendall((head + f"Authorization: Bearer {TOKEN}\r\n\r\n").encode())
            cut.recv(1)
            cut.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset
            cut.close()
    assert put(server, 3)[0] == 200
    assert ask(server, "GET", "/api/cases")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_only_the_own_folder_is_written_to(server: Annotating, tmp_path: Path) -> None:
    before = sorted(p for p in tmp_path.rglob("*") if "work" not in p.parts)
    stamps = {p: p.stat().st_mtime_ns for p in before if p.is_file()}
    put(server, 2)
    put(server, 8)
    ask_json(server, "POST", "/api/cases/0/finish?accept=1")
    assert sorted(p for p in tmp_path.rglob("*") if "work" not in p.parts) == before
    assert {p: p.stat().st_mtime_ns for p in before if p.is_file()} == stamps


def test_a_place_that_cannot_be_written_to_is_said(server: Annotating) -> None:
    work = server.session.project.work
    assert put(server, 3)[0] == 200
    drawn = work / "drawn" / "a"
    drawn.rename(work / "elsewhere")
    drawn.write_bytes(b"")
    status, _, body = put(server, 4)
    assert (status, "a file stands where a folder is needed" in json.loads(body)["error"]) == (
        507,
        True,
    )
    drawn.unlink()
    (work / "elsewhere").rename(drawn)
    assert put(server, 4)[0] == 200


# --- anything at all ------------------------------------------------------------------------------


def mutated(rng: random.Random) -> tuple[str, str, bytes | None, dict[str, str]]:
    method, path = rng.choice(EVERY)
    method = rng.choice([method] * 6 + ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"])
    words = [
        "0",
        "1",
        "-1",
        "9" * 30,
        "axial",
        "sagittal",
        "a",
        "%00",
        "%ff",
        "..",
        "%2e",
        "é",
        "٣",
    ]
    parts = [rng.choice(words) if rng.random() < 0.15 else part for part in path.split("/")]
    path = "/".join(parts)
    if rng.random() < 0.4:
        names = ("c", "tool", "seconds", "who", "accept", "image", "output", "label", "fill")
        values = ["nan", "1e999", "-5", "", "x" * 500, "%0d%0a", "[]", "json", "b", "٣"]
        path += ("&" if "?" in path else "?") + f"{rng.choice(names)}={rng.choice(values)}"
    bodies = [None, b"", rng.randbytes(rng.choice([1, 224, 224, 3000])), b"{}", b"[]", b"null"]
    bodies += [b'{"name": null}', b"{" * 900, LABEL.tobytes(), LABEL.tobytes() * 2]
    form = b'--x\r\nContent-Disposition: form-data; name="params"\r\n\r\n'
    form += rng.choice([b"{}", b"[]", b'{"label_info": 3}', b'{"label_info": [{"name": "q"}]}'])
    form += b'\r\n--x\r\nContent-Disposition: form-data; name="label"; filename="../l.nii.gz"'
    form += b"\r\n\r\n" + rng.randbytes(60) + b"\r\n--x--\r\n"
    headers = {}
    if rng.random() < 0.3:
        bodies = [form, form[: rng.randrange(len(form))]]
        headers["Content-Type"] = rng.choice(
            ["multipart/form-data; boundary=x", "multipart/form-data"]
        )
    if rng.random() < 0.6:
        headers["If-Match"] = rng.choice(
            ['"0"', '"1"', "*", "W/0", "9" * 40, "٣".encode().decode("latin-1")]
        )
    path = "".join(c if c.isascii() else "".join(f"%{b:02x}" for b in c.encode()) for c in path)
    return method, path, rng.choice(bodies), headers


def bombard(server: Annotating, requests: int, seed: int) -> set[int]:
    rng = random.Random(seed)
    statuses = set()
    for _ in range(requests):
        method, path, body, headers = mutated(rng)
        if "events" in path and method == "GET":
            continue
        status, _, answer = ask(server, method, path, body, headers)
        assert status in {200, 400, 403, 404, 405, 409, 413}, (method, path, body, headers, answer)
        if status != 200 and method != "HEAD" and answer[:1] == b"{":
            assert "Remedy" in answer.decode() or status in (403, 404, 409, 413)
        statuses.add(status)
    return statuses


def test_any_request_is_right_or_refused_with_a_reason(
    server: Annotating, capfd: pytest.CaptureFixture[str]
) -> None:
    assert bombard(server, 300, seed=0) >= {200, 400, 404, 405}
    assert "Traceback" not in capfd.readouterr().err
    ask_json(server, "POST", "/api/cases/1/open")


@pytest.mark.slow
def test_many_more_requests(server: Annotating, capfd: pytest.CaptureFixture[str]) -> None:
    for seed in range(1, 21):
        bombard(server, 500, seed)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("requests", [1000, pytest.param(30_000, marks=pytest.mark.slow)])
def test_memory_stays_flat_under_many_requests(tmp_path: Path, requests: int) -> None:
    """500 requests a second for a minute from one client, to a server in a process of its own."""
    scan_file(tmp_path / "scans", "a", noise((40, 128, 128)))
    code = (
        "import sys; from pathlib import Path\n"
        "from contextseg.annotator.launch import start_annotating\n"
        f"a = start_annotating(Path(sys.argv[1]), Path(sys.argv[2]), token={TOKEN!r})\n"
        "print(a.port, flush=True); a.serve()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "scans"), str(tmp_path / "work")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        sizes = []
        started = time.monotonic()
        for i in range(requests):
            connection.request("GET", f"/api/cases/0/slice/axial/{i % 40}", headers=headers)
            response = connection.getresponse()
            assert response.status == 200
            assert len(response.read()) == 2 * 128 * 128
            time.sleep(max(0.0, started + i / 500 - time.monotonic()))
            if (i + 1) % (requests // 10) == 0:
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
                [line] = [x for x in status.splitlines() if x.startswith("VmRSS")]
                sizes.append(int(line.split()[1]) / 1024)
        assert max(sizes[3:]) < sizes[2] + 25, sizes  # MiB
    finally:
        process.terminate()
        process.wait(timeout=20)


# --- starting -------------------------------------------------------------------------------------


def test_a_second_server_on_the_port_is_told(server: Annotating, tmp_path: Path) -> None:
    with pytest.raises(ContextsegError, match="the address cannot be used"):
        start_annotating(tmp_path / "scans", tmp_path / "work2", port=server.port)


def test_one_annotator_works_in_a_folder(server: Annotating, tmp_path: Path) -> None:
    with pytest.raises(ContextsegError, match="another annotator works in this folder"):
        start_annotating(tmp_path / "scans", tmp_path / "work")
    server.stop()
    start_annotating(tmp_path / "scans", tmp_path / "work").stop()


def test_a_model_that_cannot_be_used_leaves_no_folder(tmp_path: Path) -> None:
    scan_file(tmp_path / "scans", "a", noise())
    with pytest.raises(ContextsegError, match="there is no run in this folder"):
        start_annotating(tmp_path / "scans", tmp_path / "work", model=tmp_path / "nowhere")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.org"])
def test_another_address_needs_a_token_of_your_own(host: str, tmp_path: Path) -> None:
    scan_file(tmp_path / "scans", "a", noise())
    with pytest.raises(ContextsegError, match="others can reach this address"):
        start_annotating(tmp_path / "scans", tmp_path / "work", host=host)
    for token in ("short", "with spaces in it, and long", "x" * 15, "é" * 20):
        with pytest.raises(ContextsegError, match="not a token"):
            start_annotating(tmp_path / "scans", tmp_path / "work", host=host, token=token)
    assert not (tmp_path / "work").exists()


def test_from_python(tmp_path: Path) -> None:
    scan_file(tmp_path / "scans", "a", noise())
    with pytest.raises(ContextsegError, match="give a folder of scans, or --demo"):
        cs.annotate()
    with pytest.raises(ContextsegError, match="no such file or folder"):
        cs.annotate(tmp_path / "nothing", tmp_path / "work")
    with cs.annotate(
        tmp_path / "scans", tmp_path / "work", browser=False, verbose=False, steps=5
    ) as server:
        assert server.session.train_arguments == ["--set", "steps=5"]
        assert len(server.token) >= 43  # 256 bits
        assert server.url.startswith("http://127.0.0.1:")
        assert server.url.endswith(f"/#{server.token}")
        assert server.url in server._repr_html_()
        assert ask(server, "GET", "/api/cases", token=server.token)[0] == 200
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", server.port))


def test_another_thread_ends_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As a program does that serves in its main thread; before it serves, and twice, too."""
    scan_file(tmp_path / "scans", "a", noise())
    server = start_annotating(tmp_path / "scans", tmp_path / "work", token=TOKEN)
    serving = threading.Thread(target=server.serve)
    serving.start()
    assert ask(server, "GET", "/api/cases")[0] == 200
    stream = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    stream.request("GET", "/api/events", headers={"Authorization": f"Bearer {TOKEN}"})
    assert stream.getresponse().status == 200
    server.stop()
    serving.join(timeout=30)
    assert not serving.is_alive()
    server.stop()
    start_annotating(tmp_path / "scans", tmp_path / "work").stop()  # the lock is free
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_ctrl_c_ends_the_command(tmp_path: Path, name: str) -> None:
    import signal

    command = [sys.executable, "-m", "contextseg", "annotate", "--demo", "--no-browser"]
    command += ["-o", str(tmp_path / "work")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "http://127.0.0.1:" in line, line + process.stderr.read()
    process.stderr.readline()
    time.sleep(0.5)
    process.send_signal(signal.Signals[name])
    assert process.wait(timeout=30) == 0
    assert process.stderr.read() == ""


# --- MONAI Label ----------------------------------------------------------------------------------


def form(params: dict, file: Path | None) -> tuple[bytes, dict[str, str]]:
    body = b'--lim\r\nContent-Disposition: form-data; name="params"\r\n\r\n'
    body += json.dumps(params).encode() + b"\r\n"
    if file is not None:
        body += (
            f'--lim\r\nContent-Disposition: form-data; name="label"; filename="{file}"\r\n'.encode()
        )
        body += b"Content-Type: application/gzip\r\n\r\n" + file.read_bytes() + b"\r\n"
    return body + b"--lim--\r\n", {"Content-Type": "multipart/form-data; boundary=lim"}


def test_monai_label_fills_and_counts_only_changed_slices_as_drawn(
    server: Annotating, tmp_path: Path
) -> None:
    body = f"username=me&password={TOKEN}&grant_type=password"
    assert ask_json(server, "GET", "/auth/", token="")["enabled"]
    assert ask(server, "POST", "/auth/token", body.replace(TOKEN, "no"), token="")[0] == 401
    given = json.loads(ask(server, "POST", "/auth/token", body, token="")[2])
    assert given == {"access_token": TOKEN, "token_type": "bearer"}
    bearer = {"Authorization": f"bearer {TOKEN}"}
    assert ask(server, "GET", "/auth/token/valid", None, bearer, "")[0] == 200

    info = ask_json(server, "GET", "/info/")
    assert info["labels"] == ["tumour", "organ"]
    assert info["models"]["contextseg"]["type"] == "scribbles"
    sample = ask_json(server, "POST", "/activelearning/worklist", body=b"{}")
    assert sample["id"] == "a"
    assert sample["checksum"].startswith("SHA256:")
    image = ask(server, "GET", "/datastore/image?image=a")[2]
    assert image == Path(sample["path"]).read_bytes()
    assert ask(server, "GET", "/train/")[0] == 404

    scan = cs.read(sample["path"])
    drawn = np.zeros(scan.shape, np.uint8)
    drawn[2, 4:9, 5:10] = drawn[8, 4:9, 5:10] = 2  # as Slicer numbers its second segment
    info_of_labels = [{"name": "organ", "id": 1}, {"name": "tumour", "id": 2}]
    params = {"label_info": info_of_labels, "selected_label_name": "tumour", "roi": []}

    def infer(label: np.ndarray) -> np.ndarray:
        path = tmp_path / "sent.nii.gz"
        cs.write(path, scan.with_array(label))
        body, headers = form(params, path)
        status, headers, answer = ask(server, "POST", "/infer/contextseg?image=a", body, headers)
        assert status == 200, answer
        assert headers["content-type"].startswith("multipart/form-data")
        content = answer.split(b"\r\n\r\n", 2)[2].rsplit(b"\r\n--", 1)[0]
        (tmp_path / "reply.nii.gz").write_bytes(content)
        return cs.read_labels(tmp_path / "reply.nii.gz").array

    reply = infer(drawn)
    assert set(np.unique(reply)) == {0, 1}
    assert reply[2:9].any((1, 2)).all()
    drawing = server.session.drawing(0)
    assert len(drawing.touched("axial")) == 2

    again = np.where(reply, 2, 0).astype(np.uint8)  # the client sends all of it back
    again[5, 4:9, 5:12] = 2
    infer(again)
    assert len(drawing.touched("axial")) == 3

    path = tmp_path / "sent.nii.gz"
    body, headers = form({"label_info": info_of_labels}, path)
    saved = ask_json(server, "PUT", "/datastore/label?image=a", body=body, headers=headers)
    assert saved == {"image": "a", "label": "a"}
    status = ask_json(server, "GET", "/datastore/")
    assert (status["total"], status["completed"]) == (3, 1)
    label = ask(server, "GET", "/datastore/label?label=a&tag=final")[2]
    (tmp_path / "label.nii.gz").write_bytes(label)
    assert np.array_equal(cs.read_labels(tmp_path / "label.nii.gz").array, (again > 0) * 1)
    assert ask_json(server, "POST", "/activelearning/worklist")["id"] == "b"
    objects = ask_json(server, "GET", "/datastore/?output=all")["objects"]
    assert list(objects["a"]["labels"]) == ["final"]
    assert ask(server, "POST", "/train/contextseg")[0] == 400  # one finished case
    assert ask(server, "POST", "/infer/other?image=a", body, headers)[0] == 404
    assert ask(server, "POST", "/infer/contextseg?image=q", body, headers)[0] == 404
    wrong, headers = form({"label_info": [{"name": "spleen", "idx": 1}]}, path)
    assert (
        b"no class of this folder"
        in ask(server, "POST", "/infer/contextseg?image=b", wrong, headers)[2]
    )


def test_monais_own_client_runs_the_loop(server: Annotating, tmp_path: Path) -> None:
    client_module = pytest.importorskip(
        "monailabel.client", reason="MONAI Label's client is not installed"
    )
    client = client_module.MONAILabelClient(f"http://127.0.0.1:{server.port}", str(tmp_path))
    assert client.auth_enabled()
    client.update_auth(client.auth_token("me", TOKEN))
    assert client.auth_valid_token()
    [model] = client.info()["models"]
    sample = client.next_sample(monailabel.STRATEGY, {})
    scan = cs.read(sample["path"])
    drawn = np.zeros(scan.shape, np.uint8)
    drawn[2, 4:9, 5:10] = drawn[8, 4:9, 5:10] = 1
    cs.write(tmp_path / "drawn.nii.gz", scan.with_array(drawn))
    file, params = client.infer(model, sample["id"], {}, str(tmp_path / "drawn.nii.gz"))
    filled = cs.read_labels(file)
    assert filled.array[2:9].any((1, 2)).all()
    assert params["label_names"] == {"tumour": 1, "organ": 2}
    client.save_label(sample["id"], file, params={})
    assert client.info()["datastore"]["completed"] == 1
    label = client.download_label(sample["id"], "final")
    assert np.array_equal(cs.read_labels(label).array, filled.array)
    assert not client.train_status(check_if_running=True)
    assert sample["id"] in client.datastore()["objects"]
