"""Uploads, to a stub of the hub's HTTP interface: what is sent, with whose login, and when."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_export import scored

from erase_sd.errors import ModelError, SettingError
from erase_sd.models import publish
from erase_sd.models.export import export
from erase_sd.models.presets import Models
from erase_sd.run import Run


class Hub(BaseHTTPRequestHandler):
    """Creates a repository and takes one commit; remembers what it was sent."""

    requests: list[tuple[str, str | None, bytes]]
    refuse = False

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self._answer({"error": "Entry not found"}, 404)

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.requests.append((self.path, self.headers.get("Authorization"), body))
        server = f"http://127.0.0.1:{self.server.server_address[1]}"
        if self.refuse:
            self._answer({"error": "You have no write access"}, 403)
        elif self.path == "/api/repos/create":
            self._answer({"url": f"{server}/me/without-apple", "id": "me/without-apple"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            regular = [
                {"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files
            ]
            self._answer({"files": regular})
        else:
            commit = f"{server}/me/without-apple/commit/1"
            self._answer({"commitUrl": commit, "commitOid": "1", "success": True})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    from huggingface_hub import constants

    handler = type("OwnHub", (Hub,), {"requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_folder_is_uploaded_as_one_commit_with_the_users_login(
    hub: type[Hub], tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    (folder / "text_encoder").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: other\n---\n")
    (folder / "text_encoder" / "model.safetensors").write_bytes(b"weights")
    assert publish.push(folder, "me/without-apple").endswith("/commit/1")
    assert {login for _, login, _ in hub.requests} == {"Bearer hf_mine"}
    created = json.loads(next(b for p, _, b in hub.requests if p == "/api/repos/create"))
    assert created["name"] == "without-apple" and "private" in str(created)
    [commit] = [b for p, _, b in hub.requests if "/commit/" in p]
    lines = [json.loads(line) for line in commit.splitlines()]
    files = {e["value"]["path"]: e["value"] for e in lines if e["key"] == "file"}
    assert set(files) == {"README.md", "text_encoder/model.safetensors"}
    weights = files["text_encoder/model.safetensors"]["content"]
    assert base64.b64decode(weights) == b"weights"


def test_a_refused_upload_is_one_line(hub: type[Hub], tmp_path: Path) -> None:
    hub.refuse = True
    with pytest.raises(ModelError, match="push_to me/x: cannot be uploaded") as caught:
        publish.push(tmp_path, "me/x")
    assert "\n" not in str(caught.value)


def test_without_a_login_nothing_is_sent(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(SettingError, match="nobody is logged in; `hf auth login` first"):
        publish.push(tmp_path, "me/x")
    assert hub.requests == []


def test_an_export_is_uploaded_only_when_asked(
    hub: type[Hub], tiny: Models, erased_run: Run
) -> None:
    export(erased_run, tiny, "diffusers")
    assert hub.requests == []
    with pytest.raises(SettingError, match="push_to me/x: only a hub-folder is uploaded"):
        export(erased_run, tiny, "comfyui", push_to="me/x")
    with pytest.raises(SettingError, match="push_to nowhere: needs a hub id"):
        export(erased_run, tiny, "hub-folder", push_to="nowhere")
    scored(erased_run)
    out = export(erased_run, tiny, "hub-folder")
    assert hub.requests == []
    assert export(erased_run, tiny, "hub-folder", push_to="me/x") == out
    [commit] = [body for path, _, body in hub.requests if "/api/models/me/x/commit/" in path]
    assert b"text_encoder/model.safetensors" in commit
    assert "me/x" in (out / "README.md").read_text()
