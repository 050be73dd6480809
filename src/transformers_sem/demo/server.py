"""The web server of the demo: which requests it answers, and of which files.

Gradio opens the paths and addresses that a request names, and shows each upload to everybody who knows its path.
[`VisitorGate`] stands in front of it: every visitor has a cookie and a folder, and no request reaches a file elsewhere.
"""

import errno
import hashlib
import json
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from ..utils.extras import require


# Gradio brings the others
fastapi, datastructures, formparsers, requests, responses, uvicorn = (
    require(name, "demo")
    for name in (
        "fastapi",
        "starlette.datastructures",
        "starlette.formparsers",
        "starlette.requests",
        "starlette.responses",
        "uvicorn",
    )
)

API = "/gradio_api"
COOKIE = "sem_visitor"
# What the page reads of Gradio's API; other routes call functions, store files or fetch addresses
READ_ROUTES = ("info", "startup-events", "theme.css", "heartbeat/", "queue/data", "file=")
EVENT_FIELDS = ("fn_index", "session_hash", "trigger_id")
MAX_EVENT_BYTES = 2**16
FORM_BYTES = 2**14  # of an upload, besides the file
MAX_SUFFIX = len(".tiff")
GONE = "The image is no longer on the server. Upload it again."
ALL_ADDRESSES = ("0.0.0.0", "::")
FIRST_PORT, NUM_PORTS = 7860, 100
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
CLOSING_SECONDS = 0.5


class VisitorGate:
    """The ASGI application in front of Gradio's.

    The folder of a visitor is `request.state.folder`. It is created when the first file is written.

    Args:
        app: Gradio's ASGI application.
        root (`Path`): Parent of the visitors' folders.
        hosts (`Sequence[str]`): Names that the page answers to besides localhost and 127.0.0.1. `"*"` allows all names;
            `"0.0.0.0"` or `"::"` allows all IP addresses.
        max_upload_mb (`int`): Maximum size of an upload in MB.
        uploads (`set[str]`): Receives the paths of uploads; Gradio deletes them after a while.
    """

    def __init__(self, app: Any, root: Path, hosts: Sequence[str], max_upload_mb: int, uploads: set[str]):
        self.app, self.root, self.max_upload_mb, self.uploads = app, root, max_upload_mb, uploads
        self.hosts = {name.lower().strip("[]") for name in (*hosts, "localhost", "127.0.0.1")}

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Answers a request, or passes it on to Gradio."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = requests.Request(scope, receive)
        token = request.cookies.get(COOKIE) or secrets.token_urlsafe()
        # a hash, so that who knows a path does not know the cookie
        request.state.folder = self.root / hashlib.sha256(token.encode()).hexdigest()
        if COOKIE not in request.cookies:
            send = sending_cookie(send, token, request.headers.get("x-forwarded-proto") == "https")
        try:
            answer = await self.find_answer(request)
        except fastapi.HTTPException as error:
            answer = responses.JSONResponse({"detail": error.detail}, error.status_code)
        except requests.ClientDisconnect:
            return None
        return await answer(scope, receive, send)

    async def find_answer(self, request: Any) -> Any:
        """Returns a response, or Gradio's application.

        Raises:
            HTTPException: If the request is refused. The message tells nothing about this machine.
        """
        self.check_host(request.headers.get("host", ""))
        method, path = request.method, request.url.path
        if (method, path) == ("POST", f"{API}/upload"):
            return responses.JSONResponse([await self.store_upload(request)])
        if (method, path) == ("POST", f"{API}/queue/join"):
            return replace_body(self.app, await read_event(request))
        if method not in ("GET", "HEAD"):
            raise fastapi.HTTPException(405, "The page does not send this.")
        if path == f"{API}/upload_progress":
            return responses.PlainTextResponse('data: {"msg": "done"}\n\n', media_type="text/event-stream")
        if path.startswith(f"{API}/file="):
            own_file(request.state.folder, path.removeprefix(f"{API}/file="))
        elif path.startswith(API) and not path.removeprefix(f"{API}/").startswith(READ_ROUTES):
            raise fastapi.HTTPException(404, "The page does not ask for this.")
        return self.app

    def check_host(self, header: str) -> None:
        """Refuses requests for other names: a web page that points its own name at this machine could read the demo.

        Raises:
            HTTPException: If the page does not answer to the name.
        """
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            name = ""
        is_allowed = not self.hosts.isdisjoint((name, "*"))
        if not is_allowed and not (is_address(name) and not self.hosts.isdisjoint(ALL_ADDRESSES)):
            raise fastapi.HTTPException(421, "The page does not answer to this name. --allow-host NAME adds a name.")

    async def store_upload(self, request: Any) -> str:
        """Writes an uploaded file to the visitor's folder and returns its path.

        Raises:
            HTTPException: If the file is too large, or there is not exactly one.
        """
        too_large = f"An image has a maximum size of {self.max_upload_mb} MB."
        limit = self.max_upload_mb * 2**20
        limited = requests.Request(request.scope, limit_bytes(request.receive, limit + FORM_BYTES, too_large))
        try:
            async with limited.form(max_files=1, max_fields=0) as form:
                file = form.get("files")
                if not isinstance(file, datastructures.UploadFile):
                    raise fastapi.HTTPException(400, "An upload has one file, in the field 'files'.")
                if file.size > limit:
                    raise fastapi.HTTPException(413, too_large)
                path = new_path(request.state.folder, Path(file.filename or "").suffix)
                path.write_bytes(await file.read())
        except formparsers.MultiPartException as error:
            raise fastapi.HTTPException(400, error.message) from error
        self.uploads.add(str(path))
        return str(path)


async def read_event(request: Any) -> bytes:
    """Reads an event of the page. The files in it become the visitor's own, and what the page does not send is dropped.

    Returns:
        `bytes`: JSON of the event, for Gradio.

    Raises:
        HTTPException: If it is not an event, or names a file that is not in the visitor's folder.
    """
    receive = limit_bytes(request.receive, MAX_EVENT_BYTES, "An event of the page is smaller.")
    body = await requests.Request(request.scope, receive).body()
    try:
        event = json.loads(body)
        paths = [None if item is None else item["path"] for item in event["data"]]
        fields = {name: event.get(name) for name in EVENT_FIELDS}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise fastapi.HTTPException(400, "This is not an event of the page.") from error
    own_paths = [None if path is None else own_file(request.state.folder, path) for path in paths]
    files = [path and {"path": path, "meta": {"_type": "gradio.FileData"}} for path in own_paths]
    return json.dumps({**fields, "data": files}).encode()


def own_file(folder: Path, path: Any) -> str:
    """Returns the path of a regular file in a visitor's folder.

    Raises:
        HTTPException: If there is none. The message is the same for files elsewhere, whether they exist or not.
    """
    path = os.path.abspath(path) if isinstance(path, str) else ""
    if not Path(path).is_relative_to(folder) or not os.path.isfile(path):
        raise fastapi.HTTPException(404, GONE)
    return path


def make_folder(folder: Path) -> Path:
    """Creates a visitor's folder and its parent, which cleaners of temporary files may have deleted."""
    for path in (folder.parent, folder):
        path.mkdir(mode=0o700, exist_ok=True)
    return folder


def new_path(folder: Path, suffix: str) -> Path:
    """Returns a path in a visitor's folder that cannot be guessed; the folder is created."""
    is_ending = suffix[1:].isalnum() and len(suffix) <= MAX_SUFFIX
    return make_folder(folder) / (secrets.token_hex() + (suffix if is_ending else ""))


def replace_body(app: Any, body: bytes) -> Any:
    """Returns an ASGI application that calls another with this body."""

    async def call(scope: dict, receive: Any, send: Any) -> None:
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_body() -> dict:
            return messages.pop() if messages else await receive()

        await app(scope, receive_body, send)

    return call


def limit_bytes(receive: Any, limit: int, message: str) -> Any:
    """Returns a `receive` of ASGI that raises an `HTTPException` with a message after `limit` bytes."""
    num_bytes = 0

    async def receive_limited() -> dict:
        nonlocal num_bytes
        part = await receive()
        num_bytes += len(part.get("body", b""))
        if num_bytes > limit:
            raise fastapi.HTTPException(413, message)
        return part

    return receive_limited


def sending_cookie(send: Any, token: str, is_secure: bool) -> Any:
    """Returns a `send` of ASGI that gives the visitor a cookie."""
    # on the Hub the page is a frame in a page of another site
    rule = "SameSite=None; Secure; Partitioned" if is_secure else "SameSite=Lax"

    async def send_with_cookie(message: dict) -> None:
        if message["type"] == "http.response.start":
            headers = datastructures.MutableHeaders(scope=message)
            headers.append("set-cookie", f"{COOKIE}={token}; Path=/; HttpOnly; {rule}")
        await send(message)

    return send_with_cookie


def is_address(name: str) -> bool:
    """Whether a host name is an IP address, which nobody can point elsewhere."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


# ----------------------------------------------------------------------------------------------------------------------


def bind(host: str, port: int | None) -> socket.socket:
    """Returns a socket on an address, and on a port or the first free one from 7860.

    Raises:
        OSError: If that is impossible.
    """
    first = int(os.environ.get("GRADIO_SERVER_PORT", FIRST_PORT))
    for candidate in [port] if port else range(first, first + NUM_PORTS):
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if os.name == "posix":  # on Windows it would take the port of another program
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host.strip("[]"), candidate))
            listener.listen()  # two programs can bind a port before one of them listens
            return listener
        except (OSError, UnicodeError, OverflowError) as error:
            listener.close()
            reason = error
            if getattr(error, "errno", None) != errno.EADDRINUSE:
                break
    raise OSError(
        f"Cannot serve on {host!r}, port {candidate}: {getattr(reason, 'strerror', None) or reason}. --host takes an address "
        "of this machine, --port a free port."
    ) from reason


@contextmanager
def running(app: Any, listener: socket.socket) -> Iterator[threading.Thread]:
    """Runs a server in a thread, and stops it at the end without waiting for open connections."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        server.should_exit = True
        thread.join(CLOSING_SECONDS)


@contextmanager
def exit_at_once() -> Iterator[None]:
    """Ends the process after Ctrl-C, SIGTERM or SIGHUP as soon as the `with` block has cleaned up.

    The usual exit of the interpreter would wait for a prediction in a worker thread.
    """
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as `nohup` sets it
            signal.signal(signum, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)


def interrupt(signum: int, frame: FrameType | None) -> None:
    """Raises a `KeyboardInterrupt`, and ignores further signals so that they do not interrupt the cleanup."""
    for other in STOP_SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt
