"""From what a person wrote to what will run: everything checked, stored and written out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from graft_scheduler.basemodels import BaseModel, local_folder, read_base_model
from graft_scheduler.data.fleet import put_data
from graft_scheduler.data.inspection import Inspection
from graft_scheduler.data.jsonl import row_reader
from graft_scheduler.data.opening import FILES, Source, inspect_source, open_source, training_files
from graft_scheduler.data.sources import Split
from graft_scheduler.data.splitting import split
from graft_scheduler.demand import Demand, Request, coarse_demands, coarse_disk
from graft_scheduler.errors import InvalidInput
from graft_scheduler.hub import fetch_hub_config
from graft_scheduler.hyperparameters import Method
from graft_scheduler.jobs import CountJob, DataFormat, DataRef, ModelRef, TrainJob
from graft_scheduler.lengths import BYTES_PER_TOKEN, Lengths, auto_batch_rows, of_rows
from graft_scheduler.memory import Backend, trained_bytes
from graft_scheduler.planning import Question, fastest_cut, smallest_cut
from graft_scheduler.store import Store
from graft_scheduler.time_estimate import flops
from graft_scheduler.token_counts import TEMPLATE_TOKENS, RowFile, TokenCounts, count_tokens

DORA_BITS = (2, 4, 8)
"""Quantised bases whose DoRA adapters stock mlx-lm can load: it takes 32 to be a multiple of the bits."""
CHATS = (DataFormat.CHAT, DataFormat.SHAREGPT)
CHECKPOINTS = 3
"""Times what is trained that checkpoints, with their optimizer's state, take on a host's disk: a guess."""
MOST_COUNTED_BYTES = 256 << 20
"""Data sets that are larger are not read a second time to count tokens."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that can be run from its record alone."""

    spec: TrainJob | CountJob
    demands: dict[str, Demand] | None
    """Peak memory by `Backend`. Absent when nothing about the base can be known here: a hub id, and
    no hub."""
    family: str = ""
    """The base's `model_type`, where it is known."""
    weight_bytes: int = 0
    """Of the base, where it is known."""
    flops: float | None = None
    """Of the whole training, where the base is known."""
    disk_bytes: int = 0
    """Of its data set and checkpoints, as far as they are known."""

    def request(self, store_id: str) -> Request:
        """What placement must know of it. Estimates are made coarse, so that jobs of nearly one size
        are alike; sizes that a person named stay as they are.
        """
        spec = self.spec
        if isinstance(spec, CountJob):
            return Request(demands=self.demands, store_id=store_id)
        is_named = self.demands is None or spec.limits.memory_bytes is not None
        return Request(
            demands=self.demands if is_named else coarse_demands(self.demands or {}),
            is_named=is_named,
            store_id=store_id,
            needs_remote_code=spec.model.trust_remote_code,
            family=self.family,
            method=spec.method.value,
            flops=None if self.flops is None else float(f"{self.flops:.1e}"),
            model=base_name(spec.model),
            weight_bytes=self.weight_bytes,
            disk_bytes=coarse_disk(self.disk_bytes),
        )


@dataclass(frozen=True, slots=True)
class Resolved:
    """A fine-tune with its defaults written out, and what is known of what it will run on."""

    spec: TrainJob
    base: BaseModel | None
    """Absent where nothing can be known here: a hub id, and no hub."""
    lengths: Lengths
    """Of the training rows, none of them shorter than it will be: for memory."""
    likely_lengths: Lengths
    """The same as they probably are: for time."""
    valid_rows: int
    data_bytes: int = 0
    """Of the data set's files."""
    opened: tuple[Source, Inspection] | None = None
    """The rows, and what was found in them; absent where they were looked at before."""


def check(job: TrainJob | CountJob) -> Submission:
    """The job with its defaults written out and its size estimated; nothing is stored.

    Raises:
        InvalidInput: the model or the data can never work; says which file, line or field.
        NotAllowed: the hub refuses the model.
    """
    if isinstance(job, CountJob):
        return Submission(job, _the_same(job.limits.memory_bytes or job.memory_bytes))
    return submission_of(resolve(job))


def submission_of(resolved: Resolved) -> Submission:
    """The job, its size estimated."""
    spec, base = resolved.spec, resolved.base
    if base is None:
        return Submission(spec, _estimate(resolved), disk_bytes=disk_bytes(resolved))
    work = flops(spec, base, resolved.likely_lengths, resolved.valid_rows)
    disk = disk_bytes(resolved)
    return Submission(spec, _estimate(resolved), base.model_type, base.weight_bytes, work, disk)


def disk_bytes(resolved: Resolved) -> int:
    """What the job puts on any host's disk: its data set and, where the base is known, checkpoints."""
    base = resolved.base
    learned = 0 if base is None else trained_bytes(base, resolved.spec)
    return resolved.data_bytes + CHECKPOINTS * learned


def resolve(job: TrainJob, store: Store | None = None, *, asks_hub: bool = True) -> Resolved:
    """The job with its defaults written out, the batch size `auto` among them; nothing is stored.

    A data set that the job names by digest is brought here from `store`. Without asking the hub nothing is
    known of a base that it has.

    Raises:
        InvalidInput: the model or the data can never work; says which file, line or field.
        NotAllowed: the hub refuses the model.
    """
    model, base = _locate(job.model, asks_hub=asks_hub)
    source = _open_data(job, store)
    found = inspect_source(source).require()
    data = source.located.model_copy(update={"format": found.format})
    rows = _measure(job, source, found)
    if base is not None:
        check_base(job, base, data)
    has_length = job.epochs is not None or job.steps is not None
    written_out = {
        "model": model,
        "data": data,
        "epochs": job.epochs if has_length else 1.0,
        "optimizer": job.optimizer.model_copy(update={"learning_rate": job.learning_rate}),
        "batch_size": job.batch_size,
    }
    if job.batch_size == "auto":
        written_out["batch_size"] = auto_batch_rows(rows.file_bytes, job.method, job.max_length)
    spec = job.model_copy(update=written_out)
    most, likely = rows.most(job.max_length), rows.likely(job.max_length)
    data_bytes = sum(sum(facts.sizes) for facts in found.splits.values())
    return Resolved(spec, base, most, likely, rows.valid_rows, data_bytes, (source, found))


def prepare(job: TrainJob | CountJob, store: Store, *, asks_hub: bool = True) -> Submission:
    """As `check`; and the model folder and the data set are in the store, named by digest."""
    if isinstance(job, CountJob):
        return check(job)
    return submission_of(prepare_resolved(job, store, asks_hub=asks_hub))


def prepare_resolved(job: TrainJob, store: Store, *, asks_hub: bool = True) -> Resolved:
    """As `resolve`; and the model folder and the data set are in the store, named by digest."""
    resolved = resolve(job, store, asks_hub=asks_hub)
    spec = resolved.spec
    stored = {"model": _store_model(spec.model, store), "data": _store_data(resolved, store)}
    return replace(resolved, spec=spec.model_copy(update=stored))


def base_name(model: ModelRef) -> str:
    """How hosts name a base that they have cached: its digest, or hub id and revision; the hub id alone
    means the newest.
    """
    return model.digest or (f"{model.source}@{model.revision}" if model.revision else model.source)


def held_commit(model: ModelRef, cached: Iterable[str]) -> str | None:
    """The commit at which hosts have the model, by the names of what they have; nothing where none has it,
    or they have several that may be meant.
    """
    wanted = f"{model.source}@{model.revision or ''}"
    commits = {name.rpartition("@")[2] for name in cached if name.startswith(wanted)}
    return commits.pop() if len(commits) == 1 else None


def _locate(model: ModelRef, *, asks_hub: bool) -> tuple[ModelRef, BaseModel | None]:
    """The model as any host will find it, and what is known of it."""
    folder = local_folder(model.source)
    if folder is not None:
        absolute = folder.absolute()
        return model.model_copy(update={"source": str(absolute)}), read_base_model(absolute)
    found = fetch_hub_config(model.source, model.revision) if asks_hub else None
    if found is None:
        return model, None
    return model.model_copy(update={"revision": found.commit}), found.base


def check_base(job: TrainJob, base: BaseModel, data: DataRef) -> None:
    """Refuse what the base's files already show to be impossible.

    Raises:
        InvalidInput: says which setting, and what would be right.
    """
    source = job.model.source
    if not base.has_tokenizer:
        raise InvalidInput(f"the model {source} has no tokenizer; add the tokenizer.json of its original")
    if data.format in CHATS and not base.has_chat_template:
        raise InvalidInput(
            f"the data are chats and the model {source} has no chat template; "
            "use a chat model, or rows of `prompt` and `completion`"
        )
    if job.adapter.layers is not None and job.adapter.layers > base.num_layers:
        raise InvalidInput(
            f"`adapter.layers` is {job.adapter.layers}; it must be at most {base.num_layers}, "
            f"the blocks of {source}"
        )
    _check_quantization(job, base)


def _check_quantization(job: TrainJob, base: BaseModel) -> None:
    """Refuse a method that does not fit a base that is quantised already."""
    found, asked = base.quantization, job.quantization
    if found is None:
        return
    quantised = f"the model {job.model.source} is quantised ({found.bits} bits)"
    if job.method is Method.FULL:
        raise InvalidInput(
            f"{quantised}; a full fine-tune needs the full-precision base, or adapt this one with "
            "`--method lora`"
        )
    if job.method is Method.DORA and found.bits not in DORA_BITS:
        raise InvalidInput(
            f"{quantised}, and mlx-lm loads dora adapters on a base of "
            f"{', '.join(map(str, DORA_BITS))} bits only; use lora, or another base"
        )
    if asked is not None and (asked.bits, asked.group_size) != (found.bits, found.group_size):
        raise InvalidInput(
            f"`quantization` is {asked.bits} bits in groups of {asked.group_size}, and {quantised} "
            f"in groups of {found.group_size} already; leave `quantization` out, or name the "
            "full-precision base"
        )


@dataclass(frozen=True, slots=True)
class _Rows:
    """How long a data set's rows are."""

    file_bytes: Sequence[int]
    """Of every line of the training file."""
    train_rows: int
    valid_rows: int
    longest_bytes: int
    """Also of those that validate."""
    counted: TokenCounts | None
    """The longest rows are those of all files; the sample is of the rows that train."""

    def most(self, max_length: int) -> Lengths:
        """None shorter than it will be."""
        if self.counted is not None:
            return self._known(self.counted.longest + self.counted.sample, max_length)
        sizes = [*self.file_bytes, self.longest_bytes]
        tokens = sorted(min(size + TEMPLATE_TOKENS, max_length) for size in sizes)
        return Lengths(tuple(tokens), self.train_rows)

    def likely(self, max_length: int) -> Lengths:
        """As they probably are."""
        if self.counted is not None:
            return self._known(self.counted.sample, max_length)
        tokens = (max(1, size // BYTES_PER_TOKEN) for size in self.file_bytes)
        return replace(of_rows(tokens, max_length, is_counted=False), rows=self.train_rows)

    def _known(self, tokens: Sequence[int], max_length: int) -> Lengths:
        return replace(of_rows(tokens, max_length), rows=self.train_rows)


def _open_data(job: TrainJob, store: Store | None) -> Source:
    """The data set, brought here if the store has it."""
    if job.data.digest is None:
        return open_source(job.data)
    if store is None:
        raise InvalidInput(f"`data` is {job.data.source}, which is in a store; no store is at hand")
    return open_source(job.data, store.cached_folder(job.data.digest))


def _measure(job: TrainJob, source: Source, found: Inspection) -> _Rows:
    """How long its rows are."""
    train, valid = found.facts(Split.TRAIN), found.facts(Split.VALID)
    train_rows, valid_rows = train.rows, valid.rows
    if not valid_rows:
        places, held_out = split(range(train.rows), job.data.valid_fraction, job.seed, train.keys)
        train_rows, valid_rows = len(places), len(held_out)
    longest = max([*train.sizes, *valid.sizes])
    return _Rows(train.sizes, train_rows, valid_rows, longest, _count(job, source, found))


def _count(job: TrainJob, source: Source, found: Inspection) -> TokenCounts | None:
    """How long rows are in tokens, where the tokenizer is at hand."""
    folder = local_folder(job.model.source)
    sizes = [size for split in (Split.TRAIN, Split.VALID) for size in found.facts(split).sizes]
    if folder is None or sum(sizes) > MOST_COUNTED_BYTES:
        return None
    with TemporaryDirectory(prefix="graft-data-") as converted:
        paths = training_files(source, found, Path(converted))
        counts = {
            split: count_tokens(_row_file(found, split, paths), folder, job.seed)
            for split in (Split.TRAIN, Split.VALID)
            if found.facts(split).rows
        }
    train, valid = counts[Split.TRAIN], counts.get(Split.VALID)
    if train is None or valid is None:
        return train
    return TokenCounts(train.longest + valid.longest + valid.sample, train.sample)


def _row_file(found: Inspection, split: Split, paths: Mapping[str, Path]) -> RowFile:
    return RowFile(row_reader(paths[FILES[split]]), found.facts(split).sizes, found.trained_format)


def _estimate(resolved: Resolved) -> dict[str, Demand] | None:
    spec, base = resolved.spec, resolved.base
    if spec.limits.memory_bytes is not None:
        return _the_same(spec.limits.memory_bytes)
    if base is None:
        return None
    return {one.value: _demand(Question(base, spec, resolved.lengths, one)) for one in Backend}


def _demand(question: Question) -> Demand:
    fastest = fastest_cut(question)
    assert fastest is not None  # without a budget there always is one
    least = min(smallest_cut(question).peak_bytes, fastest.peak_bytes)
    return Demand(minimum_bytes=least, preferred_bytes=fastest.peak_bytes)


def _the_same(size: int) -> dict[str, Demand]:
    return {one.value: Demand.of(size) for one in Backend}


def _store_model(model: ModelRef, store: Store) -> ModelRef:
    folder = local_folder(model.source)
    return model if folder is None else model.model_copy(update={"digest": store.put_folder(folder)})


def _store_data(resolved: Resolved, store: Store) -> DataRef:
    data = resolved.spec.data
    if data.digest is not None:
        return data
    assert resolved.opened is not None  # it comes from `resolve`
    return data.model_copy(update={"digest": put_data(store, *resolved.opened)})
