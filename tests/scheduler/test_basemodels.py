"""What is said of a base model from its files, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from graft_scheduler.basemodels import Quantization, local_folder, looks_like_path, read_base_model
from graft_scheduler.errors import InvalidInput, NotAllowed
from graft_scheduler.hub import HUB_TIMEOUT_SECONDS, fetch_hub_config

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
}
WEIGHTS = {"model.embed_tokens.weight": ("BF16", [100, 64]), "model.norm.weight": ("BF16", [64])}
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "U32": 4}


def write_tensors(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    def make(
        config: dict[str, Any] | str | None = None, tensors: dict[str, Any] | None = None, **more: Any
    ) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        text = config if isinstance(config, str) else json.dumps({**LLAMA, **(config or {}), **more})
        (folder / "config.json").write_text(text)
        write_tensors(folder / "model.safetensors", tensors or WEIGHTS)
        return folder

    return make


def test_a_plain_model_is_described_from_its_config_and_headers(make_model: Callable[..., Path]) -> None:
    model = read_base_model(make_model())

    assert (model.model_type, model.architecture) == ("llama", "LlamaForCausalLM")
    assert (model.hidden_size, model.num_layers, model.intermediate_size, model.vocab_size) == (
        64,
        2,
        128,
        100,
    )
    assert (model.num_heads, model.num_kv_heads, model.head_dim) == (4, 2, 16)
    assert (model.parameters, model.weight_bytes, model.dtype) == (6464, 12928, "bfloat16")
    assert model.quantization is None
    assert model.num_experts == 1
    assert model.is_tied
    assert not model.has_tokenizer
    assert not model.has_chat_template


def test_an_output_matrix_means_that_the_embeddings_are_not_tied(make_model: Callable[..., Path]) -> None:
    assert not read_base_model(make_model(tensors={**WEIGHTS, "lm_head.weight": ("BF16", [100, 64])})).is_tied


def test_a_quantised_model_counts_the_parameters_that_its_packed_weights_stand_for(
    make_model: Callable[..., Path],
) -> None:
    packed: dict[str, tuple[str, list[int]]] = {
        "model.layers.0.mlp.up_proj.weight": ("U32", [128, 64 * 4 // 32]),
        "model.layers.0.mlp.up_proj.scales": ("F16", [128, 1]),
        "model.layers.0.mlp.up_proj.biases": ("F16", [128, 1]),
        "model.norm.weight": ("F16", [64]),
    }

    model = read_base_model(make_model(tensors=packed, quantization={"bits": 4, "group_size": 64}))

    assert model.quantization == Quantization(bits=4, group_size=64)
    assert model.parameters == 128 * 64 + 64
    assert model.weight_bytes == 128 * 32 + 2 * 256 + 128
    assert model.dtype == "float16"


def test_a_multimodal_config_is_read_where_it_nests_the_language_model(
    make_model: Callable[..., Path],
) -> None:
    inner = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "model_type": "gemma3_text",
        "intermediate_size": [50, 60],
    }

    model = read_base_model(make_model(model_type="gemma3", text_config=inner))

    assert model.model_type == "gemma3"
    assert (model.hidden_size, model.num_layers, model.intermediate_size) == (32, 3, 60)


def test_other_families_names_for_the_sizes_are_understood(make_model: Callable[..., Path]) -> None:
    config = {"model_type": "gpt2", "n_embd": 48, "n_layer": 5, "n_head": 3, "n_inner": None, "vocab_size": 9}

    model = read_base_model(make_model(json.dumps(config)))

    assert (model.hidden_size, model.num_layers, model.num_heads, model.num_kv_heads) == (48, 5, 3, 3)
    assert (model.head_dim, model.intermediate_size) == (16, 192)


def test_experts_are_counted(make_model: Callable[..., Path]) -> None:
    model = read_base_model(make_model(num_local_experts=8, num_experts_per_tok=2, moe_intermediate_size=16))

    assert (model.num_experts, model.experts_per_token, model.intermediate_size) == (8, 2, 16)


def test_all_shards_are_counted_and_adapters_beside_them_are_not(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    write_tensors(folder / "model-2.safetensors", {"lm_head.weight": ("F32", [10, 10])})
    write_tensors(folder / "adapters.safetensors", {"lora_a": ("F32", [10, 10])})

    assert read_base_model(folder).weight_bytes == 12928 + 400


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (False, False)),
        ({"tokenizer.json": "{}", "tokenizer_config.json": '{"chat_template": "x"}'}, (True, True)),
        ({"tokenizer.json": "{}", "tokenizer_config.json": "{}"}, (True, False)),
        ({"tokenizer.model": "", "chat_template.jinja": "x"}, (True, True)),
    ],
)
def test_tokenizer_and_chat_template_are_seen(
    make_model: Callable[..., Path], files: dict[str, str], expected: tuple[bool, bool]
) -> None:
    folder = make_model()
    for name, text in files.items():
        (folder / name).write_text(text)

    model = read_base_model(folder)

    assert (model.has_tokenizer, model.has_chat_template) == expected


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("{not json", r"config\.json is not valid JSON"),
        ("[]", r"config\.json holds no JSON object"),
        (json.dumps({**LLAMA, "model_type": None}), "no `model_type`"),
        (json.dumps({**LLAMA, "hidden_size": None}), "no `hidden_size`"),
        (json.dumps({**LLAMA, "hidden_size": -4}), "`hidden_size` in config.json is -4"),
        (json.dumps({**LLAMA, "vocab_size": "many"}), "`vocab_size` in config.json is 'many'"),
        (json.dumps({**LLAMA, "num_hidden_layers": 0}), "`num_hidden_layers` in config.json is 0"),
    ],
)
def test_a_config_that_says_too_little_is_refused_with_its_place(
    make_model: Callable[..., Path], config: str, complaint: str
) -> None:
    folder = make_model(config)

    with pytest.raises(InvalidInput, match=complaint) as refusal:
        read_base_model(folder)

    assert str(folder) in str(refusal.value)


def test_a_missing_folder_is_refused_with_the_nearest(make_model: Callable[..., Path]) -> None:
    folder = make_model()

    with pytest.raises(InvalidInput, match=f"does not exist; did you mean {folder}"):
        read_base_model(folder.with_name("modle"))


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"config\.json does not exist"):
        read_base_model(tmp_path)


def test_weights_of_another_format_are_named_with_the_way_to_convert_them(
    make_model: Callable[..., Path],
) -> None:
    folder = make_model()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    with pytest.raises(InvalidInput, match=r"pytorch_model\.bin.*mlx_lm\.convert"):
        read_base_model(folder)


def test_a_shard_that_the_index_names_and_nobody_downloaded_is_named(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    index = {
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "../model-00002-of-00002.safetensors"}
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(InvalidInput, match=f"{folder}/model-0000.-of-00002"):
        read_base_model(folder)


@pytest.mark.parametrize("text", [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b'\x08\0\0\0\0\0\0\0{"a": 1}'])
def test_a_file_that_is_no_safetensors_is_refused(make_model: Callable[..., Path], text: bytes) -> None:
    folder = make_model()
    (folder / "model.safetensors").write_bytes(text)

    with pytest.raises(InvalidInput, match=r"model\.safetensors is not a safetensors file"):
        read_base_model(folder)


def test_weights_cut_short_by_a_broken_download_are_refused(make_model: Callable[..., Path]) -> None:
    path = make_model() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(InvalidInput, match="cut short"):
        read_base_model(path.parent)


# --- path or hub id


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("mlx-community/Llama-3.2-1B-Instruct-4bit", False),
        ("org/name.v2", False),
        ("/models/llama", True),
        ("./org/name", True),
        ("~/models/llama", True),
        ("llama", True),
        ("a/b/c", True),
        ("org/name with space", True),
        ("org/name/", True),
    ],
)
def test_a_path_is_told_from_a_hub_id(
    source: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert looks_like_path(source) is expected


def test_a_folder_that_exists_is_a_path_even_if_it_looks_like_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    assert local_folder("org/name") == Path("org/name")
    assert local_folder("org/other") is None


def test_a_path_that_does_not_exist_is_refused_with_the_nearest(make_model: Callable[..., Path]) -> None:
    folder = make_model()

    with pytest.raises(InvalidInput, match=f"no such folder; did you mean {folder}"):
        local_folder(str(folder.with_name("mode")))
    with pytest.raises(InvalidInput, match="a hub id is written `org/name`"):
        local_folder("llama-nowhere")
    with pytest.raises(InvalidInput, match="a file; give the folder"):
        local_folder(str(folder / "config.json"))


# --- the hub, which no test reaches: a small fake of its client


class FakeHub(ModuleType):
    """The part of `huggingface_hub` that is used, for one model in a folder."""

    def __init__(self, folder: Path, failure: str | None, **info: Any) -> None:
        super().__init__("huggingface_hub")
        from huggingface_hub import errors

        self.errors = errors
        self.folder, self.failure = folder, failure
        self.info = SimpleNamespace(
            **{"sha": "c0ffee", "siblings": [], "config": None, "safetensors": None, **info}
        )
        self.timeouts: list[float] = []

    def HfApi(self) -> FakeHub:
        return self

    def model_info(self, repo_id: str, *, revision: str | None, files_metadata: bool, timeout: float) -> Any:
        self.timeouts.append(timeout)
        if self.failure == "offline":
            raise self.errors.OfflineModeIsEnabled
        if self.failure:
            error: type[Exception] = getattr(self.errors, self.failure)
            raise error.__new__(error)  # without __init__, which wants a real response
        return self.info

    def hf_hub_download(self, repo_id: str, name: str, *, revision: str, etag_timeout: float) -> str:
        self.timeouts.append(etag_timeout)
        assert revision == self.info.sha
        return str(self.folder / name)


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, make_model: Callable[..., Path]) -> Callable[..., FakeHub]:
    def make(failure: str | None = None, config: dict[str, Any] | None = None, **info: Any) -> FakeHub:
        hub = FakeHub(make_model(config), failure, **info)
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        return hub

    return make


def test_a_hub_model_is_described_at_one_commit_without_its_weights(fake_hub: Callable[..., FakeHub]) -> None:
    files = [
        SimpleNamespace(rfilename="model.safetensors", size=1000),
        SimpleNamespace(rfilename="original/model.safetensors", size=5000),
        SimpleNamespace(rfilename="tokenizer.json", size=10),
    ]
    hub = fake_hub(
        config={"quantization": {"bits": 4, "group_size": 64}, "tie_word_embeddings": True},
        siblings=files,
        safetensors=SimpleNamespace(parameters={"BF16": 30, "U32": 200}, total=230),
    )
    hub.info.config = {"tokenizer_config": {"chat_template": "x"}}

    found = fetch_hub_config("org/name", "main")

    assert found is not None
    assert found.commit == "c0ffee"
    assert (found.base.weight_bytes, found.base.parameters, found.base.dtype) == (1000, 1600, "bfloat16")
    assert found.base.has_tokenizer
    assert found.base.has_chat_template
    assert found.base.is_tied
    assert hub.timeouts == [HUB_TIMEOUT_SECONDS] * 2


@pytest.mark.parametrize(
    ("failure", "error", "complaint"),
    [
        ("RepositoryNotFoundError", InvalidInput, "no model 'org/name'"),
        ("RevisionNotFoundError", InvalidInput, "no revision 'v9'"),
        ("RemoteEntryNotFoundError", InvalidInput, r"no config\.json"),
        ("GatedRepoError", NotAllowed, "gated.*HF_TOKEN"),
    ],
)
def test_what_the_hub_refuses_is_refused_here(
    fake_hub: Callable[..., FakeHub], failure: str, error: type[Exception], complaint: str
) -> None:
    fake_hub(failure)

    with pytest.raises(error, match=complaint):
        fetch_hub_config("org/name", "v9")


def test_a_hub_model_without_safetensors_is_refused(fake_hub: Callable[..., FakeHub]) -> None:
    fake_hub(siblings=[SimpleNamespace(rfilename="pytorch_model.bin", size=1000)])

    with pytest.raises(InvalidInput, match="no safetensors weights"):
        fetch_hub_config("org/name")


def test_a_hub_that_cannot_be_reached_or_asked_says_nothing(
    fake_hub: Callable[..., FakeHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub("offline")
    assert fetch_hub_config("org/name") is None

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert fetch_hub_config("org/name") is None
