"""A stand-in for the Hub on this machine: repositories, commits, large files and tokens, in memory, over HTTP.

It knows the requests that `huggingface_hub`, `transformers` and `datasets` make to create, upload, list and download, and
answers as the Hub does. Nothing but the standard library is in it.

    with HubServer() as hub:
        subprocess.run(command, env={**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_writer"})
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


LARGE = 1_000_000  # bytes from which a file is a large one, besides those of the endings below
LARGE_ENDINGS = (".safetensors", ".parquet", ".png")
KINDS = {"models": "model", "datasets": "dataset"}
REPOSITORY = r"(?P<kind>models|datasets)/(?P<name>[\w.-]+/[\w.-]+?)"


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class File:
    content: bytes
    is_large: bool = False

    @property
    def oid(self) -> str:
        return hashlib.sha256(self.content).hexdigest() if self.is_large else git_oid(self.content)

    def describe(self, path: str) -> dict:
        large = {"oid": self.oid, "size": len(self.content), "pointerSize": 130}
        facts = {"type": "file", "path": path, "size": len(self.content), "oid": git_oid(self.content)}
        return facts | ({"lfs": large} if self.is_large else {})


@dataclass
class Repository:
    is_private: bool
    commits: list[dict[str, File]] = field(default_factory=lambda: [{}])
    messages: list[str] = field(default_factory=lambda: ["initial commit"])

    def sha(self, index: int = -1) -> str:
        number = index % len(self.commits)
        facts = [number, {path: file.oid for path, file in sorted(self.commits[number].items())}]
        return hashlib.sha1(json.dumps(facts).encode()).hexdigest()

    def find(self, revision: str) -> tuple[str, dict[str, File]] | None:
        shas = {self.sha(index): commit for index, commit in enumerate(self.commits)}
        revision = self.sha() if revision in ("main", "refs/heads/main") else revision
        return (revision, shas[revision]) if revision in shas else None


class RefusedError(Exception):
    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "HubServer"

    def log_message(self, *arguments) -> None:
        self.server.requests.append(f"{self.command} {self.path}")

    # ------------------------------------------------------------------------------------------------------------------
    # Reading and answering

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815, the names that http.server looks for

    def answer(self) -> None:
        if self.server.cut_uploads and self.command == "PUT":  # the connection breaks after the first bytes
            self.rfile.read(1000)
            self.close_connection = True
            return
        self.body = self.read_body()
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        try:
            with self.server.lock:
                self.dispatch(unquote(url.path))
        except RefusedError as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)}
            self.send_json({"error": str(refusal)}, refusal.status, headers)

    def dispatch(self, path: str) -> None:
        for methods, pattern, action in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in methods.split():
                getattr(self, action)(**found.groupdict())
                return
        raise RefusedError(404, f"No such page: {self.command} {path}", "EntryNotFound")

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, content, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    # ------------------------------------------------------------------------------------------------------------------
    # Who may do what

    def user(self) -> str | None:
        return self.server.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def writer(self, name: str | None = None) -> str:
        user = self.user()
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        if name and name.split("/")[0] != user:
            raise RefusedError(403, f"You don't have the rights to write to {name}")
        return user

    def repository(self, kind: str, name: str) -> Repository:
        found = self.server.repositories.get((KINDS[kind], name))
        if found is None or (found.is_private and self.user() != name.split("/")[0]):
            raise RefusedError(404 if self.user() else 401, "Repository not found", "RepoNotFound")
        return found

    def commit(self, kind: str, name: str, revision: str | None) -> tuple[str, dict[str, File]]:
        found = self.repository(kind, name).find(revision or "main")
        if found is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    # ------------------------------------------------------------------------------------------------------------------
    # Pages

    def who_am_i(self) -> None:
        self.send_json({"type": "user", "name": self.writer(), "orgs": []})

    def create(self) -> None:
        facts = json.loads(self.body)
        user = self.writer()
        name = f"{facts.get('organization') or user}/{facts['name']}"
        self.writer(name)
        key = facts.get("type", "model"), name
        exists = key in self.server.repositories
        if not exists:
            self.server.repositories[key] = Repository(
                facts.get("visibility") == "private" or facts.get("private", False)
            )
        place = f"datasets/{name}" if key[0] == "dataset" else name
        self.send_json({"url": f"{self.server.url}/{place}", "name": name}, 409 if exists else 200)

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        errors = [] if re.match(r"---\n.*?\n---\n", content, re.DOTALL) else [{"message": "no metadata"}]
        self.send_json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def upload_modes(self, kind: str, name: str, revision: str) -> None:
        files = json.loads(self.body)["files"]
        self.writer(name)
        _, present = self.commit(kind, name, revision)
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] > LARGE or file["path"].endswith(LARGE_ENDINGS) else "regular",
                "shouldIgnore": False,
                "oid": present[file["path"]].oid if file["path"] in present else None,
            }
            for file in files
        ]
        self.send_json({"files": modes, "commitOid": self.repository(kind, name).sha()})

    def large_file_batch(self, prefix: str | None, name: str) -> None:
        objects = json.loads(self.body)["objects"]
        self.writer(name)
        answers = []
        for one in objects:
            upload = {"upload": {"href": f"{self.server.url}/large/{one['oid']}", "header": {}}}
            answers.append(one if one["oid"] in self.server.large_files else one | {"actions": upload})
        self.send_json({"transfer": "basic", "objects": answers})

    def put_large_file(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise RefusedError(400, "The content is not what was announced")
        self.server.large_files[oid] = self.body
        self.server.received += len(self.body)
        self.send(b"")

    def make_commit(self, kind: str, name: str, revision: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        self.writer(name)
        repository = self.repository(kind, name)
        files, message = dict(repository.commits[-1]), ""
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in self.server.large_files:
                    raise RefusedError(400, f"LFS object {value['oid']} was never uploaded")
                files[value["path"]] = File(self.server.large_files[value["oid"]], is_large=True)
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise RefusedError(400, f"Unknown operation {key}")
        repository.commits.append(files)
        repository.messages.append(message)
        url = f"{self.server.url}/{name}/commit/{repository.sha()}"
        self.send_json({"success": True, "commitOid": repository.sha(), "commitUrl": url, "hookOutput": ""})

    def info(self, kind: str, name: str, revision: str | None = None) -> None:
        sha, files = self.commit(kind, name, revision)
        card = files["README.md"].content.decode() if "README.md" in files else ""
        facts = dict(re.findall(r"^(pipeline_tag|library_name): (.*)$", card.split("\n---\n")[0], re.MULTILINE))
        siblings = [{"rfilename": path, "size": len(file.content)} for path, file in sorted(files.items())]
        private = self.repository(kind, name).is_private
        self.send_json({"id": name, "sha": sha, "private": private, "siblings": siblings, "tags": [], **facts})

    def tree(self, kind: str, name: str, revision: str, path: str | None = None) -> None:
        _, files = self.commit(kind, name, revision)
        prefix = f"{path}/" if path else ""
        below = {name: file for name, file in sorted(files.items()) if name.startswith(prefix)}
        if not below and prefix:
            raise RefusedError(404, f"{path} does not exist", "EntryNotFound")
        if self.query.get("recursive", ["false"])[0].lower() in ("true", "1"):
            return self.send_json([file.describe(name) for name, file in below.items()])
        folders = dict.fromkeys(
            prefix + name[len(prefix) :].split("/")[0] for name in below if "/" in name[len(prefix) :]
        )
        entries = [
            {"type": "directory", "path": folder, "size": 0, "oid": git_oid(folder.encode())} for folder in folders
        ]
        return self.send_json(
            entries + [file.describe(name) for name, file in below.items() if "/" not in name[len(prefix) :]]
        )

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        body = self.body.decode()
        paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        _, files = self.commit(kind, name, revision)
        entries = [files[path].describe(path) for path in paths if path in files]
        for path in paths:
            if any(name.startswith(f"{path}/") for name in files):
                entries.append({"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())})
        self.send_json(entries)

    def refs(self, kind: str, name: str) -> None:
        branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": self.repository(kind, name).sha()}
        self.send_json({"branches": [branch], "tags": [], "converts": []})

    def resolve(self, prefix: str | None, name: str, revision: str, path: str) -> None:
        sha, files = self.commit("datasets" if prefix else "models", name, revision)
        if path not in files:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        file, status, content = files[path], 200, files[path].content
        headers = {"ETag": f'"{file.oid}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if file.is_large:
            headers |= {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(len(content))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            start, end = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            status, content = 206, content[start : end + 1]
        self.send(content, status, headers)


ROUTES = [
    ("GET", "/api/whoami-v2", "who_am_i"),
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("POST", f"/api/{REPOSITORY}/preupload/(?P<revision>[^/]+)", "upload_modes"),
    ("POST", f"/api/{REPOSITORY}/commit/(?P<revision>[^/]+)", "make_commit"),
    ("POST", f"/api/{REPOSITORY}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("GET", f"/api/{REPOSITORY}/refs", "refs"),
    ("GET", f"/api/{REPOSITORY}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
    ("GET HEAD", f"/api/{REPOSITORY}(/revision/(?P<revision>.+))?", "info"),
    ("POST", r"/(?P<prefix>datasets/)?(?P<name>[\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", "large_file_batch"),
    ("PUT", "/large/(?P<oid>[0-9a-f]{64})", "put_large_file"),
    (
        "GET HEAD",
        r"/(?P<prefix>datasets/)?(?P<name>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        "resolve",
    ),
]


class HubServer(ThreadingHTTPServer):
    """Serves on a free port of 127.0.0.1 while its context lasts; `tokens` names who may write as whom."""

    daemon_threads = True

    def __init__(self, tokens: dict[str, str] | None = None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.tokens = {"hf_writer": "me"} if tokens is None else tokens
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.received = 0  # bytes of large files
        self.cut_uploads = False
        self.lock = threading.Lock()

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()
