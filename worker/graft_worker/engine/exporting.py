"""An adapter fused into its base, as a folder that appears whole and checked or not at all.

The steps: ask the adapted model and its base about rows that nothing learned from; fuse and write; load what
was written and ask it the same. One model is in memory at a time.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.utils import load_model

from graft_scheduler.basemodels import CONFIG_FILE, WEIGHTS_PATTERN
from graft_scheduler.errors import Conflict, NotAllowed
from graft_scheduler.exports import ExportOrder, ExportReport, Fidelity, FuseOrder, Into
from graft_scheduler.hyperparameters import Precision
from graft_scheduler.states import FailureClass
from graft_worker.engine.adapter_source import AdapterSource, adapted_paths, changed_arrays, open_source
from graft_worker.engine.base_files import BaseFiles, put_back, read_tensors
from graft_worker.engine.device import forget, peak_bytes, prepared
from graft_worker.engine.fidelity import KEPT_SHARE, Compared, Witness, compare, listen, report
from graft_worker.engine.folders import PARTIAL_PREFIX, write_whole
from graft_worker.engine.fused import fuse_adapters
from graft_worker.engine.fused_card import base_card, write_fused_card
from graft_worker.engine.held_out import HeldOut, read_held_out, write_own
from graft_worker.engine.loading import DTYPES, cast, quantise
from graft_worker.engine.model_folder import (
    QUANTIZATION_KEYS,
    Named,
    check_room,
    copy_beside,
    whole_config,
    write_config,
    write_weights,
)
from graft_worker.link import JobError

Tell = Callable[[str], None]

MLX_LAYOUT = "the weights have mlx-lm's names and shapes; other libraries read them where theirs are the same"


class TuningLost(NotAllowed):
    """What was made is not what was trained; its figures are in `fidelity`."""

    def __init__(self, text: str, fidelity: Fidelity) -> None:
        super().__init__(text, fidelity)
        self.fidelity = fidelity

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class Measured:
    """What the adapted model and its base say; what is made has to agree with the first."""

    held_out: HeldOut
    witness: Witness
    base: Compared
    dtype: str
    """What they were computed in."""


@dataclass(frozen=True, slots=True)
class Written:
    """A fused model in a folder."""

    size_bytes: int
    form: str
    notes: tuple[str, ...]


def fuse(order: FuseOrder, tell: Tell) -> ExportReport:
    """Fuse an adapter into its base.

    Raises:
        JobError: the adapter, the base or the rows cannot be used.
        Conflict: the output exists, or its disk has no room.
        TuningLost: what would have been made is not what was trained.
    """
    began, output = time.monotonic(), Path(order.output).expanduser()
    source = open_checked(order)
    made: list[tuple[Written, Fidelity]] = []
    with prepared(None):
        measured = measure(source, tell)

        def write(aside: Path) -> None:
            written = write_fused(source, order.into, order.dtype, aside, tell)
            fidelity = check(source, measured, aside, tell)
            refuse_lost(fidelity, order)
            write_fused_card(aside, source, "fused", written.form, fidelity)
            made.append((written, fidelity))

        with no_leftovers(output):
            write_whole(output, write)
        ((written, fidelity),) = made
        return ExportReport(
            kind=order.kind,
            output=str(output),
            model=base_card(source).name,
            form=written.form,
            size_bytes=written.size_bytes,
            fused_bytes=written.size_bytes,
            fidelity=fidelity,
            seconds=time.monotonic() - began,
            peak_memory_bytes=peak_bytes(),
            notes=source.notes + written.notes,
        )


def open_checked(order: ExportOrder) -> AdapterSource:
    """The adapter and its bases, if there is a place for a model that is no smaller than its base's files.

    Raises:
        JobError: as `open_source`.
        Conflict: the output exists, or its disk has no room.
    """
    output = Path(order.output).expanduser()
    refuse_existing(output)
    source = open_source(order)
    check_room(output, sum(path.stat().st_size for path in source.target.glob(WEIGHTS_PATTERN)))
    return source


def measure(source: AdapterSource, tell: Tell) -> Measured:
    """Ask the adapted model and then its base about the same rows."""
    tell("asking the adapted model")
    base = source.load_trained(adapted=True)
    data = source.order.data
    held_out = write_own(base) if data is None else read_held_out(data, base)
    witness, dtype = listen(base.model, held_out), base.dtype
    del base
    forget()
    tell(f"asking its base about the same {witness.tokens} tokens")
    bare = source.load_trained(adapted=False)
    compared = compare(witness, bare.model)
    return Measured(held_out, witness, compared, dtype)


def check(source: AdapterSource, measured: Measured, folder: Path, tell: Tell) -> Fidelity:
    """Ask the model in `folder` the same."""
    forget()
    tell("asking the fused model")
    fused = compare(measured.witness, source.load_made(folder).model)
    forget()
    return report(measured.held_out, measured.witness, measured.base, fused, measured.dtype)


def refuse_lost(fidelity: Fidelity, order: ExportOrder) -> None:
    """Raises `TuningLost` where too little of the tuning is left, unless the order wants it all the same."""
    if fidelity.is_kept or order.force:
        return
    if fidelity.kept is None:
        text = (
            f"the adapter changes next to nothing ({fidelity.tuning:.1e} nats a token), and fusing it "
            f"changed more ({fidelity.difference:.1e})"
        )
    else:
        kept = max(fidelity.kept, 0)
        text = f"the fused model keeps {kept:.0%} of the tuning; at least {KEPT_SHARE:.0%} is asked for"
    raise TuningLost(f"{text}. Nothing was written", fidelity)


def write_fused(source: AdapterSource, into: Into, dtype: Precision, folder: Path, tell: Tell) -> Written:
    """Fuse and write the model into `folder`, which exists and is empty.

    Raises:
        JobError: the adapter does not fit the base; class `config`.
        Conflict: there is no room.
    """
    base_folder = source.target if into is Into.FULL else source.trained_on
    model, config = load_lazily(base_folder, trusts=source.trusts)
    is_quantised = _is_quantised(config)
    config = {**json.loads((base_folder / CONFIG_FILE).read_bytes()), **quantization_in(config)}
    wanted = None if dtype is Precision.AUTO else DTYPES[dtype]
    if source.quantization is not None and not is_quantised and into is not Into.FULL:
        wanted = wanted or main_dtype(read_tensors(base_folder).values())
        config |= _quantise_as_trained(model, config, source)
    if into is Into.QUANTIZED and not _is_quantised(config):
        text = f"{source.target_name} is not quantised, and was not for the training; fuse without that"
        raise JobError(FailureClass.CONFIG, text)
    source.put(model)
    adapted = adapted_paths(model)
    fuse_adapters(model, keep_quantized=into is Into.QUANTIZED, dtype=wanted)
    if into is Into.QUANTIZED:
        return write_model(model, config, base_folder, folder, wanted, tell)
    plain = whole_config(config, None if dtype is Precision.AUTO else dtype.value)
    if not _is_quantised(config):
        files = put_back(base_folder, model, changed_arrays(source, model, adapted))
        if files is not None:
            del model  # else all that is computed stays in memory
            return _write_files(files, plain, base_folder, folder, wanted, tell)
    return write_model(model, plain, base_folder, folder, wanted, tell)


def refuse_existing(output: Path) -> None:
    """Raises `Conflict` where something is already."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise Conflict(f"{output} exists and is not empty; name another with `-o`, or remove it")


@contextmanager
def no_leftovers(output: Path) -> Iterator[None]:
    """However this ends, nothing half-made lies beside `output`."""
    try:
        yield
    finally:
        shutil.rmtree(output.parent / f"{PARTIAL_PREFIX}{output.name}", ignore_errors=True)


def main_dtype(arrays: Iterable[mx.array]) -> mx.Dtype:
    """The floating dtype that most of the numbers are in."""
    counts: dict[mx.Dtype, int] = {}
    for array in arrays:
        if mx.issubdtype(array.dtype, mx.floating):
            counts[array.dtype] = counts.get(array.dtype, 0) + array.size
    return max(counts, key=lambda dtype: counts[dtype])


def form_of(config: dict[str, Any], dtype: mx.Dtype) -> str:
    """What the weights of a model are, in words."""
    found = config.get("quantization") or config.get("quantization_config")
    if not found:
        return str(dtype).rsplit(".", 1)[-1]
    mode = found.get("mode", "affine")
    return f"{found.get('bits')} bits in groups of {found.get('group_size')} ({mode})"


def _write_files(
    files: BaseFiles, config: dict[str, Any], base: Path, folder: Path, dtype: mx.Dtype | None, tell: Tell
) -> Written:
    """The base's own files with what was fused."""
    form = form_of(config, dtype or main_dtype(files.tensors.values()))
    check_room(folder, files.size(dtype))
    tell(f"writing {len(files.tensors)} tensors, {len(files.replaced)} of them fused")
    size = write_weights(folder, files.hand_over(dtype), "pt")
    copy_beside(base, folder)
    write_config(folder, config)
    return Written(size, form, ())


def write_model(
    model: nn.Module,
    config: dict[str, Any],
    base: Path,
    folder: Path,
    dtype: mx.Dtype | None,
    tell: Tell,
) -> Written:
    """The model's own arrays, as mlx-lm has them."""
    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    model.update(tree_map(lambda _: mx.array([]), model.parameters()))  # the arrays are ours alone
    for name, array in arrays.items():
        if dtype is not None and mx.issubdtype(array.dtype, mx.floating):
            arrays[name] = array.astype(dtype)
    form = form_of(config, dtype or main_dtype(arrays.values()))
    check_room(folder, sum(array.nbytes for array in arrays.values()))
    tell(f"writing {len(arrays)} tensors")
    size = write_weights(folder, _handed_over(arrays), "mlx")
    copy_beside(base, folder)
    write_config(folder, config)
    return Written(size, form, () if _is_quantised(config) else (MLX_LAYOUT,))


def _handed_over(arrays: dict[str, mx.array]) -> Iterator[Named]:
    for name in list(arrays):
        yield name, arrays.pop(name)


def load_lazily(folder: Path, *, trusts: bool) -> tuple[nn.Module, dict[str, Any]]:
    """A model of which nothing has been read yet, in the dtypes of its files."""
    try:
        model, config = load_model(folder, lazy=True, trust_remote_code=trusts)
    except Exception as error:  # model files are foreign: whatever they raise is about them
        text = f"the model in {folder} cannot be loaded: {error}"
        raise JobError(FailureClass.CONFIG, text) from error
    return model, config


def _quantise_as_trained(model: nn.Module, config: dict[str, Any], source: AdapterSource) -> dict[str, Any]:
    """Quantise the model as the training did; what its config says of that."""
    assert source.quantization is not None
    cast(model, source.order.precision)
    return quantization_in(quantise(model, config, source.quantization)[1])


def _is_quantised(config: dict[str, Any]) -> bool:
    return any(config.get(key) for key in QUANTIZATION_KEYS)


def quantization_in(config: dict[str, Any]) -> dict[str, Any]:
    """What a config says of quantisation; mlx-lm makes its own form of others when it loads a model."""
    return {key: config[key] for key in QUANTIZATION_KEYS if key in config}
