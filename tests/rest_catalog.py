"""An Iceberg REST catalog over a SQL one: just what the product asks of such a server, and the ways in which it can fail."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from pyiceberg.catalog.rest import CreateTableRequest, RegisterTableRequest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException, NamespaceAlreadyExistsError, NoSuchTableError, TableAlreadyExistsError
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC
from pyiceberg.table import CommitTableRequest, Table

STATUS = {
    NoSuchTableError: 404,
    NamespaceAlreadyExistsError: 409,
    TableAlreadyExistsError: 409,
    CommitFailedException: 409,
}


class RestCatalogServer:
    """Serves on a free port of this machine while it is entered."""

    def __init__(self, folder: Path) -> None:
        self.catalog = SqlCatalog("served", uri=f"sqlite:///{folder}/served.db")
        self.token = ""
        """What requests must bear; empty means nobody is asked."""
        self.endpoints: list[str] | None = None
        """Those it says it has; None says nothing of it, as older servers do."""
        self.loses_replies = False
        """Commits are done, then the connection is closed without a word."""
        self.hangs = threading.Event()
        """While set, requests get no answer."""
        self.goes_on = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": self}))
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> RestCatalogServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.goes_on.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        self.catalog.close()


class _Handler(BaseHTTPRequestHandler):
    site: RestCatalogServer

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, body: bytes) -> None:
        if self.site.hangs.is_set():
            self.site.goes_on.wait()
            return
        if self.site.token and self.headers.get("Authorization") != f"Bearer {self.site.token}":
            self._send(401, _problem("NotAuthorized", "who are you", 401))
            return
        parts = self.path.partition("?")[0].strip("/").split("/")[1:]
        is_commit = self.command == "POST" and len(parts) == 4
        try:
            answer = self._do(parts, body)
        except tuple(STATUS) as error:
            status = STATUS[type(error)]
            self._send(status, _problem(type(error).__name__, str(error), status))
            return
        if not (is_commit and self.site.loses_replies):
            self._send(200, answer)

    def _do(self, parts: list[str], body: bytes) -> str:
        catalog = self.site.catalog
        match self.command, parts:
            case "GET", ["config"]:
                said = {} if self.site.endpoints is None else {"endpoints": self.site.endpoints}
                return json.dumps({"defaults": {}, "overrides": {}, **said})
            case "POST", ["namespaces"]:
                catalog.create_namespace(tuple(json.loads(body)["namespace"]))
                return body.decode()
            case "GET", ["namespaces", space, "tables", name]:
                return _table(catalog.load_table((space, name)))
            case "POST", ["namespaces", space, "register"]:
                given = RegisterTableRequest.model_validate_json(body)
                return _table(catalog.register_table((space, given.name), given.metadata_location))
            case "POST", ["namespaces", space, "tables"]:
                asked = CreateTableRequest.model_validate_json(body)
                spec = asked.partition_spec or UNPARTITIONED_PARTITION_SPEC
                identifier = (space, asked.name)
                return _table(
                    catalog.create_table(identifier, asked.table_schema, asked.location, spec, properties=asked.properties)
                )
            case "POST", ["namespaces", space, "tables", name]:
                commit = CommitTableRequest.model_validate_json(body)
                done = catalog.commit_table(catalog.load_table((space, name)), commit.requirements, commit.updates)
                return done.model_dump_json(by_alias=True)
        raise AssertionError(f"not served: {self.command} {self.path}")

    def _send(self, status: int, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _table(table: Table) -> str:
    metadata = json.loads(table.metadata.model_dump_json(by_alias=True))
    return json.dumps({"metadata-location": table.metadata_location, "metadata": metadata, "config": {}})


def _problem(kind: str, message: str, status: int) -> str:
    return json.dumps({"error": {"type": kind, "message": message, "code": status}})
