"""A hub id is fetched over HTTP, from a small hub of our own on this machine."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

REPOSITORY, COMMIT = "someone/small-llama", "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Answers what `huggingface_hub` asks to download one repository from `directory`."""

    directory: Path
    served: list[str]

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        name = path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/")
        if path.startswith(f"/api/models/{REPOSITORY}/revision/"):
            siblings = [{"rfilename": file.name} for file in sorted(self.directory.iterdir())]
            self.send(json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode(), with_body)
        elif path == f"/api/models/{REPOSITORY}/tree/{COMMIT}":
            files = sorted(self.directory.iterdir())
            tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in files]
            self.send(json.dumps(tree).encode(), with_body)
        elif name != path and (self.directory / name).is_file():
            self.served += [name] if with_body else []
            self.send((self.directory / name).read_bytes(), with_body)
        else:
            self.send(b"{}", with_body, 404)

    def send(self, body: bytes, with_body: bool, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("ETag", f'"{len(body)}-{self.path.rpartition("/")[2]}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing to the terminal."""


@pytest.fixture
def hub(save_llama: Any) -> Iterator[tuple[str, list[str]]]:
    """The address of the hub and the names of the files that it gave away."""
    directory, _ = save_llama(shard="100KB")
    (directory / "pytorch_model.bin").write_bytes(b"weights in another form, not to be fetched")
    served: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"directory": directory, "served": served}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", served
    server.shutdown()
    server.server_close()


def inspect(model: str, endpoint: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "engine", "inspect", "--model", model, "--quant", "bf16"]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_hub_id_is_fetched_once_without_weights_in_other_forms(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, served = hub
    first = inspect(REPOSITORY, endpoint, tmp_path)
    assert first.returncode == 0, first.stderr
    figures = json.loads(first.stdout)
    assert (figures["model"], figures["quant"]) == (REPOSITORY, "bf16")
    assert sum(name.endswith(".safetensors") for name in served) > 1
    assert "pytorch_model.bin" not in served
    count = len(served)
    assert inspect(REPOSITORY, endpoint, tmp_path).stdout == first.stdout
    assert len(served) == count, "the second time everything is in the cache"


def test_a_hub_that_does_not_have_the_model(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    answer = inspect("someone/other", hub[0], tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.splitlines()[-1].startswith(
        "sweq-engine: model someone/other: no such directory, and the hub does not give it: "
    )
