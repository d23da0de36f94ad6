"""A stand-in for the Hub on the loopback interface: as much of its HTTP API as huggingface_hub needs to push and to load.

Repositories, commits, files by LFS and inline, the token, and the checks of a card's YAML are real; histories, branches and Xet are not
there. Requests are recorded, so that a test can tell that nothing was asked.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml


TOKEN = "hf_the_token_of_the_tests"
READ_ONLY_TOKEN = "hf_a_token_that_may_only_read"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """
    Attributes:
        address: what stands in place of https://huggingface.co.
        repositories: name to path to content.
        private: names of the private ones.
        requests: `"METHOD path"`, in order.
        messages: of the commits.
    """

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.messages: list[str] = []
        server = self

        class Handler(_Handler):
            hub = server

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def add_folder(self, name: str, folder: Path) -> None:
        """Makes a repository of a folder, without a request."""
        self.repositories[name] = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@contextmanager
def running_hub(cache: Path, token: str | None = TOKEN) -> Iterator[HubServer]:
    """A Hub to which everything in this process speaks, with an empty cache."""
    hub = HubServer()
    with pytest.MonkeyPatch.context() as patch:
        # What HF_ENDPOINT, HF_HOME and HF_HUB_DISABLE_XET would have set, had they been there before the import.
        patch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        patch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            hub.address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        patch.setattr("huggingface_hub.hf_api.api.endpoint", hub.address)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache / "hub"))
        patch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(cache / "token"))
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.setattr("diffusers.loaders.lora_base.HF_HUB_OFFLINE", False)  # its own copy
        patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(cache / "modules"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        if token is not None:
            patch.setenv("HF_TOKEN", token)
        try:
            yield hub
        finally:
            hub.close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body = self._body()
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                return answer(self, body, *match.groups())
        self._send(404, {"error": f"the stand-in knows no {self.command} {path}"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, content: dict | list | bytes, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "X-Request-Id": "1", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _may_write(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given == TOKEN:
            return True
        status = 403 if given == READ_ONLY_TOKEN else 401
        self._send(
            status, {"error": "no"}, {"X-Error-Message": "this token may not" if status == 403 else "who are you?"}
        )
        return False

    def validate_yaml(self, body: bytes) -> None:
        block = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        metadata = yaml.safe_load(block[1]) if block else {}
        errors = [] if isinstance(metadata.get("license", ""), str) else [{"message": '"license" must be a string'}]
        if errors:
            return self._send(400, {"errors": errors, "warnings": []})
        self._send(200, {"errors": [], "warnings": []})

    def create_repo(self, body: bytes) -> None:
        if not self._may_write():
            return
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.hub.repositories:
            return self._send(409, {"error": "exists", "url": f"{self.hub.address}/{name}"})
        self.hub.repositories[name] = {}
        if wanted.get("visibility") == "private" or wanted.get("private"):
            self.hub.private.add(name)
        self._send(200, {"url": f"{self.hub.address}/{name}", "name": name})

    def preupload(self, body: bytes, name: str) -> None:
        if not self._may_write():
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".mp4", ".png")) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        self._send(200, {"files": files})

    def lfs_batch(self, body: bytes, name: str) -> None:
        if not self._may_write():
            return
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.hub.address}/objects/{wanted['oid']}"}}}
            for wanted in json.loads(body)["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})

    def put_object(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._send(400, {"error": "another hash"})
        self.hub.objects[oid] = body
        self._send(200, {})

    def commit(self, body: bytes, name: str) -> None:
        if not self._may_write():
            return
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif item["key"] == "file":
                self.hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                self.hub.repositories[name][value["path"]] = self.hub.objects[value["oid"]]
        address = f"{self.hub.address}/{name}/commit/{COMMIT}"
        proposal = f"{self.hub.address}/{name}/discussions/1"
        self._send(200, {"success": True, "commitUrl": address, "commitOid": COMMIT, "pullRequestUrl": proposal})

    def model_info(self, body: bytes, name: str) -> None:
        if name not in self.hub.repositories:
            return self._not_found("RepoNotFound")
        siblings = [{"rfilename": path} for path in sorted(self.hub.repositories[name])]
        info = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
        self._send(200, {**info, "_id": "1", "downloads": 0, "likes": 0})

    def tree(self, body: bytes, name: str) -> None:
        if name not in self.hub.repositories:
            return self._not_found("RepoNotFound")
        files = self.hub.repositories[name].items()
        self._send(200, [{"type": "file", "path": p, "size": len(c), "oid": _blob_id(c)} for p, c in sorted(files)])

    def resolve(self, body: bytes, name: str, path: str) -> None:
        if name not in self.hub.repositories:
            return self._not_found("RepoNotFound")
        content = self.hub.repositories[name].get(path)
        if content is None:
            return self._not_found("EntryNotFound")
        self._send(200, content, {"ETag": f'"{_blob_id(content)}"', "X-Repo-Commit": COMMIT})

    def _not_found(self, code: str) -> None:
        self._send(404, {"error": code}, {"X-Error-Code": code, "X-Error-Message": "not here"})


def _blob_id(content: bytes) -> str:
    """As git names it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    (("POST",), "/api/validate-yaml", _Handler.validate_yaml),
    (("POST",), "/api/repos/create", _Handler.create_repo),
    (("POST",), f"/api/models/{NAME}/preupload/[^/]+", _Handler.preupload),
    (("POST",), f"/{NAME}\\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), "/objects/([0-9a-f]+)", _Handler.put_object),
    (("POST",), f"/api/models/{NAME}/commit/[^/]+", _Handler.commit),
    (("GET",), f"/api/models/{NAME}(?:/revision/[^/]+)?", _Handler.model_info),
    (("GET",), f"/api/models/{NAME}/tree/[^/]+", _Handler.tree),
    (("GET", "HEAD"), f"/{NAME}/resolve/[^/]+/(.+)", _Handler.resolve),
)
