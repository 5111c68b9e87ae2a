"""The pictures of a study that apply to it, or in words why one does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optuna.study import Study

from graft_scheduler.studies.canvas import drawing
from graft_scheduler.studies.importance import importances
from graft_scheduler.studies.outcomes import StudyResults
from graft_scheduler.studies.setting_pictures import draw_importance, draw_parallel, draw_slices
from graft_scheduler.studies.trial_pictures import ENDED, draw_curves, draw_front, draw_history

IMPORTANCE = "Importance of settings"
NO_VALUE = "no trial has come to a value yet"
NO_END = "no trial has ended yet"
NO_CURVE = "no trial has reported a value on its way"
NO_SETTING = "no trial that came to a value has a searched setting"


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure of matplotlib, to be saved within `drawing()`."""

    name: str
    """Of its file, without the ending."""
    title: str
    says: str
    """How to read it, or why it is not there."""
    figure: Any | None


def draw_pictures(study: Study, results: StudyResults) -> list[Picture]:
    """Every picture for a study of this many objectives, some of them words.

    Raises:
        InvalidInput: matplotlib is missing.
    """
    with drawing():
        of_settings = [_importance(study, results), _parallel(results), _slices(results)]
        if len(results.goals) > 1:
            return [_front(results), *of_settings]
        return [_history(results), _curves(results), *of_settings]


def _front(results: StudyResults) -> Picture:
    says = (
        "Each point is a trial. Of those on the front, no other trial is better in one objective without "
        "being worse in another."
    )
    return _picture(
        "pareto", "Pareto front", says, _has_values(results), NO_VALUE, lambda: draw_front(results)
    )


def _history(results: StudyResults) -> Picture:
    says = (
        "Each point is a trial; the line is the best so far. A pruned trial stands at the last value that it "
        "reported."
    )
    return _picture(
        "history", "History", says, bool(results.of(*ENDED)), NO_END, lambda: draw_history(results)
    )


def _curves(results: StudyResults) -> Picture:
    says = "What each trial reported while it trained; pruned trials are pale."
    there = any(trial.reported for trial in results.trials)
    return _picture("curves", "Learning curves", says, there, NO_CURVE, lambda: draw_curves(results))


def _importance(study: Study, results: StudyResults) -> Picture:
    found = importances(study)
    if isinstance(found, str):
        return Picture("importance", IMPORTANCE, found, None)
    basis = (
        f"of {found.trials} trials"
        if found.step is None
        else (f"of {found.trials} trials by what they reported at step {found.step}, as most were pruned")
    )
    says = (
        f"How much each setting decided whether a trial was among the best (PED-ANOVA), {basis}. "
        "From a few dozen trials it is a hint, no proof."
    )
    shares = found.shares
    return _picture(
        "importance", IMPORTANCE, says, bool(shares), NO_SETTING, lambda: draw_importance(results, shares)
    )


def _parallel(results: StudyResults) -> Picture:
    says = "Each line is a trial, through its settings to what it came to."
    there = _has_values(results) and bool(results.settings)
    return _picture(
        "parallel", "Settings together", says, there, _without(results), lambda: draw_parallel(results)
    )


def _slices(results: StudyResults) -> Picture:
    says = "Each setting by itself: where the trials were, and what they came to."
    there = _has_values(results) and bool(results.settings)
    return _picture(
        "slices", "Settings one by one", says, there, _without(results), lambda: draw_slices(results)
    )


def _picture(name: str, title: str, says: str, there: bool, reason: str, draw: Callable[[], Any]) -> Picture:
    return Picture(name, title, says, draw()) if there else Picture(name, title, reason, None)


def _has_values(results: StudyResults) -> bool:
    return any(trial.is_finite for trial in results.trials)


def _without(results: StudyResults) -> str:
    return NO_SETTING if _has_values(results) else NO_VALUE
