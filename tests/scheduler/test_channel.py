"""Frames over the pair: whole, in order, and an end that is noticed."""

from __future__ import annotations

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_scheduler.channel import MAX_FRAME_BYTES, Channel
from graft_scheduler.messages import Exit, Extend, Log, parse_runner_message, parse_supervisor_message
from graft_scheduler.states import JobId, Token

JOB, TOKEN = JobId("j"), Token(1)


def pair() -> tuple[Channel, Channel]:
    ours, theirs = socket.socketpair()
    return Channel(ours), Channel(theirs)


@given(st.lists(st.text(max_size=3000), max_size=10))
def test_every_message_arrives_whole_and_in_order(texts: list[str]) -> None:
    sender, receiver = pair()
    for text in texts:
        sender.send(Log(job=JOB, token=TOKEN, text=text))

    received = [receiver.receive(5) for _ in texts]
    sender.close()
    receiver.close()

    assert [parse_runner_message(frame or b"") for frame in received] == [
        Log(job=JOB, token=TOKEN, text=text) for text in texts
    ]


def test_nothing_in_time_is_nothing() -> None:
    sender, receiver = pair()

    assert receiver.receive(0.01) is None
    sender.close()
    receiver.close()


def test_what_was_said_before_the_end_is_still_heard() -> None:
    sender, receiver = pair()
    sender.send(Exit(job=JOB, token=TOKEN))
    sender.close()

    assert receiver.receive(1) is not None
    with pytest.raises(EOFError):
        receiver.receive(1)
    assert receiver.send(Exit(job=JOB, token=TOKEN)) is False
    receiver.close()


def test_messages_of_several_threads_do_not_mix() -> None:
    sender, receiver = pair()
    message = Extend(job=JOB, token=TOKEN, deadline=1.0)
    threads = [threading.Thread(target=lambda: [sender.send(message) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()

    frames = [receiver.receive(5) for _ in range(800)]

    assert all(parse_supervisor_message(frame or b"") == message for frame in frames)
    for thread in threads:
        thread.join()
    sender.close()
    receiver.close()


def test_an_offer_never_waits_and_says_when_nobody_reads() -> None:
    sender, receiver = pair()
    line = Log(job=JOB, token=TOKEN, text="x" * 10_000)

    accepted = [sender.offer(line) for _ in range(300)]

    assert accepted[0]
    assert not accepted[-1]
    first = parse_runner_message(receiver.receive(1) or b"")
    assert first == line
    sender.close()
    receiver.close()


def test_an_offer_is_sent_whole_once_the_other_end_reads_again() -> None:
    sender, receiver = pair()
    texts = [str(number) * 50_000 for number in range(8)]
    for text in texts:
        assert sender.offer(Log(job=JOB, token=TOKEN, text=text))

    heard: list[str] = []
    while len(heard) < len(texts):
        sender.offer(Log(job=JOB, token=TOKEN, text="tick"))
        while (frame := receiver.receive(0.05)) is not None:
            message = parse_runner_message(frame)
            assert isinstance(message, Log)
            heard += [message.text] if message.text != "tick" else []
    sender.close()
    receiver.close()

    assert heard == texts


def test_a_stream_that_is_not_ours_is_refused() -> None:
    ours, theirs = socket.socketpair()
    ours.sendall((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
    receiver = Channel(theirs)

    with pytest.raises(ValueError, match="at most"):
        receiver.receive(1)
    ours.close()
    receiver.close()


def test_an_unknown_message_is_an_error() -> None:
    with pytest.raises(ValueError, match="gossip"):
        parse_runner_message(b'{"type": "gossip", "job": "j", "token": 1}')
