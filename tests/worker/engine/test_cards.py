"""The card of a real training run, in its adapter and in every checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from graft_scheduler.cards import Card, parse_card
from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import Checkpoint, Start
from graft_scheduler.store import open_store
from graft_worker.engine.training import train
from tests.worker.engine.tiny import RecordingLink

MakeJob = Callable[..., TrainJob]
MakeStart = Callable[..., Start]


def card_in(folder: str | Path | None) -> Card:
    assert folder is not None
    return parse_card((Path(folder) / "graft.json").read_bytes(), str(folder))


def test_an_adapter_and_its_checkpoints_say_what_they_are(
    make_job: MakeJob, make_start: MakeStart, base: Path, tmp_path: Path
) -> None:
    own = tmp_path / "my-base"
    shutil.copytree(base, own)
    (own / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004")
    job = make_job(model=str(own), evaluation={"every": 3}, checkpoint={"every": 3}, submitter="zoe", seed=5)
    link = RecordingLink()

    done = train(make_start(job), link)

    assert done.result is not None
    card = card_in(done.output_dir)
    assert (card.what, card.step, card.method, card.seed) == ("adapter", 6, "lora", 5)
    assert (card.base.name, card.base.licence, card.data.format) == ("my-base", "apache-2.0", "text")
    assert card.base.fingerprint
    files = {name: Path(job.data.source) / name for name in ("train.jsonl", "valid.jsonl")}
    assert card.data.digest == open_store((tmp_path / "store").as_uri()).put_files(files)
    assert card.figures.loss == done.result.final_loss
    assert card.figures.tokens_per_second == done.result.tokens_per_second
    assert card.versions.keys() == {"graft", "mlx", "mlx-lm", "python"}
    first = card_in(link.of(Checkpoint)[0].path)
    assert (first.what, first.step, first.figures.loss) == ("checkpoint", 3, link.of(Checkpoint)[0].loss)
    for folder in (done.output_dir, link.of(Checkpoint)[-1].path):
        for name in ("graft.json", "README.md"):
            text = (Path(str(folder)) / name).read_text()
            assert str(tmp_path) not in text
            assert "zoe" not in text


@pytest.mark.parametrize("every", [2, 6])
def test_a_checkpoint_tells_its_validation_loss_only_where_it_was_evaluated(
    make_job: MakeJob, make_start: MakeStart, every: int
) -> None:
    link = RecordingLink()

    train(make_start(make_job(evaluation={"every": every}, checkpoint={"every": 2})), link)

    assert [message.step for message in link.of(Checkpoint) if message.loss is None] == (
        [] if every == 2 else [2, 4]
    )
