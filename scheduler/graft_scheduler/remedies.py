"""What would make a job fit that does not: the changes that do least harm to its result, each one tried
on the estimate before it is named.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import reduce
from typing import Any

from graft_scheduler.hyperparameters import LossKernel, Method, OptimizerConfig, OptimizerName
from graft_scheduler.jobs import TrainJob
from graft_scheduler.lengths import Lengths
from graft_scheduler.planning import Question, smallest_cut

LENGTH_STEP = 64
"""`max_length` is suggested in multiples of this."""
FEW_ROWS = 0.01
"""Cutting no larger share of the rows changes little."""


class Harm(IntEnum):
    """What a change does to the result."""

    NONE = 0
    """The same result, up to rounding."""
    LITTLE = 1
    SOME = 2


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change that makes the job fit."""

    words: str
    flags: tuple[str, ...]
    """What to type beside the rest."""
    harm: Harm
    peak_bytes: int
    """Of the changed job with its smallest cut: at most the budget."""
    lost: float = 0.0
    """The share of rows that are probably longer than a new `max_length`, or of blocks no longer trained."""


@dataclass(frozen=True, slots=True)
class _Change:
    words: str
    flags: tuple[str, ...]
    harm: Harm
    update: Mapping[str, Any]
    """Fields of the job with their new values."""
    lost: float = 0.0

    def after(self, other: _Change) -> _Change:
        """Both, where this one was made for the job that the other leaves."""
        return _Change(
            ", and ".join(words for words in (other.words, self.words) if words),
            other.flags + self.flags,
            max(self.harm, other.harm),
            {**other.update, **self.update},
            max(self.lost, other.lost),
        )


NO_CHANGE = _Change("", (), Harm.NONE, {})


def remedies(question: Question, likely: Lengths, budget_bytes: int) -> list[Remedy]:
    """Changes with each of which the job fits into the budget, the least harmful first.

    A free one where one is enough; else all of them, or one that changes what is learned, alone or beside
    them. Empty where the job fits, or nothing helps. `likely` are the lengths that rows probably have.
    """
    fitting = _Fitting(question, likely, budget_bytes)
    if fitting.peak(question.job) <= budget_bytes:
        return []
    free = list(_free_changes(question.job))
    together = reduce(lambda earlier, one: one.after(earlier), free, NO_CHANGE)
    attempts: tuple[Callable[[], list[_Change]], ...] = (
        lambda: free,
        lambda: [together, *fitting.costly(NO_CHANGE), *(fitting.costly(together) if free else ())],
        lambda: fitting.combined(together),
    )
    for changes in attempts:
        if found := fitting.tried(changes()):
            return sorted(_needed(found), key=lambda one: (one.harm, one.lost, len(one.flags)))
    return []


def _needed(found: Sequence[Remedy]) -> list[Remedy]:
    """Without those that do no better than what takes fewer flags of the same."""
    return [
        one
        for one in found
        if not any(
            set(other.flags) < set(one.flags) and (other.harm, other.lost) <= (one.harm, one.lost)
            for other in found
        )
    ]


def _free_changes(job: TrainJob) -> Iterator[_Change]:
    """Those that only cost time."""
    if job.gradient_checkpointing is False:
        words = "let each host use gradient checkpointing where it has to"
        flags = ("--set gradient_checkpointing=null",)
        yield _Change(words, flags, Harm.NONE, {"gradient_checkpointing": None})
    if job.micro_batch_tokens is not None:
        words = f"let each host choose `micro_batch_tokens`, which is {job.micro_batch_tokens}"
        yield _Change(words, ("--set micro_batch_tokens=null",), Harm.NONE, {"micro_batch_tokens": None})
    if job.compute.loss is LossKernel.PLAIN:
        compute = job.compute.model_copy(update={"loss": LossKernel.CHUNKED})
        flags = ("--set compute.loss=chunked",)
        yield _Change("compute the loss in chunks", flags, Harm.NONE, {"compute": compute})


@dataclass(frozen=True, slots=True)
class _Fitting:
    """Makes changes, and tries them on the estimate."""

    question: Question
    likely: Lengths
    budget_bytes: int
    known: dict[str, int] = field(default_factory=dict)
    """Peaks by job, as JSON: an estimate takes a while."""

    def peak(self, job: TrainJob) -> int:
        name = job.model_dump_json()
        if name not in self.known:
            lengths = self.question.lengths.cut(job.max_length)
            asked = replace(self.question, job=job, lengths=lengths)
            self.known[name] = smallest_cut(asked).peak_bytes
        return self.known[name]

    def tried(self, changes: Sequence[_Change]) -> list[Remedy]:
        """Those that are remedies."""
        peaks = [(one, self.peak(self._changed(one))) for one in changes]
        return [
            Remedy(one.words, one.flags, one.harm, peak, one.lost)
            for one, peak in peaks
            if peak <= self.budget_bytes
        ]

    def costly(self, start: _Change) -> list[_Change]:
        """Changes to what is learned, beside `start`."""
        kinds = (self._adafactor, self._qlora, self._shorter, self._fewer_layers)
        changes = [kind(self._changed(start)) for kind in kinds]
        return [one.after(start) for one in changes if one is not None]

    def combined(self, start: _Change) -> list[_Change]:
        """The last resort: a quantised base, and shorter rows or fewer layers too."""
        quantised = self._qlora(self._changed(start))
        if quantised is None:
            return []
        first = quantised.after(start)
        changes = [kind(self._changed(first)) for kind in (self._shorter, self._fewer_layers)]
        return [one.after(first) for one in changes if one is not None]

    def _changed(self, change: _Change) -> TrainJob:
        return self.question.job.model_copy(update=dict(change.update))

    def _adafactor(self, job: TrainJob) -> _Change | None:
        old = job.optimizer
        if job.method is not Method.FULL or old.name is OptimizerName.ADAFACTOR:
            return None
        if old.betas or old.eps or old.momentum:  # of which adafactor has none: it would be refused
            return None
        kept = {"learning_rate", "weight_decay", "max_grad_norm", "max_skipped_steps"}
        new = OptimizerConfig(name=OptimizerName.ADAFACTOR, **old.model_dump(include=kept))
        return _Change(
            f"train with adafactor, which keeps less than {old.name.value}",
            ("--set optimizer.name=adafactor",),
            Harm.LITTLE,
            {"optimizer": new},
        )

    def _qlora(self, job: TrainJob) -> _Change | None:
        if self.question.model.quantization is not None or job.method is Method.QLORA:
            return None
        return _Change(
            f"adapt a quantised base (qlora) in place of {job.method.value}",
            ("--method qlora",),
            Harm.SOME if job.method is Method.FULL else Harm.LITTLE,
            {"method": Method.QLORA},
        )

    def _shorter(self, job: TrainJob) -> _Change | None:
        """The longest rows that fit."""

        def cut(length: int) -> _Change:
            share = self.likely.share_above(length)
            return _Change(
                f"cut rows to {length} tokens: about {share:.1%} of them are longer",
                (f"--max-length {length}",),
                Harm.LITTLE if share <= FEW_ROWS else Harm.SOME,
                {"max_length": length},
                share,
            )

        longest = min(self.question.lengths.longest, job.max_length)
        return self._largest(job, range(LENGTH_STEP, longest, LENGTH_STEP), cut)

    def _fewer_layers(self, job: TrainJob) -> _Change | None:
        """The most blocks that fit."""
        blocks = self.question.model.num_layers
        trained = min(job.adapter.layers or blocks, blocks)

        def cut(layers: int) -> _Change:
            blocks = "block" if layers == 1 else f"{layers} blocks"
            adapter = job.adapter.model_copy(update={"layers": layers})
            words, flags = f"train only the last {blocks}", (f"--layers {layers}",)
            return _Change(words, flags, Harm.SOME, {"adapter": adapter}, 1 - layers / trained)

        return self._largest(job, range(1, trained), cut)

    def _largest(
        self, job: TrainJob, values: Sequence[int], change: Callable[[int], _Change]
    ) -> _Change | None:
        """By bisection, the lowest value first: where that does not fit, none does."""

        def peak(value: int) -> int:
            return self.peak(job.model_copy(update=dict(change(value).update)))

        if not values or peak(values[0]) > self.budget_bytes:
            return None
        return change(values[bisect_right(values, self.budget_bytes, lo=1, key=peak) - 1])
