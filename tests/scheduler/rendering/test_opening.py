"""Finding a tokenizer: in a folder, on a hub, or nowhere, with the reason."""

from __future__ import annotations

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

from graft_scheduler.errors import NoTokenizer
from graft_scheduler.jobs import DataFormat
from graft_scheduler.rendering import encode, open_tokenizer
from tests.scheduler.rendering.families import FAMILIES, write
from tests.scheduler.test_imports import BLOCKED

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}
COMMIT = "c0ffee" * 6 + "c0ff"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(FAMILIES["qwen2.5"], tmp_path / "base")


def change(folder: Path, file: str = "tokenizer_config.json", **changes: Any) -> None:
    found = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**found, **changes}))


def run(code: str, *arguments: object, **environment: str) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_row_is_rendered_where_neither_mlx_nor_transformers_can_be_imported(folder: Path) -> None:
    code = BLOCKED + (
        "import json\nfrom pathlib import Path\n"
        "from graft_scheduler.jobs import DataFormat\n"
        "from graft_scheduler.rendering import encode, lengths, open_tokenizer, pieces\n"
        "assert not {'jinja2', 'tokenizers'} & set(sys.modules)\n"
        "tokenizer = open_tokenizer(Path(sys.argv[1]))\n"
        "row = json.loads(sys.argv[2])\n"
        "encoded = encode(tokenizer, DataFormat.CHAT, row)\n"
        "assert list(lengths(tokenizer, DataFormat.CHAT, [row])) == [len(encoded.tokens)]\n"
        "print([one.text for one in pieces(tokenizer, encoded) if one.learned])\n"
        "assert not {'numpy', 'mlx', 'mlx_lm', 'transformers'} & set(sys.modules)"
    )

    assert run(code, folder, json.dumps(CHAT)) == repr(["Yes<|im_end|>\n"])


@pytest.mark.parametrize("package", ["jinja2", "tokenizers"])
def test_a_package_that_is_missing_is_named_with_its_remedy(folder: Path, package: str) -> None:
    code = BLOCKED.replace('"mlx"', f'"mlx", "{package}"') + (
        "from pathlib import Path\n"
        "from graft_scheduler.errors import NoTokenizer\n"
        "from graft_scheduler.rendering import open_tokenizer\n"
        "try: open_tokenizer(Path(sys.argv[1]))\n"
        "except NoTokenizer as error: print(error)"
    )

    assert "`pip install 'mlx-graft[data]'`" in run(code, folder)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{}", "tokenizer.json cannot be read"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json holds no JSON object"),
        ("config.json", b"\xff\xfe", "config.json cannot be read"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja cannot be read"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_says_why(
    folder: Path, file: str, content: str | bytes | None, reason: str
) -> None:
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    with pytest.raises(NoTokenizer, match=reason):
        open_tokenizer(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"auto_map": {"AutoTokenizer": ["x.X", None]}}, "the model's own code"),
        ({"auto_map": ["x.X", None]}, "the model's own code"),
        ({"chat_template_type": "deepseek_v32"}, "by code of mlx-lm"),
        ({"fix_mistral_regex": True}, "fix_mistral_regex"),
    ],
)
def test_a_tokenizer_that_only_a_host_can_build_says_why(
    folder: Path, changes: dict[str, Any], reason: str
) -> None:
    change(folder, **changes)

    with pytest.raises(NoTokenizer, match=reason):
        open_tokenizer(folder)


def test_a_class_with_rules_of_its_own_is_left_to_the_hosts(folder: Path) -> None:
    change(folder, tokenizer_class="T5TokenizerFast")
    change(folder, "config.json", model_type="llama")

    with pytest.raises(NoTokenizer, match="opened as a T5Tokenizer"):
        open_tokenizer(folder)


def test_a_template_of_its_own_file_comes_before_the_configs(folder: Path) -> None:
    change(folder, chat_template="of the config")
    (folder / "chat_template.jinja").write_text("of the file")

    tokenizer = open_tokenizer(folder)

    assert tokenizer.render(CHAT["messages"], tools=None, add_generation_prompt=False) == "of the file"


def test_further_templates_lie_in_a_folder(folder: Path) -> None:
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("with tools")
    (folder / "chat_template.jinja").write_text("without")

    tokenizer = open_tokenizer(folder)

    messages, no_tools = CHAT["messages"], list[Any]()
    assert tokenizer.render(messages, tools=None, add_generation_prompt=False) == "without"
    assert tokenizer.render(messages, tools=no_tools, add_generation_prompt=False) == "with tools"


def test_a_template_that_is_no_jinja_refuses_each_row_by_name(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for %}")

    with pytest.raises(Exception, match="the chat template refuses it: Expected an expression"):
        encode(open_tokenizer(folder), DataFormat.CHAT, CHAT)


@pytest.fixture
def hub(folder: Path) -> Iterator[str]:
    """A server that answers as the hub does for one model, `lab/base`; it has weights too."""
    (folder / "model.safetensors").write_bytes(b"x")

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            name = self.path.removeprefix(f"/lab/base/resolve/{COMMIT}/")
            if self.path.startswith(f"/api/models/lab/base/tree/{COMMIT}"):
                files = [
                    {"type": "file", "path": one.name, "size": 1, "oid": "0"} for one in folder.iterdir()
                ]
                self.answer(json.dumps(files).encode())
            elif self.path.startswith("/api/models/lab/base"):
                siblings = [{"rfilename": path.name} for path in folder.iterdir()]
                self.answer(json.dumps({"id": "lab/base", "sha": COMMIT, "siblings": siblings}).encode())
            elif name == "model.safetensors":
                raise AssertionError("the weights were asked for")
            elif (folder / name).is_file():
                self.answer((folder / name).read_bytes())
            else:
                self.send_error(404)

        def answer(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{len(content)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


FETCH = (
    "import json, sys\nfrom graft_scheduler.errors import NoTokenizer\n"
    "from graft_scheduler.jobs import DataFormat\n"
    "from graft_scheduler.rendering import encode, fetch_tokenizer\n"
    "try: print(encode(fetch_tokenizer('lab/base'), DataFormat.CHAT, json.loads(sys.argv[1])).tokens)\n"
    "except NoTokenizer as error: print(error)"
)


def test_the_tokenizer_of_a_hub_id_is_fetched_without_its_weights_and_kept(
    folder: Path, hub: str, tmp_path: Path
) -> None:
    wanted = str(encode(open_tokenizer(folder), DataFormat.CHAT, CHAT).tokens)
    environment = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}

    fetched = run(FETCH, json.dumps(CHAT), **environment)
    again = run(FETCH, json.dumps(CHAT), **environment, HF_HUB_OFFLINE="1")

    assert (fetched, again) == (wanted, wanted)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_hub_that_does_not_answer_is_a_reason(tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}

    found = run(FETCH, json.dumps(CHAT), **environment)

    assert found.startswith("the tokenizer of lab/base cannot be fetched: ")
