"""The server of the demo over HTTP: what it gives to whom. Needs the extra `demo`."""

import asyncio
import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
from PIL import Image

from .visitor import Visitor, image_file


pytest.importorskip("gradio", reason="the extra `demo` is not installed")


@pytest.fixture(scope="module")
def port(page):
    """The port of a server of the page, which also answers to `demo.example`."""
    from transformers_sem.demo.page import create_app
    from transformers_sem.demo.server import bind, running

    with bind("127.0.0.1", None) as listener, running(create_app(page, ["127.0.0.1", "demo.example"]), listener):
        yield listener.getsockname()[1]


@pytest.fixture
def visitor(port):
    return Visitor(port)


def file_paths(output):
    """All paths of files in the output of an event."""
    if isinstance(output, dict):
        yield from [output["path"]] if output.get("path") else []
        output = output.values()
    if not isinstance(output, (str, int, float, bool, type(None))):
        for value in output:
            yield from file_paths(value)


def test_a_visitor_gets_the_maps_of_an_upload_and_nobody_else_does(visitor, port):
    status, path = visitor.upload(image_file())
    assert status == 200
    output = visitor.predict(path)
    assert "30 x 20 pixels" in json.dumps(output)
    paths = {path, *file_paths(output)}
    assert any(path.endswith("maps.zip") for path in paths)
    for path in paths:
        assert visitor.request("GET", f"/gradio_api/file={path}")[0] == 200
        assert Visitor(port).request("GET", f"/gradio_api/file={path}")[0] == 404
    assert visitor.predict(None) is not None, "clearing the image"


def test_a_rendered_room_is_a_file_of_the_visitor(visitor, port):
    config = json.loads(visitor.request("GET", "/config")[1])
    index = next(entry["id"] for entry in config["dependencies"] if len(entry["outputs"]) == 1)
    assert visitor.join([], fn_index=index)[0] == 200
    _, stream = visitor.request("GET", f"/gradio_api/queue/data?session_hash={visitor.session}")
    messages = [json.loads(line.removeprefix("data: ")) for line in stream.decode().splitlines() if line]
    (path,) = file_paths([message["output"]["data"] for message in messages if message["msg"] == "process_completed"])
    assert "320 x 240 pixels" in json.dumps(visitor.predict(path))
    assert Visitor(port).join([{"path": path}])[0] == 404


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
def test_no_event_opens_a_file_that_the_visitor_did_not_upload(visitor, port, page, tmp_path, meta):
    (tmp_path / "private.png").write_bytes(image_file())
    os.mkfifo(tmp_path / "pipe.png")
    own = visitor.upload(image_file())[1]
    others = Visitor(port).upload(image_file())[1]
    shutil.copy(tmp_path / "private.png", page.root / "private.png")
    paths = [
        *(str(tmp_path / name) for name in ("private.png", "missing.png", "pipe.png", ".", "")),
        *("/etc/passwd", "/dev/zero", "file:///etc/passwd", f"http://127.0.0.1:{port}/favicon.ico", "\0", "a" * 9999),
        *(others, str(page.root / "private.png"), f"{os.path.dirname(own)}/../private.png", os.path.dirname(own)),
    ]
    answers = {visitor.join([{"path": path, **meta}]) for path in paths}
    ((status, message),) = answers
    assert status == 404, "the same answer for all, whether the file exists or not"
    assert "Upload it again" in message and "/" not in message and "rrno" not in message
    assert "30 x 20 pixels" in json.dumps(visitor.predict(own)), "the worker is free"


def test_a_file_that_has_gone_gives_a_message_without_its_path(page, visitor, monkeypatch):
    path = visitor.upload(image_file())[1]
    open_image = Image.open
    monkeypatch.setattr(Image, "open", lambda file, **options: open_image(f"{file}.gone", **options))
    text = json.dumps(visitor.predict(path)["data"])
    assert "Upload it again" in text and "sem_demo" not in text and "rrno" not in text


def test_what_is_no_event_of_the_page_is_refused(visitor):
    kind = {"Content-Type": "application/json"}
    path = visitor.upload(image_file())[1]
    for body in ("", "[", "[" * 9999, "3", "{}", '{"data": 3}', '{"data": ["x"]}', '{"data": [{"url": "http://a"}]}'):
        assert visitor.request("POST", "/gradio_api/queue/join", body, **kind)[0] == 400, body
    assert visitor.join([{"path": [path]}])[0] == 404
    assert visitor.request("POST", "/gradio_api/queue/join", "[" + " " * 2**17, **kind)[0] == 413


def test_other_routes_of_gradio_are_closed(visitor, tmp_path):
    data = json.dumps({"data": [{"path": str(tmp_path)}], "session_hash": "a", "fn_index": 0})
    for route in ("call/show", "call/v2/show", "run/predict", "api/show", "cancel", "reset", "process_recording"):
        assert visitor.request("POST", f"/gradio_api/{route}", data, **{"Content-Type": "application/json"})[0] == 405
    for route in ("proxy=http://127.0.0.1/", "file=http://127.0.0.1/", "deep_link?session_hash=a", "file/etc/passwd"):
        assert visitor.request("GET", f"/gradio_api/{route}")[0] == 404
    assert visitor.request("GET", "/docs")[0] == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("192.168.1.2:7860", 421),
        ("[::1", 421),
        ("", 421),
        ("localhost:7860", 200),
        ("127.0.0.1", 200),
        ("Demo.Example:80", 200),
    ],
)
def test_the_page_answers_to_its_own_names_only(visitor, host, status):
    assert visitor.request("GET", "/config", Host=host)[0] == status


def test_a_page_for_every_address_answers_to_addresses_and_not_to_names():
    from fastapi import HTTPException

    from transformers_sem.demo.server import VisitorGate

    gate = VisitorGate(None, None, ["0.0.0.0"], 1, set())
    for name in ("192.168.1.2:7860", "[fe80::1]:7860", "localhost"):
        gate.check_host(name)
    with pytest.raises(HTTPException, match="--allow-host"):
        gate.check_host("evil.example")
    VisitorGate(None, None, ["*"], 1, set()).check_host("a.hf.space")


def test_the_names_of_the_command_reach_the_page(monkeypatch):
    from transformers_sem.cli import demo
    from transformers_sem.demo import page

    launched = {}
    monkeypatch.setattr(page, "launch", lambda model, **settings: launched.update(settings, model=model))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    demo.main(["--model", "my model", "--allow-host", "a.example", "--allow-host", "b.example"])
    assert (launched["model"], launched["allow_hosts"]) == ("my model", ["a.example", "b.example"])


def test_uploads_are_limited_and_lie_in_the_folder_of_the_visitor(visitor, page):
    status, message = visitor.upload(b"0" * (2 * 2**20 + 1))
    assert status == 413 and "maximum size of 2 MB" in message
    assert visitor.upload(b"0" * 2 * 2**20)[0] == 200
    for name in ("../../../escaped.jpg", "a.b/../c", "x" * 999, "a." + "x" * 999, "\N{SNOWMAN}.png"):
        status, path = visitor.upload(b"0", name)
        assert status == 200 and os.path.dirname(os.path.dirname(path)) == str(page.root)
    assert visitor.request("POST", "/gradio_api/upload", b"0")[0] == 400
    assert visitor.request("POST", "/gradio_api/upload", b"0", **{"Content-Type": "multipart/form-data"})[0] == 400


def test_the_folder_is_made_again_after_a_cleaner_has_deleted_it(visitor, page):
    visitor.predict(visitor.upload(image_file())[1])
    shutil.rmtree(page.root)
    path = visitor.upload(image_file())[1]
    assert "30 x 20 pixels" in json.dumps(visitor.predict(path))
    assert page.root.stat().st_mode & 0o077 == 0


def test_the_cookie_is_secret_and_works_in_a_frame_of_the_hub(port):
    from http.client import HTTPConnection

    for headers, rule in (
        ({}, "SameSite=Lax"),
        ({"X-Forwarded-Proto": "https"}, "SameSite=None; Secure; Partitioned"),
    ):
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/config", headers=headers)
        cookie = connection.getresponse().getheader("Set-Cookie")
        connection.close()
        assert "HttpOnly" in cookie and cookie.endswith(rule)


def test_an_address_that_cannot_be_used_is_named():
    from transformers_sem.demo.server import bind

    with bind("127.0.0.1", None) as taken:
        for host, port in (
            ("127.0.0.1", taken.getsockname()[1]),
            ("203.0.113.7", 7860),
            ("a..b", 7860),
            ("::9", 7860),
        ):
            with pytest.raises(OSError, match=rf"Cannot serve on '{host}', port {port}: .*--host takes an address"):
                bind(host, port)


def test_a_server_stops_while_a_page_is_open():
    from transformers_sem.demo.server import bind, running

    async def endless(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await asyncio.sleep(60)

    with bind("127.0.0.1", None) as listener, socket.socket() as page:
        with running(endless, listener) as server:
            page.connect(listener.getsockname())
            page.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert page.recv(1)
            assert server.is_alive()
            start_time = time.perf_counter()
        assert time.perf_counter() - start_time < 2


def start_waiting(ignored=()):
    """Starts a process that waits as the demo does, and returns its number and its temporary folder."""
    from transformers_sem.demo.page import temporary_root
    from transformers_sem.demo.server import STOP_SIGNALS, exit_at_once, make_folder

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for signum in STOP_SIGNALS:  # whatever this process inherited, for example from nohup
                signal.signal(signum, signal.SIG_IGN if signum in ignored else signal.SIG_DFL)
            with exit_at_once(), temporary_root() as root:
                (make_folder(root / "visitor") / "photo.png").write_bytes(b"0")
                os.write(write, str(root).encode())
                while True:
                    signal.pause()
        finally:
            os._exit(1)  # not the tests' own exit
    root = Path(os.read(read, 4096).decode())
    os.close(read)
    os.close(write)
    return child, root


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_process_and_leaves_no_file(signum):
    child, root = start_waiting()
    assert (root / "visitor" / "photo.png").is_file()
    os.kill(child, signum)
    os.kill(child, signum)  # impatience does not interrupt the cleanup
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert not root.exists()


def test_a_hangup_that_nohup_ignores_does_not_end_the_process():
    child, root = start_waiting(ignored=[signal.SIGHUP])
    os.kill(child, signal.SIGHUP)
    time.sleep(0.05)
    assert os.waitpid(child, os.WNOHANG) == (0, 0) and root.exists()
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert not root.exists()
