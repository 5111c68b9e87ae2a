"""The base model and its tokenizer, from a folder or the hub, in the dtype the job computes in."""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_model, load_tokenizer, quantize_model

from graft_scheduler.basemodels import WEIGHTS_PATTERN, looks_like_path
from graft_scheduler.hub import MODEL_PATTERNS
from graft_scheduler.hyperparameters import Precision, QuantizationConfig
from graft_scheduler.jobs import ModelRef
from graft_scheduler.states import FailureClass
from graft_worker.engine.device import is_gpu, is_out_of_memory
from graft_worker.link import JobError

FINGERPRINT_BYTES = 1 << 20
DTYPES = {
    Precision.FLOAT32: mx.float32,
    Precision.BFLOAT16: mx.bfloat16,
    Precision.FLOAT16: mx.float16,
}


@dataclass(frozen=True, slots=True)
class Base:
    """A loaded base model, frozen."""

    model: nn.Module
    tokenizer: TokenizerWrapper
    config: dict[str, Any]
    folder: Path
    dtype: str
    """Of its activations, as MLX names it."""
    quantization: dict[str, int] | None = None
    """Bits and group size, where it was quantised when it was loaded."""

    @property
    def compute_dtype(self) -> mx.Dtype:
        found: mx.Dtype = getattr(mx, self.dtype)
        return found

    @property
    def vocabulary(self) -> int | None:
        """Rows of its embedding, if its config tells."""
        text_config = self.config.get("text_config", {})
        size = self.config.get("vocab_size", text_config.get("vocab_size"))
        return int(size) if size is not None else None

    @property
    def fingerprint(self) -> str:
        """Tells models apart by their config, and by the sizes and ends of their weight files."""
        sha = hashlib.sha256(json.dumps(self.config, sort_keys=True, default=str).encode())
        for path in sorted(self.folder.glob(WEIGHTS_PATTERN)):
            size = path.stat().st_size
            with path.open("rb") as file:
                file.seek(max(0, size - FINGERPRINT_BYTES))
                sha.update(f"{path.name} {size}".encode() + file.read())
        return sha.hexdigest()


def load_base(
    ref: ModelRef,
    folder: Path | None,
    precision: Precision,
    quantization: QuantizationConfig | None = None,
    *,
    must_be_whole: bool = False,
) -> Base:
    """The model in `folder`, or the one that `ref` names on the hub, ready to be adapted.

    With `quantization` it is quantised, unless it is already. `must_be_whole` refuses a quantised
    base before anything is loaded.

    Raises:
        JobError: it does not exist, cannot be read, or may not be run; class `config`, or
            `store` when the hub does not answer.
    """
    path = folder or find_model(ref)
    own = _check_folder(path, must_be_whole=must_be_whole)
    if own:
        quantization = None
    try:
        model, config = load_model(path, lazy=True, trust_remote_code=ref.trust_remote_code)
        tokenizer = load_tokenizer(
            path, {"trust_remote_code": ref.trust_remote_code}, eos_token_ids=config.get("eos_token_id")
        )
        dtype = cast(model, precision)
        if quantization is not None:
            quantise(model, config, quantization)
        for _, module in reversed(model.named_modules()):  # leaves first, an unquantised copy at a time
            mx.eval(module.parameters())
    except JobError:
        raise
    except Exception as error:  # model files are foreign: whatever they raise is about them
        if is_out_of_memory(error):
            raise
        raise JobError(FailureClass.CONFIG, f"the model {ref.source} cannot be loaded: {error}") from error
    _check_experts(model, dtype)
    model.freeze()
    kept = None if quantization is None else quantization.model_dump()
    return Base(model, tokenizer, config, path, dtype, kept)


def find_model(ref: ModelRef) -> Path:
    """The folder of the model: the one that `ref` names here, else a snapshot of the hub.

    Raises:
        JobError: neither exists (class `config`), or the hub does not answer (class `store`).
    """
    if looks_like_path(ref.source) and (folder := Path(ref.source).expanduser()).is_dir():
        return folder
    try:
        return Path(snapshot_download(ref.source, revision=ref.revision, allow_patterns=list(MODEL_PATTERNS)))
    except HFValidationError as error:
        raise JobError(FailureClass.CONFIG, f"the model folder {ref.source} does not exist") from error
    except LocalEntryNotFoundError as error:
        text = f"{ref.source} is no folder here, and the hub that might have it does not answer"
        raise JobError(FailureClass.STORE, text) from error
    except HfHubHTTPError as error:
        text = f"{ref.source} is no folder here, and the hub refuses it: {_first_line(error)}"
        raise JobError(FailureClass.CONFIG, text) from error


def _check_folder(path: Path, *, must_be_whole: bool) -> bool:
    """Whether the model there is quantised."""
    try:
        config = json.loads((path / "config.json").read_bytes())
    except FileNotFoundError as error:
        raise JobError(FailureClass.CONFIG, f"the model folder {path} has no config.json") from error
    except ValueError as error:
        raise JobError(FailureClass.CONFIG, f"{path / 'config.json'} is not JSON: {error}") from error
    is_quantised = bool(config.get("quantization") or config.get("quantization_config"))
    if is_quantised and must_be_whole:
        text = f"the model in {path} is quantised; a full fine-tune needs its full-precision original"
        raise JobError(FailureClass.CONFIG, text)
    return is_quantised


def cast(model: nn.Module, precision: Precision) -> str:
    """Set the dtype of the unquantised weights and scales; the name of the one that holds."""
    if precision is Precision.AUTO and is_gpu():
        return _dtype_name(_own_dtype(model))
    dtype = DTYPES.get(precision, mx.float32)
    model.set_dtype(dtype)
    return _dtype_name(dtype)


def quantise(
    model: nn.Module, config: dict[str, Any], quantization: QuantizationConfig
) -> tuple[nn.Module, dict[str, Any]]:
    """Quantise every layer of `model` that the group size divides; the model, and what its config says then.

    Raises:
        JobError: it divides none; class `config`.
    """
    with redirect_stdout(sys.stderr):  # mlx-lm prints how many bits a weight has
        model, config = quantize_model(model, config, quantization.group_size, quantization.bits)
    kinds = (nn.QuantizedLinear, nn.QuantizedEmbedding, QuantizedSwitchLinear)
    if not any(isinstance(module, kinds) for _, module in model.named_modules()):
        text = f"`quantization.group_size` is {quantization.group_size}, and divides no layer of the model"
        raise JobError(FailureClass.CONFIG, f"{text}; use a smaller one, or the method lora")
    return model, config


def _check_experts(model: nn.Module, dtype: str) -> None:
    """MLX multiplies chosen experts on the CPU in float32 alone, and says so at the first step."""
    if is_gpu() or dtype == "float32":
        return
    if any(isinstance(module, SwitchLinear) for _, module in model.named_modules()):
        text = f"`precision` is {dtype}, and the model has expert layers: on the CPU use float32"
        raise JobError(FailureClass.CONFIG, text)


def _own_dtype(model: nn.Module) -> mx.Dtype:
    """The dtype of the final norm or the like: the last floating array of the model."""
    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    floating = [array.dtype for array in arrays.values() if mx.issubdtype(array.dtype, mx.floating)]
    return floating[-1] if floating else mx.float32


def _dtype_name(dtype: mx.Dtype) -> str:
    return str(dtype).rsplit(".", 1)[-1]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
