"""What a record keeps of a job's checkpoints, names for them, and finding them again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.checkpoints import KeptCheckpoint, parse_which, pick, surviving
from graft_scheduler.client import Client
from graft_scheduler.demand import Request
from graft_scheduler.errors import Conflict, InvalidInput, NotFound
from graft_scheduler.jobs import CountJob
from graft_scheduler.records import AttemptLog, Hold
from graft_scheduler.settings import load_settings
from graft_scheduler.states import Digest, JobId, JobState, Token
from graft_scheduler.store import Store
from graft_scheduler.tags import Tag, check_name
from graft_scheduler.transitions import Ending, Report, Transitions
from tests.scheduler.test_transitions import HOST, JOB, NONCE, event_names, record, run, submit
from tests.services import RedisServer


def checkpoint(step: int, loss: float | None = None) -> KeptCheckpoint:
    return KeptCheckpoint(step=step, digest=Digest(f"sha256:{step:064}"), loss=loss, bytes=step)


def tag(name: str, one: KeptCheckpoint, job: JobId = JOB) -> Tag:
    return Tag(name=name, what="checkpoint", digest=one.digest, job=job, by="ada", at=0)


LOSSES = st.lists(st.none() | st.sampled_from([0.25, 0.5, 1.0]), min_size=1, max_size=8)


@given(losses=LOSSES, named=st.sets(st.integers(1, 8)), together=st.booleans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_best_the_last_and_the_named_stay_in_the_record(
    redis: Redis, transitions: Transitions, losses: list[float | None], named: set[int], together: bool
) -> None:
    redis.flushall()
    submit(transitions)
    held = run(transitions)
    told = [checkpoint(step, loss) for step, loss in enumerate(losses, 1)]
    expected: list[KeptCheckpoint] = []
    if together:
        transitions.report(held, Report(checkpoints=told))
        expected = surviving(told)
    else:
        for one in told:
            transitions.report(held, Report(checkpoints=[one]))
            if one.step in named:
                assert transitions.tag(tag(f"t{one.step}", one)) is None
            kept = {known.step for known in surviving([*expected, one])} | (
                named & {e.step for e in expected}
            )
            expected = [known for known in [*expected, one] if known.step in kept]

    found = record(redis)

    assert [one.model_copy(update={"at": 0}) for one in found.checkpoints] == expected
    assert found.resume is not None
    assert (found.resume.step, found.resume.digest) == (told[-1].step, told[-1].digest)


def test_what_lies_beyond_where_an_attempt_goes_on_is_forgotten(
    redis: Redis, transitions: Transitions
) -> None:
    submit(transitions)
    held = run(transitions)
    transitions.report(held, Report(checkpoints=[checkpoint(4, 0.1), checkpoint(8, 0.5)]))

    transitions.report(held, Report(checkpoints=[checkpoint(3, 0.9)]))

    assert [one.step for one in record(redis).checkpoints] == [3]


def test_a_name_is_given_once_and_moved_only_by_force(redis: Redis, transitions: Transitions) -> None:
    submit(transitions)
    held = run(transitions)
    first, second = checkpoint(1, 0.1), checkpoint(2, 0.5)
    transitions.report(held, Report(checkpoints=[first, second]))

    assert transitions.tag(tag("good", first)) is None
    assert transitions.tag(tag("good", first)) is None
    assert transitions.tag(tag("good", second)) == tag("good", first)
    assert transitions.tag(tag("good", second), force=True) is None
    with pytest.raises(NotFound, match="does not have"):
        transitions.tag(tag("other", checkpoint(3)))
    transitions.untag(tag("good", first), "ada")  # it is another's by now
    assert redis.hkeys(keys.TAGS) == ["good"]
    transitions.untag(tag("good", second), "ada")
    assert redis.hkeys(keys.TAGS) == []
    assert [name for name in event_names(redis) if "tagged" in name] == ["tagged", "tagged", "untagged"]


@pytest.mark.parametrize("to", [JOB, JobId("job2")])
def test_a_checkpoint_whose_name_is_moved_is_kept_no_longer(
    redis: Redis, transitions: Transitions, to: JobId
) -> None:
    submit(transitions)
    held = run(transitions)
    old, best, last = checkpoint(1, 0.5), checkpoint(2, 0.1), checkpoint(3, 0.5)
    transitions.report(held, Report(checkpoints=[old]))
    transitions.tag(tag("good", old))
    transitions.report(held, Report(checkpoints=[best, last]))
    if to != JOB:
        submit(transitions, to)
        redis.hset(keys.job(to), "adapter", last.digest)
    kept = record(redis).checkpoints

    transitions.tag(tag("good", last).model_copy(update={"job": to}), force=True)

    assert [one.step for one in kept] == [1, 2, 3]
    assert [one.step for one in record(redis).checkpoints] == [2, 3]


def test_the_logs_of_attempts_are_kept_side_by_side(redis: Redis, transitions: Transitions) -> None:
    submit(transitions)
    held = run(transitions)
    own = AttemptLog(token=held.token, digest=Digest("sha256:own"), bytes=3)
    transitions.finish(held, HOST, Ending(JobState.QUEUED, "yielded", log=own))
    again = run(transitions)
    lost = AttemptLog(token=Token(7), digest=Digest("sha256:lost"), is_whole=False)

    transitions.report(again, Report(logs=[lost]))
    second = AttemptLog(token=again.token, digest=Digest("sha256:second"))
    transitions.finish(again, HOST, Ending(JobState.COMPLETED, "completed", log=second))

    assert record(redis).logs == (own, second, lost)


def test_a_checkpoint_is_named_by_what_it_is_or_by_its_step() -> None:
    kept = [checkpoint(2, 0.5), checkpoint(4, 0.25), checkpoint(6)]

    assert pick(kept, parse_which("best"), "j").step == 4
    assert pick(kept, parse_which("last"), "j").step == 6
    assert pick(kept, parse_which("2"), "j").step == 2
    with pytest.raises(NotFound, match=r"no checkpoint of step 3; there is 2, 4 \(best\), 6 \(last\)"):
        pick(kept, 3, "j")
    with pytest.raises(NotFound, match=r"was evaluated; there is 6 \(last\)"):
        pick(kept[2:], "best", "j")
    with pytest.raises(InvalidInput, match="`--checkpoint` is '-1'"):
        parse_which("-1")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "ä", "-v", "x" * 101, "end."])
def test_a_name_that_could_be_mistaken_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="use letters, digits"):
        check_name(name)


@pytest.fixture
def client(redis_server: RedisServer, tmp_path: Path) -> Client:
    url = (tmp_path / "store").as_uri()
    return Client(load_settings({"redis_url": redis_server.url, "store_url": url}))


def with_checkpoint(transitions: Transitions, store: Store, root: Path) -> Digest:
    """A running job with one checkpoint that is an adapter, and what is for going on from it."""
    transitions.submit(JOB, CountJob(), Request(demands=None, store_id=store.id))
    held = run(transitions)
    folder = root / "step-5"
    folder.mkdir()
    for name in ("adapters.safetensors", "adapter_config.json", "optimizer.safetensors", "state.json"):
        (folder / name).write_text(name)
    digest = store.put_folder(folder)
    transitions.report(held, Report(checkpoints=[KeptCheckpoint(step=5, digest=digest)]))
    return digest


def test_a_checkpoint_comes_as_an_adapter_or_whole(
    client: Client, redis: Redis, transitions: Transitions, tmp_path: Path
) -> None:
    with_checkpoint(transitions, client.store(), tmp_path)

    adapter = client.pull(JOB, tmp_path / "adapter", "last")
    whole = client.pull(JOB, tmp_path / "whole", 5, whole=True)

    assert {path.name for path in adapter.iterdir()} == {"adapters.safetensors", "adapter_config.json"}
    assert (whole / "optimizer.safetensors").exists()
    with pytest.raises(Conflict, match=r"has no adapter to pull; `--checkpoint last` brings that of step 5"):
        client.pull(JOB, tmp_path / "none")
    with pytest.raises(NotFound, match="has no card"):
        client.adapters.card(JOB, "last")


def test_who_removed_what_a_job_had_made_is_told_and_a_name_keeps_it(
    client: Client, redis: Redis, transitions: Transitions, tmp_path: Path
) -> None:
    digest = with_checkpoint(transitions, client.store(), tmp_path)
    client.adapters.tag(JOB, "kept", "last")
    with pytest.raises(Conflict, match="is running; cancel it"):
        client.adapters.remove(JOB)
    transitions.cancel(JOB, "ada")
    transitions.finish(record_hold(redis), HOST, Ending(JobState.CANCELLED, "cancelled"))

    client.adapters.remove(JOB)

    with pytest.raises(Conflict, match=r"was removed by \w+ on \d{4}-\d\d-\d\d"):
        client.pull(JOB, tmp_path / "none", "last")
    with pytest.raises(Conflict, match="was removed by"):
        client.adapters.remove(JOB)
    assert record(redis).resume is None
    assert event_names(redis)[-1] == "adapter removed"
    assert client.adapters.find("kept").digest == digest
    assert client.pull("kept", tmp_path / "kept").is_dir()
    redis.delete(keys.job(JOB), keys.job_events(JOB))  # as after 90 days
    assert [one.tags for one in client.adapters.all()] == [("kept",)]
    assert client.pull("kept", tmp_path / "kept again").is_dir()


def test_a_name_by_which_a_job_could_be_meant_is_refused(
    client: Client, redis: Redis, transitions: Transitions, tmp_path: Path
) -> None:
    with_checkpoint(transitions, client.store(), tmp_path)

    with pytest.raises(InvalidInput, match="the id of job job1 begins like that"):
        client.adapters.tag(JOB, "jo", "last")


def record_hold(redis: Redis) -> Hold:
    return Hold(JOB, record(redis).token, NONCE)
