"""Weights & Biases: a run whose id is the job's; `WANDB_MODE=offline` on the host keeps it there."""

from __future__ import annotations

from collections.abc import Sequence

from graft_worker.tracking.figures import End, Outcome, Point, TrackedJob

INIT_SECONDS = 15.0
"""How long its server may take to answer; its own limit is 90."""
FINISH_SECONDS = 8.0
"""How long it may upload at the end; below `feed.CLOSE_SECONDS`, and holds for its exit hook too."""
TAG_LENGTH = 64
"""The longest tag it takes."""


class WandbExporter:
    """Logs by step: what a resumed attempt trains once more is ignored, as it is the same."""

    def __init__(self, job: TrackedJob) -> None:
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
        )
        wandb.setup(settings)  # silent before `init`, which else asks for a key on a terminal
        job.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=job.project,
            id=job.job,
            name=job.title,
            tags=sorted({f"{name}:{value}"[:TAG_LENGTH] for name, value in job.labels.items()}),
            config={**job.settings, **job.tags},
            resume="allow",
            dir=str(job.folder),
            settings=settings,
        )

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._run.log(dict(point.values), step=point.step)

    def finish(self, end: End) -> None:
        self._run.summary.update(dict(end.summary))
        has_failed = end.outcome in {Outcome.CANCELLED, Outcome.FAILED}
        self._run.finish(exit_code=int(has_failed))
