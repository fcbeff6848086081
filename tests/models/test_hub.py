"""Checkpoints named on the command line."""

import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from adapt.errors import EnvironmentFault, UsageError
from adapt.models.hub import checkpoint_folder


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What was asked of the hub; it answers with a folder."""
    calls = []

    def answer(repository, *, allow_patterns):
        calls.append((repository, allow_patterns))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    return calls


def test_folder_comes_first(tmp_path, asked):
    assert checkpoint_folder(str(tmp_path)) == tmp_path
    assert asked == []


def test_preset_in_the_workspace_comes_before_the_hub(tmp_path, asked):
    local = tmp_path / "models" / "mini-internvl2-1b"
    local.mkdir(parents=True)
    assert checkpoint_folder("mini-internvl2-1b", workspace=tmp_path) == local
    assert asked == []


@pytest.mark.parametrize("name", ["mini-internvl2-1b", "OpenGVLab/InternVL2-1B"])
def test_hub_gives_no_code_and_no_pickles(tmp_path, asked, name):
    assert checkpoint_folder(name, workspace=tmp_path) == tmp_path / "snapshot"
    [(repository, patterns)] = asked
    assert repository == "OpenGVLab/InternVL2-1B"
    assert patterns == ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def test_hub_out_of_reach(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise LocalEntryNotFoundError("no\nconnection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(EnvironmentFault, match=r"OpenGVLab/InternVL2-2B: no such folder, and it c"):
        checkpoint_folder("OpenGVLab/InternVL2-2B", workspace=tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mini-internvl2-1c", r"did you mean mini-internvl2-1b\?"),
        ("tiny", r"tiny: this preset has no weights to fetch"),
        ("./OpenGVLab/InternVL2-2B", r"no such folder, and no preset or hub id"),
        ("../a", r"no such folder, and no preset or hub id"),
    ],
)
def test_nothing_of_that_name(tmp_path, asked, name, message):
    with pytest.raises(UsageError, match=message):
        checkpoint_folder(name, workspace=tmp_path)
    assert asked == []


@pytest.mark.parametrize("name", ["a/b..c", "a--b/c", "owner/name-"])
def test_a_name_that_no_repository_can_have(tmp_path, name):
    with pytest.raises(UsageError, match=rf"^{name}: no such folder, and no name that a hub repo"):
        checkpoint_folder(name, workspace=tmp_path)


class _Hub(BaseHTTPRequestHandler):
    """A hub of one repository with one large file, which breaks off in the middle of it once."""

    weights = bytes(range(256)) * 4096
    files: ClassVar = {"config.json": b"{}", "model.safetensors": weights}
    commit = "0" * 40
    breaks: ClassVar[list[str]] = ["once"]
    asked: ClassVar[list[str]] = []

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, *, body):
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/api/models/owner/name/tree/"):
            tree = [
                {"type": "file", "path": path, "size": len(data), "oid": f"{len(data):040}"}
                for path, data in self.files.items()
            ]
            self._send(json.dumps(tree).encode())
        elif self.path.startswith("/api/"):
            self._send(json.dumps({"id": "owner/name", "sha": self.commit}).encode())
        else:
            self._send_file(self.files[name], body=body)

    def _send(self, data):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _send_file(self, data, *, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{len(data):040}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if not body:
            return
        self.asked.append(self.path.rpartition("/")[2])
        if data is not self.weights or not self.breaks:
            self.wfile.write(data)
            return
        self.breaks.pop()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        # The other file arrives meanwhile.
        time.sleep(1)
        # Closed with a reset, as by a router that has lost the connection.
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()

    def log_message(self, *_):
        """Say nothing."""


_FETCH = """
import sys
from adapt.errors import AdaptError
from adapt.models.hub import checkpoint_folder
try:
    print(checkpoint_folder("owner/name"))
except AdaptError as error:
    print(error)
    sys.exit(error.exit_status)
"""


def test_a_connection_that_breaks_off_is_told_and_the_next_run_goes_on(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
        }
        # The hub's settings are read once a process.
        first, second = (
            subprocess.run(
                [sys.executable, "-c", _FETCH],
                env=os.environ | settings,
                capture_output=True,
                text=True,
                check=False,
            )
            for _ in range(2)
        )
        server.shutdown()
    assert first.returncode == 4, first.stderr
    assert re.fullmatch(
        r"owner/name: the connection to the hub broke off \(.+\); run the same command again: "
        r"complete files are kept\n",
        first.stdout,
    )
    assert second.returncode == 0, second.stderr
    folder = Path(second.stdout.strip())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == _Hub.files
    # What was complete was not fetched again.
    assert sorted(_Hub.asked) == ["config.json", "model.safetensors", "model.safetensors"]
