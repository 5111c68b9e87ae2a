"""How studies and their trials read on a screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graft_cli.amounts import duration, size
from graft_cli.output import out

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from graft_scheduler.studies.handle import Studies
    from graft_scheduler.studies.record import StudyRecord

LIST_HEADER = ("NAME", "STATE", "TRIALS", "BEST", "SETTINGS")
TRIAL_HEADER = ("TRIAL", "STATE", "LOSS", "SETTINGS", "HOST", "TIME", "MEMORY", "WHY")
STATES = {"complete": "completed", "fail": "failed"}
"""Optuna's words, and ours."""
RUNS, WAITS, QUEUED = "running", "at a rung", "queued"


def list_row(studies: Studies, record: StudyRecord) -> tuple[str, ...]:
    """One study among others."""
    trials = studies.trials(record)
    told = sum(one.state.is_finished() for one in trials)
    best = studies.best(record)
    return (
        record.name,
        record.state.value,
        f"{told}/{record.trials}",
        "" if best is None else value_text(best),
        "" if best is None else settings_text(best, record),
    )


def print_study(studies: Studies, record: StudyRecord) -> None:
    """What a study is, how far it is, and what came of it."""
    trials, spec = studies.trials(record), record.spec
    best = studies.best(record)
    out.pairs(
        f"study {record.name}",
        [
            ("state", record.state.value),
            ("why", record.why),
            ("trials", count_text(trials, record)),
            (
                "searched",
                ", ".join(_parameter_text(name, one) for name, one in spec.space.parameters.items()),
            ),
            ("sampler", f"{spec.sampler.value}, seed {spec.seed}"),
            ("pruner", spec.pruner.value),
            ("objective", ", ".join(spec.objectives)),
            ("limits", _limits_text(record)),
            ("base", f"{spec.base.model.source}, {spec.base.method.value}"),
            ("data", spec.base.data.source),
            ("submitter", spec.submitter),
        ],
    )
    if best is not None:
        out.pairs(
            f"best so far: trial {best.number}",
            [
                (", ".join(spec.objectives), value_text(best)),
                ("settings", settings_text(best, record)),
                ("job", str(best.user_attrs.get("job", ""))),
                ("adapter's job", record.final_job or ""),
            ],
        )


def count_text(trials: Sequence[FrozenTrial], record: StudyRecord) -> str:
    """`9 of 24 told: 2 completed, 7 pruned; 3 on their way`."""
    words = [trial_state(one) for one in trials]
    told = [word for one, word in zip(trials, words, strict=True) if one.state.is_finished()]
    parts = ", ".join(f"{told.count(word)} {word}" for word in dict.fromkeys(told))
    on_their_way = len(trials) - len(told)
    text = f"{len(told)} of {record.trials} told" + (f": {parts}" if parts else "")
    return text + (f"; {on_their_way} on their way" if on_their_way else "")


def trial_row(trial: FrozenTrial, record: StudyRecord) -> tuple[str, ...]:
    """One trial among others."""
    facts = trial.user_attrs
    memory, seconds = facts.get("peak_memory_bytes"), facts.get("seconds")
    return (
        str(trial.number),
        trial_state(trial),
        value_text(trial),
        settings_text(trial, record),
        str(facts.get("host", "")),
        "" if seconds is None else duration(float(seconds)),
        "" if memory is None else size(int(memory)),
        why_text(trial),
    )


def why_text(trial: FrozenTrial) -> str:
    """Why it ended as it did, where there is more to say."""
    if (twin := trial.user_attrs.get("duplicate_of")) is not None:
        return f"same settings as trial {twin}"
    return str(trial.user_attrs.get("why", ""))


def trial_state(trial: FrozenTrial) -> str:
    """Completed, pruned, infeasible, failed or running."""
    if any(excess > 0 for excess in trial.constraints.values()):
        return "infeasible"
    name = trial.state.name.lower()
    return STATES.get(name, name)


def value_text(trial: FrozenTrial) -> str:
    """Its objectives, or its last loss while there are none."""
    if trial.values:
        return ", ".join(f"{value:.4g}" for value in trial.values)
    if trial.last_step is None:
        return ""
    return f"{trial.intermediate_values[trial.last_step]:.4g} at step {trial.last_step}"


def settings_text(trial: FrozenTrial, record: StudyRecord) -> str:
    """`learning_rate=0.0003 rank=16`, by the last parts of their names."""
    from graft_scheduler.studies.proposals import values_of

    values = values_of(trial.params, record.spec.space)
    return " ".join(f"{short_name(name)}={_value_text(value)}" for name, value in values.items())


def short_name(name: str) -> str:
    return name.rpartition(".")[2]


def trial_json(trial: FrozenTrial, record: StudyRecord) -> dict[str, Any]:
    """A trial as plain values."""
    from graft_scheduler.studies.proposals import values_of

    return {
        "number": trial.number,
        "state": trial_state(trial),
        "values": trial.values,
        "settings": values_of(trial.params, record.spec.space),
        "losses": {str(step): loss for step, loss in sorted(trial.intermediate_values.items())},
        "constraints": trial.constraints,
        "facts": trial.user_attrs,
    }


def _value_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple | list):
        return "+".join(short_name(str(one)) for one in value)
    return "default" if value is None else str(value)


def _parameter_text(name: str, parameter: Any) -> str:
    if hasattr(parameter, "values"):
        return f"{short_name(name)}={','.join(_value_text(one) for one in parameter.values)}"
    step = "" if parameter.step is None else f"/{parameter.step:g}"
    return f"{short_name(name)}={'log:' if parameter.log else ''}{parameter.low:g}..{parameter.high:g}{step}"


def _limits_text(record: StudyRecord) -> str:
    limits, parts = record.spec.constraints, []
    if limits.peak_memory_bytes is not None:
        parts.append(f"{size(limits.peak_memory_bytes)} of memory")
    if limits.seconds is not None:
        parts.append(f"{duration(limits.seconds)} of training")
    return " and ".join(parts)
