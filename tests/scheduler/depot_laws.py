"""What holds of every place for blobs, whichever it is."""

from __future__ import annotations

import pytest

from graft_scheduler.errors import StoreError
from graft_scheduler.states import Digest
from graft_scheduler.store.depots import Depot, Source

ABSENT = Digest("sha256:" + "0" * 64)


def check_housekeeping(depot: Depot) -> None:
    """Listing, renewing and removing, in a place that is empty."""
    sources = sorted(
        (Source.of_bytes(str(number).encode()) for number in range(5)), key=lambda one: one.digest
    )
    for source in sources:
        depot.write(source)
    digests = [source.digest for source in sources]

    listed = depot.listing()
    assert [(blob.digest, blob.size) for blob in listed] == [(digest, 1) for digest in digests]
    assert [blob.digest for blob in depot.listing(after=digests[1])] == digests[2:]
    assert [blob.digest for blob in depot.listing(after=digests[0], most=2)] == digests[1:3]
    assert [blob.digest for blob in depot.listing(after=digests[3][:-1], most=1)] == [digests[3]]
    assert depot.listing(after=digests[4]) == []

    depot.renew(digests[0])
    assert depot.listing(most=1)[0].stored_at >= listed[0].stored_at
    with pytest.raises(StoreError, match="is not in store"):
        depot.renew(ABSENT)

    depot.remove(digests[2])
    depot.remove(digests[2])
    assert depot.size(digests[2]) is None
    assert [blob.digest for blob in depot.listing()] == [*digests[:2], *digests[3:]]
    with pytest.raises(StoreError, match="is not in store"):
        list(depot.read(digests[2]))
    depot.write(sources[2])
    assert b"".join(depot.read(digests[2])) == b"".join(sources[2].read(0))
    assert depot.clear_abandoned() == 0


def check_clearing(depot: Depot, abandoned: int) -> None:
    """In a place where so many files were left half-written long ago: they are counted, and gone."""
    assert depot.clear_abandoned() == abandoned
    assert depot.clear_abandoned() == 0
