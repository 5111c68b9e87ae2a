"""What is to be done about a runner's memory: a pure decision, from one sample to the next.

Memory that is short is answered by a warning, then by computing less at once, and only then, while
the machine itself is in need, by a stop at a checkpoint. Nothing is answered that lasts for less than
a few samples, and nothing twice while it goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum

from graft_scheduler.memory import format_bytes
from graft_worker.pressure import Level, Pressure

GIB = 1 << 30
PROCESS_BYTES = 1 * GIB
"""A runner's interpreter and libraries, which no estimate of a job counts."""
OVER_SHARE = 1.15
"""A job that takes more than this of what was reserved for it has to shrink: its cache is a tenth."""
BLAMED_SHARE = 0.05
"""A runner that holds less of the memory than this is not what makes it short, and is left alone."""
LOW_SHARES = (0.10, 0.05, 0.02)
"""Of the memory: when less is left, it is tight, short, or the machine is in need."""
SWAP_GROWTH_BYTES = (GIB // 4, 1 * GIB, 4 * GIB)
"""Since the runner began. More than the first counts only while memory is low: swap is emptied late."""
STALLED_PERCENT = (5.0, 15.0, 40.0)
LASTING_SAMPLES = 3
"""One sample a second: what does not last for so many in a row is not acted on."""
CALM_SAMPLES = 10
"""So many calm ones in a row, and the next trouble is a new one."""
SHRINK_PAUSE_SECONDS = 20.0
"""Between two requests: a step has to end before the first is followed."""
PATIENCE_SECONDS = 5.0
"""In need: from the request to shrink to the stop."""
FUTILE_SHRINKS = 4
"""After so many, asking again is in vain: that is a sixteenth of the first cut."""


class Grade(IntEnum):
    """How short memory is."""

    CALM = 0
    TIGHT = 1
    SHORT = 2
    NEED = 3


class Action(IntEnum):
    """What to do, from the mildest on."""

    OK = 0
    WARN = 1
    SHRINK = 2
    STOP = 3


@dataclass(frozen=True, slots=True)
class Budget:
    """What a job was given."""

    job_bytes: int | None
    """Reserved for it; nothing when it has the whole host."""
    is_shared: bool = True
    """The device computes in the machine's own memory."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A runner and its machine at one time."""

    seconds: float
    """Since the runner was started."""
    footprint_bytes: int
    pressure: Pressure
    device_bytes: int | None = None
    """What MLX holds, cache included, as it last said."""


@dataclass(frozen=True, slots=True)
class History:
    """What is remembered from sample to sample."""

    first_swap_bytes: int | None = None
    lasting: tuple[int, int, int] = (0, 0, 0)
    """For so many samples in a row it was at least tight, short, and need."""
    calm: int = 0
    answered: Grade = Grade.CALM
    """The worst grade that was answered by a warning since it was calm."""
    shrinks: int = 0
    shrunk_at: float = field(default=float("-inf"))
    is_stopped: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do now, why, and what to remember."""

    action: Action
    reason: str
    history: History


def judge(sample: Sample, history: History, budget: Budget) -> Verdict:
    """What to do about this sample, after those that `history` remembers."""
    if history.first_swap_bytes is None:
        history = replace(history, first_swap_bytes=sample.pressure.swap_used_bytes)
    grade, reason = _worst(sample, history, budget)
    history = _remember(history, grade)
    lasting = max(
        (one for one in Grade if one and history.lasting[one - 1] >= LASTING_SAMPLES), default=Grade.CALM
    )
    action = _choose(lasting, sample, history)
    match action:
        case Action.STOP:
            history = replace(history, is_stopped=True)
        case Action.SHRINK:
            history = replace(
                history,
                shrinks=history.shrinks + 1,
                shrunk_at=sample.seconds,
                answered=max(lasting, history.answered),
            )
        case Action.WARN:
            history = replace(history, answered=lasting)
        case Action.OK:
            pass
    return Verdict(action, reason if action else "", history)


def is_short(history: History) -> bool:
    """Whether memory was short at the last sample, be it for a moment."""
    return history.lasting[Grade.SHORT - 1] > 0


def is_tight(pressure: Pressure) -> bool:
    """Whether there is little memory left, or the system says that it is short."""
    group = pressure.cgroup
    grades = [_of_system(pressure), _graded_low(pressure.available_bytes, pressure.total_bytes)]
    if group is not None:
        grades.append(_graded_low(group.left_bytes, group.limit_bytes))
    return max(grades) >= Grade.TIGHT


def _choose(lasting: Grade, sample: Sample, history: History) -> Action:
    if lasting is Grade.CALM or history.is_stopped:
        return Action.OK
    since = sample.seconds - history.shrunk_at
    if lasting >= Grade.SHORT and _is_to_blame(sample):
        if history.shrinks < FUTILE_SHRINKS and since >= SHRINK_PAUSE_SECONDS:
            return Action.SHRINK
        if lasting is Grade.NEED and since >= PATIENCE_SECONDS:
            return Action.STOP
    return Action.WARN if lasting > history.answered else Action.OK


def _remember(history: History, grade: Grade) -> History:
    tight, short, need = (count + 1 if grade > place else 0 for place, count in enumerate(history.lasting))
    calm = 0 if grade else history.calm + 1
    history = replace(history, lasting=(tight, short, need), calm=calm)
    return replace(history, answered=Grade.CALM) if calm >= CALM_SAMPLES else history


def _worst(sample: Sample, history: History, budget: Budget) -> tuple[Grade, str]:
    signs = [(Grade.CALM, ""), *_signs(sample, history, budget)]
    return max(signs, key=lambda sign: sign[0])


def _signs(sample: Sample, history: History, budget: Budget) -> Iterator[tuple[Grade, str]]:
    pressure = sample.pressure
    holds = f"the runner holds {format_bytes(sample.footprint_bytes)}"
    yield _of_system(pressure), f"the system says that its memory is short; {holds}"
    left = _graded_low(pressure.available_bytes, pressure.total_bytes)
    yield left, f"the machine has {format_bytes(pressure.available_bytes)} left; {holds}"
    if (group := pressure.cgroup) is not None:
        text = f"{format_bytes(group.left_bytes)} of the cgroup's {format_bytes(group.limit_bytes)} are left"
        yield _graded_low(group.left_bytes, group.limit_bytes), f"{text}; {holds}"
    grown = max(0, pressure.swap_used_bytes - (history.first_swap_bytes or 0))
    worst = Grade.SHORT if pressure.level > Level.NORMAL else max(left, Grade.TIGHT)
    swapping = min(_graded(grown, SWAP_GROWTH_BYTES), worst)
    yield swapping, f"{format_bytes(grown)} more are swapped out than when the runner began; {holds}"
    stalled = _graded(pressure.stalled_percent, STALLED_PERCENT)
    yield (
        stalled,
        f"everything waited for memory in {pressure.stalled_percent:.0f}% of the last 10 s; {holds}",
    )
    yield _over(sample, budget)


def _of_system(pressure: Pressure) -> Grade:
    """The system of a Mac warns long before it is in need."""
    match pressure.level:
        case Level.NORMAL:
            return Grade.CALM
        case Level.WARNING:
            return Grade.TIGHT
        case Level.CRITICAL:
            return Grade.NEED


def _over(sample: Sample, budget: Budget) -> tuple[Grade, str]:
    """More than was reserved breaks what others were promised; the machine may bear it."""
    held = sample.footprint_bytes - PROCESS_BYTES if budget.is_shared else sample.device_bytes
    if budget.job_bytes is None or held is None or held <= budget.job_bytes:
        return Grade.CALM, ""
    grade = Grade.SHORT if held > budget.job_bytes * OVER_SHARE else Grade.TIGHT
    return (
        grade,
        f"the job takes {format_bytes(held)} of the {format_bytes(budget.job_bytes)} that it was given",
    )


def _is_to_blame(sample: Sample) -> bool:
    group = sample.pressure.cgroup
    of = min(sample.pressure.total_bytes, group.limit_bytes) if group else sample.pressure.total_bytes
    held = max(sample.footprint_bytes, sample.device_bytes or 0)
    return held >= of * BLAMED_SHARE


def _graded(value: float, bounds: tuple[float, float, float]) -> Grade:
    return Grade(sum(value >= bound for bound in bounds))


def _graded_low(left: int, of: int) -> Grade:
    return Grade(sum(left < of * share for share in LOW_SHARES))
