"""A bucket on this machine: as much of the Cloud Storage JSON API as gcsfs and TensorStore ask for.

Objects are in memory; each has a generation, and is replaced as a whole or not at all.
"""

import contextlib
import dataclasses
import datetime
import email.parser
import http.server
import itertools
import json
import pathlib
import re
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

NAME = "bucket"


@dataclasses.dataclass(frozen=True)
class Object:
    """The content of a name, and when and as which of all writes it came."""

    data: bytes
    generation: int
    updated: datetime.datetime


class Refused(Exception):
    """Answers a request with this status."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


def _nothing(_: str) -> None:
    """No hook."""


@dataclasses.dataclass
class Bucket:
    """What the server holds, for tests to look at and to change.

    `before_write(name)` and `before_remove(name)` run before it is done, and may raise `Refused`.
    `refusal` is what every request is answered with, if any; `reads` are names in their order.
    """

    objects: dict[str, Object] = dataclasses.field(default_factory=dict, repr=False)
    before_write: Callable[[str], None] = _nothing
    before_remove: Callable[[str], None] = _nothing
    refusal: Refused | None = None
    url: str = ""
    reads: list[str] = dataclasses.field(default_factory=list, repr=False)

    def __post_init__(self):
        self.lock, self._count = threading.RLock(), itertools.count(1)

    def write(self, name: str, data: bytes, wanted: str | None = None) -> Object:
        """Replaces an object; `wanted` is the generation it must have, "0" = none."""
        self.before_write(name)
        with self.lock:
            self._expect(name, wanted)
            now = datetime.datetime.now(datetime.UTC)
            self.objects[name] = made = Object(data, next(self._count), now)
            return made

    def remove(self, name: str, wanted: str | None = None) -> None:
        self.before_remove(name)
        with self.lock:
            self.find(name)
            self._expect(name, wanted)
            del self.objects[name]

    def find(self, name: str) -> Object:
        with self.lock:
            if name not in self.objects:
                raise Refused(404, f"No such object: {NAME}/{name}")
            return self.objects[name]

    def names(self, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def text(self, name: str) -> str:
        return self.find(name).data.decode()

    def clear(self) -> None:
        """As it was when it was made."""
        self.before_write, self.before_remove, self.refusal = _nothing, _nothing, None
        self.objects.clear()
        self.reads.clear()

    def download(self, prefix: str, to: pathlib.Path) -> pathlib.Path:
        """Writes the objects below a prefix as files."""
        for name in self.names(f"{prefix}/"):
            file = to / name.removeprefix(f"{prefix}/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self.find(name).data)
        return to

    def _expect(self, name: str, wanted: str | None) -> None:
        here = self.objects[name].generation if name in self.objects else 0
        if wanted is not None and int(wanted) != here:
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.")


@contextlib.contextmanager
def serve() -> Iterator[Bucket]:
    """The bucket of this name behind a port of this machine, until the block ends."""
    bucket = Bucket()
    handler = type("Handler", (_Handler,), {"bucket": bucket, "uploads": {}})
    server = _Server(("127.0.0.1", 0), handler)
    bucket.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield bucket
    finally:
        server.shutdown()
        server.server_close()


def environment(bucket: Bucket) -> dict[str, str]:
    """What leads gcsfs and TensorStore to a bucket."""
    return {
        "STORAGE_EMULATOR_HOST": bucket.url,
        "TENSORSTORE_GCS_HTTP_URL": bucket.url,
        "FSSPEC_GCS_TOKEN": "anon",
    }


class _Server(http.server.ThreadingHTTPServer):
    """A thread for each connection; who leaves in the middle of one is nothing to tell of."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers requests of one bucket."""

    protocol_version = "HTTP/1.1"
    bucket: Bucket
    uploads: dict[str, tuple[str, str | None, bytearray]]

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def _answer(self) -> None:
        body = self._body()
        try:
            if self.bucket.refusal is not None:
                raise self.bucket.refusal
            status, content, headers = self._route(self.command, self.path, body)
        except Refused as refused:
            error = {"code": refused.status, "message": str(refused), "errors": []}
            status, content, headers = refused.status, _json({"error": error}), {}
        with contextlib.suppress(ConnectionError):  # who asked may have been killed
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _route(self, verb: str, target: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        place, _, query_text = target.partition("?")
        query = dict(urllib.parse.parse_qsl(query_text, keep_blank_values=True))
        if place.startswith("/batch/"):
            return self._batch(body)
        found = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.*))?)?", place)
        if found is None:
            raise Refused(404, f"no such resource: {place}")
        if found[2] != NAME:
            raise Refused(404, "The specified bucket does not exist.")
        if found[1] == "/upload":
            return self._upload(query, body)
        if found[3] is not None:
            return self._object(verb, found[3], query)
        if "/o" in place:
            return 200, _json(self._list(query)), {}
        return 200, _json({"kind": "storage#bucket", "name": NAME}), {}

    def _object(
        self, verb: str, rest: str, query: dict[str, str]
    ) -> tuple[int, bytes, dict[str, str]]:
        bucket, wanted = self.bucket, query.get("ifGenerationMatch")
        copied = re.fullmatch(r"([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)", rest)
        name = urllib.parse.unquote(copied[1] if copied else rest)
        if copied:
            to = urllib.parse.unquote(copied[3])
            made = bucket.write(to, bucket.find(name).data, wanted)
            resource = _resource(to, made)
            return 200, _json({"done": True, "resource": resource, **resource}), {}
        if verb == "DELETE":
            bucket.remove(name, wanted)
            return 204, b"", {}
        found = bucket.find(name)
        if wanted is not None and int(wanted) != found.generation:
            raise Refused(412, "precondition")
        if query.get("ifGenerationNotMatch") == str(found.generation):
            return 304, b"", {}
        if query.get("alt") != "media":
            return 200, _json(_resource(name, found)), {}
        bucket.reads.append(name)
        return self._media(found)

    def _media(self, found: Object) -> tuple[int, bytes, dict[str, str]]:
        headers = {
            "Content-Type": "application/octet-stream",
            "x-goog-generation": str(found.generation),
            "x-goog-stored-content-length": str(len(found.data)),
        }
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if span is None:
            return 200, found.data, headers
        size = len(found.data)
        first = int(span[1]) if span[1] else max(0, size - int(span[2]))
        last = min(int(span[2]), size - 1) if span[1] and span[2] else size - 1
        if first >= size:
            raise Refused(416, "Requested range not satisfiable")
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        return 206, found.data[first : last + 1], headers

    def _upload(self, query: dict[str, str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
        wanted, kind = query.get("ifGenerationMatch"), query.get("uploadType")
        if kind == "media":
            name = query["name"]
            return 200, _json(_resource(name, self.bucket.write(name, body, wanted))), {}
        if kind == "multipart":
            meta, data = _parts(self.headers["Content-Type"], body)
            name = json.loads(meta)["name"]
            return 200, _json(_resource(name, self.bucket.write(name, data, wanted))), {}
        if "upload_id" not in query:
            upload = str(len(self.uploads))
            name = query.get("name") or json.loads(body)["name"]
            self.uploads[upload] = (name, wanted, bytearray())
            where = f"{self.bucket.url}/upload/storage/v1/b/{NAME}/o?upload_id={upload}"
            return 200, b"", {"Location": where}
        name, wanted, data = self.uploads[query["upload_id"]]
        data += body
        if (self.headers.get("Content-Range") or "").endswith("/*"):
            return 308, b"", {"Range": f"bytes=0-{len(data) - 1}"}
        return 200, _json(_resource(name, self.bucket.write(name, bytes(data), wanted))), {}

    def _list(self, query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, folders = [], set()
        with self.bucket.lock:
            for name in self.bucket.names(prefix):
                inside = name[len(prefix) :]
                if delimiter and delimiter in inside:
                    folders.add(prefix + inside.partition(delimiter)[0] + delimiter)
                else:
                    items.append(_resource(name, self.bucket.objects[name]))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}

    def _batch(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        answers = []
        for target in re.findall(rb"^DELETE (\S+) HTTP", body, re.MULTILINE):
            path = urllib.parse.urlsplit(target.decode()).path
            try:
                status, _, _ = self._route("DELETE", path, b"")
            except Refused as refused:
                status = refused.status
            head = "--batch\r\nContent-Type: application/http\r\n\r\n"
            answers.append(f"{head}HTTP/1.1 {status} X\r\n\r\n")
        whole = "".join(answers) + "--batch--\r\n"
        return 200, whole.encode(), {"Content-Type": "multipart/mixed; boundary=batch"}


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


def _resource(name: str, found: Object) -> dict[str, Any]:
    when = found.updated.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "kind": "storage#object",
        "name": name,
        "bucket": NAME,
        "size": str(len(found.data)),
        "generation": str(found.generation),
        "metageneration": "1",
        "timeCreated": when,
        "updated": when,
    }


def _parts(content_type: str, body: bytes) -> tuple[str, bytes]:
    """The JSON and the data of a multipart upload."""
    message = email.parser.Parser().parsestr(f"Content-Type: {content_type}\n\n")
    boundary = b"--" + (message.get_boundary() or "").encode()
    _, meta, rest = body.split(boundary, 2)
    data = rest[: rest.rindex(b"\n" + boundary)].split(b"\n\n", 1)[1]
    text = meta.decode()
    return text[text.index("{") :], data
