"""What a person's program sees: refusals before anything is queued, and answers in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.client import Client
from graft_scheduler.demand import Demand, Request
from graft_scheduler.errors import Conflict, GraftError, InvalidInput, NotFound, Unreachable
from graft_scheduler.host_verdicts import Fit
from graft_scheduler.jobs import CountJob, Limits, TrainJob
from graft_scheduler.memory import Backend
from graft_scheduler.records import AttemptLog, Hold, HostInfo, JobProgress
from graft_scheduler.rooms import Placement
from graft_scheduler.settings import load_settings
from graft_scheduler.states import HostId, JobState
from graft_scheduler.transitions import Ending, Report, Transitions, Window
from tests.services import RedisServer, free_port

ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "there"}]}


@pytest.fixture
def client(redis: Redis, redis_server: RedisServer, tmp_path: Path) -> Client:
    flags = {"redis_url": redis_server.url, "store_url": (tmp_path / "store").as_uri()}
    return Client(load_settings(flags))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(ROW) + "\n") * 4)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model folder as far as anybody looks at it before a host does."""
    folder = tmp_path / "base"
    folder.mkdir()
    config = {
        "model_type": "llama",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "vocab_size": 32,
    }
    (folder / "config.json").write_text(json.dumps(config))
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    return folder


def train_job(base: Path | str, data: Path | str, **changes: object) -> TrainJob:
    return TrainJob.model_validate({"model": str(base), "data": str(data), **changes})


def register(redis: Redis, client: Client, **changes: object) -> None:
    plain = HostInfo(
        id=HostId("h1"),
        name="mac",
        machine_id="m",
        boot="b",
        store_id=client.store().id,
        budget_bytes=1 << 30,
        machine_bytes=1 << 30,
        slots=1,
        backend="cpu",
        device="CPU",
        system="",
        versions={},
    )
    Transitions(redis).host_beat(plain.model_copy(update=changes), 5)


def test_a_submitted_job_carries_everything_it_needs_to_run_again(
    client: Client, base: Path, data: Path
) -> None:
    record = client.submit(train_job(base, data)).record()

    spec = record.spec
    assert isinstance(spec, TrainJob)
    assert (spec.model.source, spec.data.source) == (str(base), str(data))
    assert spec.model.digest is not None
    assert spec.data.digest is not None
    assert (spec.data.format, spec.epochs) == ("chat", 1.0)
    assert record.demands is not None
    assert set(record.demands) == {backend.value for backend in Backend}


@pytest.mark.parametrize(
    ("break_it", "complaint"),
    [
        (lambda base, data: data.unlink(), "no such file"),
        (lambda base, data: data.write_text(json.dumps(ROW) + '\n{"mess'), r"rows.jsonl:2: is not JSON"),
        (lambda base, data: (base / "config.json").unlink(), "config.json"),
        (lambda base, data: base.rename(base.with_name("moved")), "does not exist|no such folder"),
        (lambda base, data: data.write_text(""), "has no rows"),
        (lambda base, data: (base / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda base, data: (base / "tokenizer_config.json").unlink(), "has no chat template"),
    ],
)
def test_what_can_never_work_is_refused_and_nothing_is_queued(
    client: Client, redis: Redis, base: Path, data: Path, break_it: object, complaint: str
) -> None:
    break_it(base, data)  # type: ignore[operator]  # a lambda from the table

    with pytest.raises(InvalidInput, match=complaint):
        client.submit(train_job(base, data))

    assert redis.zcard(keys.QUEUE) == 0
    assert redis.keys(keys.PREFIX + "job:*") == []


def test_more_layers_than_the_base_has_are_refused(client: Client, base: Path, data: Path) -> None:
    with pytest.raises(InvalidInput, match=r"`adapter\.layers` is 99; it must be at most 1"):
        client.submit(train_job(base, data, adapter={"layers": 99}))


def test_a_limit_on_memory_replaces_the_estimate(client: Client, base: Path, data: Path) -> None:
    limits = Limits(memory_bytes=1 << 30)

    assert client.submit(train_job(base, data, limits=limits)).record().demands == dict.fromkeys(
        ("metal", "cuda", "cpu"), Demand.of(1 << 30)
    )


def test_a_unique_beginning_of_an_id_is_enough(client: Client) -> None:
    job = client.submit(CountJob()).id

    assert client.get(job[:5]).id == job
    with pytest.raises(NotFound):
        client.get("nothing")
    with pytest.raises(NotFound):
        client.get("")


def test_an_ambiguous_beginning_names_the_jobs(client: Client, transitions: Transitions) -> None:
    from graft_scheduler.states import JobId

    for job in ("aa1", "aa2"):
        transitions.submit(JobId(job), CountJob(), Request(store_id="store"))

    with pytest.raises(InvalidInput, match="beginning of 2 jobs"):
        client.get("aa")


def test_live_jobs_are_listed_before_ended_ones(client: Client) -> None:
    ended = client.submit(CountJob()).id
    waiting = client.submit(CountJob(submitter="ada")).id
    client.cancel(ended)
    newest = client.submit(CountJob()).id

    assert [record.id for record in client.jobs()] == [waiting, newest, ended]
    assert [record.id for record in client.jobs(live_only=True)] == [waiting, newest]
    assert [record.id for record in client.jobs(submitter="ada")] == [waiting]
    assert len(client.jobs(limit=1)) == 1


def test_why_names_what_is_missing_first(client: Client, redis: Redis, transitions: Transitions) -> None:
    job = client.submit(CountJob(memory_bytes=1 << 40)).id
    assert "no scheduler is running" in client.why(job).summary

    transitions.lead("me", 60)
    assert "no worker has ever registered" in client.why(job).summary

    register(redis, client)
    why = client.why(job)
    assert why.never_fits
    assert "too small" in why.hosts[0].reason


def test_a_host_with_another_store_is_named(client: Client, redis: Redis, transitions: Transitions) -> None:
    transitions.lead("me", 60)
    register(redis, client, store_id="elsewhere")
    job = client.submit(CountJob()).id

    assert "another store" in client.why(job).hosts[0].reason


def test_a_second_job_is_told_how_many_are_ahead(
    client: Client, redis: Redis, transitions: Transitions
) -> None:
    transitions.lead("me", 60)
    register(redis, client)
    client.submit(CountJob())
    job = client.submit(CountJob()).id

    assert "1 job is ahead" in client.why(job).summary


def test_a_plan_asks_every_host_and_queues_nothing(
    client: Client, redis: Redis, base: Path, data: Path
) -> None:
    register(redis, client)
    register(redis, client, id=HostId("h2"), name="far", machine_id="n", store_id="elsewhere")

    plan = client.plan(train_job(base, data))

    assert [(one.host.name, one.fit) for one in plan.hosts] == [("mac", Fit.NOW), ("far", Fit.NEVER)]
    assert "another store" in plan.hosts[1].reason
    assert client.jobs() == []


def test_a_plan_waits_for_what_a_running_job_has_left(
    client: Client, redis: Redis, transitions: Transitions, base: Path, data: Path
) -> None:
    register(redis, client)
    handle = client.submit(CountJob(memory_bytes=1 << 30))
    _, leader, _ = transitions.lead("me", 60)
    token, _ = transitions.place(Placement(handle.id, HostId("h1"), 1 << 30), leader, Window(10, 15))
    assert token is not None
    held = Hold(handle.id, token, "nonce")
    transitions.claim(held, HostId("h1"), "b", 60)
    transitions.report(held, Report(JobProgress(seconds_left=600.0)))

    (verdict,) = client.plan(train_job(base, data)).hosts

    assert verdict.fit is Fit.LATER
    assert verdict.reason == f"when {handle.id} ends, in about 10 min"


def test_a_draining_host_is_no_place_for_now(client: Client, redis: Redis, base: Path, data: Path) -> None:
    register(redis, client)
    client.set_draining("mac", True)

    (verdict,) = client.plan(train_job(base, data)).hosts

    assert (verdict.fit, verdict.starts_in_seconds) == (Fit.LATER, None)
    assert "draining" in verdict.reason


def test_only_a_completed_job_can_be_pulled(client: Client, tmp_path: Path) -> None:
    job = client.submit(CountJob()).id

    with pytest.raises(Conflict, match="no adapter"):
        client.pull(job, tmp_path / "adapter")


def test_waiting_has_a_limit_and_a_failed_job_raises(client: Client, transitions: Transitions) -> None:
    handle = client.submit(CountJob())
    with pytest.raises(TimeoutError):
        handle.wait(0)

    handle.cancel()
    with pytest.raises(GraftError, match="cancelled"):
        handle.wait(5)


def test_a_log_is_whole_once_the_job_has_ended(
    client: Client, redis: Redis, transitions: Transitions
) -> None:
    register(redis, client)
    handle = client.submit(CountJob())
    _, leader, _ = transitions.lead("me", 60)
    token, _ = transitions.place(Placement(handle.id, HostId("h1"), 1), leader, Window(10, 15))
    assert token is not None
    held = Hold(handle.id, token, "nonce")
    transitions.claim(held, HostId("h1"), "b", 60)
    log = AttemptLog(token=token, digest=client.store().put_bytes(b"first\nlast\n"))

    transitions.finish(held, HostId("h1"), Ending(JobState.COMPLETED, "completed", log=log))

    assert list(client.log_lines(handle.id)) == ["first", "last"]
    assert list(client.follow_log(handle.id)) == ["first", "last"]


def test_hosts_are_drained_uncordoned_and_forgotten_by_name(client: Client, redis: Redis) -> None:
    register(redis, client)
    redis.hset(keys.host(HostId("h1")), "cordoned", "1")

    assert client.set_draining("mac", True).is_draining
    assert not client.set_draining("h1", False).is_draining
    assert not client.uncordon("mac").is_cordoned
    with pytest.raises(Conflict, match="alive"):
        client.forget_host("mac")
    Transitions(redis).host_away(HostId("h1"), 60)
    client.forget_host("mac")
    assert client.hosts() == []
    with pytest.raises(NotFound, match="graft hosts"):
        client.set_draining("mac", True)


def test_a_redis_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    absent = Client(load_settings({"redis_url": f"redis://127.0.0.1:{free_port()}/0"}))

    with pytest.raises(Unreachable, match=r"does not answer .*graft up"):
        absent.submit(CountJob())
