"""`graft show --memory`, the timeline as a table and as a picture, and what a profile trains on."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from graft_cli import samples
from graft_cli.memory_plot import draw
from graft_cli.memory_report import words_of_cut
from graft_cli.memory_timeline import MOST_LINES, Sampler, thinned
from graft_cli.profile_data import write_longest, write_made_up
from graft_scheduler import keys, messages
from graft_scheduler.client import Client
from graft_scheduler.data.reading import read_rows
from graft_scheduler.errors import InvalidInput
from graft_scheduler.jobs import CountJob, DataRef
from graft_scheduler.messages import TrainResult
from graft_scheduler.records import MemorySample
from graft_scheduler.states import JobId, Phase, Token
from tests.cli.conftest import Graft

MIB = 1 << 20
PNG_BEGINNING = b"\x89PNG\r\n\x1a\n"
SAMPLES = tuple(
    MemorySample(
        seconds=index / 10,
        phase=phase,
        active_bytes=None if phase is Phase.PREPARING else 40 * MIB,
        cache_bytes=None if phase is Phase.PREPARING else 20 * MIB,
        footprint_bytes=(60 + index) * MIB,
    )
    for index, phase in enumerate([Phase.PREPARING] * 20 + [Phase.TRAINING] * 40 + [Phase.SAVING])
)


@pytest.fixture
def job(service: Graft, redis: Redis) -> str:
    """A job whose record tells of its memory."""
    del service
    with Client() as client:
        found = client.submit(CountJob()).id
    cut = {"micro_batch_tokens": 2048, "gradient_checkpointing": False, "rows": 8, "width": 256}
    result = TrainResult(
        steps=3, peak_memory_bytes=90 * MIB, predicted_peak_bytes=100 * MIB, facts={"cut": cut}
    )
    plain = [one.model_dump(mode="json", exclude_none=True) for one in SAMPLES]
    redis.hset(keys.job(found), mapping={"memory": json.dumps(plain), "result": result.model_dump_json()})
    return found


def test_memory_is_told_as_predicted_measured_and_over_time(service: Graft, job: str) -> None:
    shown = service("show", job, "--memory").stdout

    assert "predicted  100 MB" in shown
    assert "measured   90 MB (90% of that)" in shown
    assert "at most 2,048 tokens at once, 8 rows of 256 in the largest micro-batch" in shown
    assert "SECONDS  PHASE" in shown
    assert "█▓░" in "".join(dict.fromkeys(shown.splitlines()[-1]))


def test_json_has_every_sample(service: Graft, job: str) -> None:
    facts = service("show", job, "--memory", "--json").json

    assert facts["predicted_peak_bytes"] == 100 * MIB
    assert facts["cut"]["rows"] == 8
    assert len(facts["timeline"]) == len(SAMPLES)
    assert facts["timeline"][-1]["phase"] == "saving"


def test_a_job_without_samples_says_so(service: Graft) -> None:
    with Client() as client:
        found = client.submit(CountJob()).id

    run = service("show", found, "--memory")

    assert run.code == 0
    assert "when an attempt ends" in run.stderr


def test_a_picture_of_anything_else_is_refused(service: Graft, job: str) -> None:
    run = service("show", job, "--png", "x.png")

    assert run.code == 2
    assert "`--png` goes with `--memory`" in run.stderr


def test_the_picture_is_a_png(service: Graft, job: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "memory.png"

    assert service("show", job, "--memory", "--png", str(file)).code == 0

    assert file.read_bytes().startswith(PNG_BEGINNING)


def test_a_picture_without_matplotlib_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = builtins.__import__

    def without_matplotlib(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)

    with pytest.raises(InvalidInput, match=r"pip install '\.\[plot\]'"):
        draw(SAMPLES, tmp_path / "memory.png", "title", None, None)


def test_a_picture_of_nothing_or_into_nowhere_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(InvalidInput, match="nothing to draw"):
        draw((), tmp_path / "memory.png", "title", None, None)
    with pytest.raises(InvalidInput, match="cannot be written"):
        draw(SAMPLES, tmp_path / "nowhere" / "memory.png", "title", None, None)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=20))
def test_a_thinned_timeline_keeps_its_order_and_its_highest(counts: list[int]) -> None:
    phases = [list(Phase)[turn % len(Phase)] for turn, count in enumerate(counts) for _ in range(count)]
    whole = [
        MemorySample(seconds=float(at), phase=phase, footprint_bytes=at * 7919 % 1000)
        for at, phase in enumerate(phases)
    ]

    kept = thinned(whole, MOST_LINES)

    assert len(kept) <= MOST_LINES
    assert [one.seconds for one in kept] == sorted(one.seconds for one in kept)
    assert max(one.footprint_bytes for one in kept) == max(one.footprint_bytes for one in whole)


def test_a_short_phase_is_not_thinned_away() -> None:
    kept = thinned(SAMPLES, MOST_LINES)

    assert len(kept) <= MOST_LINES
    assert {one.phase for one in kept} == {Phase.PREPARING, Phase.TRAINING, Phase.SAVING}


def test_a_sampler_sees_a_process_and_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import threading

    job, token = JobId("local"), Token(1)
    seen = threading.Event()
    monkeypatch.setattr("graft_cli.memory_timeline.SAMPLE_SECONDS", 0.001)

    class Watched(Sampler):
        def _sample(self, footprint: int) -> MemorySample:
            if self._phase is Phase.TRAINING and self._active:
                seen.set()
            return super()._sample(footprint)

    with Watched() as sampler:
        sampler.take(messages.Hello(pid=os.getpid(), job=job, token=token))
        sampler.take(messages.PhaseChanged(phase=Phase.TRAINING, job=job, token=token))
        sampler.take(messages.Progress(step=1, steps=2, memory_bytes=5, cache_bytes=6, job=job, token=token))
        assert seen.wait(30)

    last = sampler.samples[-1]
    assert (last.phase, last.active_bytes, last.cache_bytes) == (Phase.TRAINING, 5, 6)
    assert last.footprint_bytes > MIB


def test_a_cut_reads_as_words() -> None:
    assert words_of_cut({"gradient_checkpointing": True}) == "gradient checkpointing"
    assert words_of_cut({"micro_batch_tokens": 4096}) == "at most 4,096 tokens at once"


def test_a_profile_trains_on_the_longest_rows(tmp_path: Path) -> None:
    write_longest(DataRef(source=str(samples.data_folder())), tmp_path, rows=5)

    kept = read_rows(tmp_path / "train.jsonl")
    every = read_rows(samples.data_folder() / "train.jsonl")
    assert kept == read_rows(tmp_path / "valid.jsonl")
    assert len(kept) == 5
    assert min(row.size for row in kept) >= sorted(row.size for row in every)[-5]


def test_a_small_data_set_is_repeated_for_a_profile(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"text": "one"}\n{"text": "two two"}\n')

    write_longest(DataRef(source=str(source)), tmp_path, rows=5)

    assert len(read_rows(tmp_path / "train.jsonl")) == 5


def test_made_up_rows_are_as_long_as_they_may_be(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer

    write_made_up(tmp_path, rows=3, tokens=500)

    tokenizer = Tokenizer.from_file(str(samples.base_model() / "tokenizer.json"))
    rows = read_rows(tmp_path / "train.jsonl")
    assert min(len(tokenizer.encode(str(row.fields["text"])).ids) for row in rows) >= 500


def test_a_profile_names_what_is_missing_before_anything_starts(
    graft: Graft, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else real(name, *rest)
    )
    run = graft("profile", str(samples.base_model()), "--png", "x.png")

    assert run.code == 2
    assert "needs matplotlib" in run.stderr


@pytest.mark.processes
def test_a_profile_runs_a_few_real_steps_and_compares(graft: Graft) -> None:
    pytest.importorskip("mlx.core")

    run = graft("profile", str(samples.base_model()), "--max-length", "64", "--batch-size", "2", "--json")

    assert run.code == 0
    facts = run.json
    assert 0.5 < facts["measured_share"] < 1.2
    assert facts["result"]["steps"] == 3
    assert {one["phase"] for one in facts["timeline"]} >= {"preparing", "training"}
    assert facts["footprint_peak_bytes"] > facts["measured_peak_bytes"]
