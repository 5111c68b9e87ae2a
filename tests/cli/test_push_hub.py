"""`graft push-hub` with the hub's own library, against a small server that speaks the hub's protocol."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from graft_scheduler.cards import write_card
from graft_scheduler.errors import InvalidInput, NotFound
from graft_scheduler.hub_push import pack
from tests.scheduler.test_cards import card

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: nothing is pushed")

RUN = "import sys; from graft_cli.main import run; sys.argv = ['graft', *sys.argv[1:]]; run()"
TOKEN = "hf_good"
LARGE = ".safetensors"
"""What the server wants as large files, as the hub does."""


@dataclass
class Hub:
    """Repositories by name: their files as they were committed."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    """What of the hub's interface an upload uses."""

    hub: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token != TOKEN:
            self._answer(401 if token == "hf_bad" else 403, {"error": "no"})
            return
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = [
                {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular"}
                for one in files
            ]
            self._answer(200, {"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            upload = [
                {**one, "actions": {"upload": {"href": f"{self.hub.url}/blobs/{one['oid']}", "header": {}}}}
                for one in objects
            ]
            self._answer(200, {"transfer": "basic", "objects": upload})
        elif "/commit/" in path:
            self._commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)
        else:
            self._answer(404, {"error": f"no {path}"})

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.blobs[self.path.rpartition("/")[2]] = body
        self._answer(200, {})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        self.hub.repositories.setdefault(name, {})
        self.hub.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
        self._answer(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _commit(self, name: str, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif entry["key"] == "file":
                self.hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.hub.repositories[name][value["path"]] = self.hub.blobs[value["oid"]]
        self._answer(
            200, {"commitUrl": f"{self.hub.url}/{name}/commit/abc", "commitOid": "abc", "success": True}
        )

    def _answer(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    found = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": found}))
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapters.safetensors").write_bytes(os.urandom(5000))
    (folder / "adapter_config.json").write_text(json.dumps({"model": "org/base", "fine_tune_type": "lora"}))
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [sql]\n---\n# Ours\n")
    (folder / ".hidden").write_text("not for others")
    return folder


def push(hub: Hub, *words: str, token: str | None = TOKEN, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_TOKEN", None)
    if token is not None:
        environment["HF_TOKEN"] = token
    return subprocess.run(
        [sys.executable, "-c", RUN, "push-hub", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def head_of(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


@pytest.mark.processes
def test_an_adapter_is_on_the_hub_with_its_card(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    ran = push(
        hub, str(adapter), "--repo", "lab/sql", "--private", "--message", "First", home=tmp_path / "home"
    )

    assert (ran.returncode, ran.stdout) == (0, f"{hub.url}/lab/sql\n"), ran.stderr
    sent = hub.repositories["lab/sql"]
    assert sent.keys() == {"adapters.safetensors", "adapter_config.json", "README.md"}
    assert sent["adapters.safetensors"] == (adapter / "adapters.safetensors").read_bytes()
    assert hub.private == {"lab/sql": True}
    assert hub.messages == ["First"]
    card = sent["README.md"].decode()
    assert card.endswith("---\n# Ours\n")
    assert head_of(card) == {
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "library_name": "mlx",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["sql"],
    }


@pytest.mark.processes
@pytest.mark.parametrize(
    ("repository", "token", "code", "words"),
    [
        ("lab/sql", None, 4, "there is no token for the hub; set HF_TOKEN"),
        ("lab/sql", "hf_bad", 4, "the token is not valid"),
        ("lab/sql", "hf_reader", 4, "the token may not write to lab/sql"),
        ("lab//sql", TOKEN, 2, "`--repo` is 'lab//sql'; it must be `org/name`"),
    ],
)
def test_what_the_hub_refuses_is_said_in_a_line(
    hub: Hub, adapter: Path, tmp_path: Path, repository: str, token: str | None, code: int, words: str
) -> None:
    ran = push(hub, str(adapter), "--repo", repository, token=token, home=tmp_path / "home")

    assert ran.returncode == code, ran.stderr
    assert words in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert hub.repositories == {}


@pytest.mark.processes
def test_a_hub_that_does_not_answer_is_unreachable(adapter: Path, tmp_path: Path) -> None:
    ran = push(Hub(url="http://127.0.0.1:9"), str(adapter), "--repo", "lab/sql", home=tmp_path / "home")

    assert ran.returncode == 8, ran.stderr
    assert "the hub does not answer" in ran.stderr


def test_cards_say_how_a_model_comes_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"quantization": {"bits": 4}}')
    alone = pack(tmp_path)
    write_card(tmp_path, card(what="fused"))
    fused = pack(tmp_path)

    assert (alone.kind, alone.base) == ("quantised", None)
    assert head_of(alone.card)["base_model_relation"] == "quantized"
    assert (fused.kind, fused.base) == ("fused", "mlx-community/tiny")
    assert head_of(fused.card)["base_model_relation"] == "finetune"
    assert head_of(fused.card)["license"] == "apache-2.0"


@pytest.mark.processes
def test_no_place_of_this_machine_is_published(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "uncut/adapter_config.json"):
        (adapter / name).parent.mkdir(exist_ok=True)
        (adapter / name).write_text('{"model": "/home/me/base", "fine_tune_type": "lora"}')
    (adapter / "config.json").write_text('{"_name_or_path": "/home/me/base"}')
    (adapter / "README.md").write_text("---\nbase_model: /home/me/base\n---\n# Ours\n")
    (adapter / "tracking").mkdir()
    (adapter / "tracking" / "run.log").write_text("/home/me")

    ran = push(hub, str(adapter), "--repo", "lab/sql", home=tmp_path / "home")

    assert ran.returncode == 0, ran.stderr
    sent = hub.repositories["lab/sql"]
    assert "tracking/run.log" not in sent
    assert not [name for name, content in sent.items() if b"/home/me" in content]
    assert json.loads(sent["adapter_config.json"]) == {"model": "base", "fine_tune_type": "lora"}
    assert "base_model" not in head_of(sent["README.md"].decode())


def test_a_folder_with_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="neither an adapter nor a model"):
        pack(tmp_path)
    with pytest.raises(NotFound, match="there is no folder"):
        pack(tmp_path / "none")
