"""What the store holds and nobody refers to: found, and removed.

A blob goes if it was neither stored nor renewed for longer than a grace, and nothing that Redis refers to
leads to it. Whoever stores what is there already renews it, so what is being submitted now is younger than
the grace. Its age is looked at once more right before it is removed. Several collections at once, and one
that dies, do no harm: each removal stands for itself.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from redis import Redis

from graft_scheduler.errors import Conflict, InvalidInput, StoreError
from graft_scheduler.roots import KNOWING, PROVIDERS, Provider, Root, stores_of_jobs
from graft_scheduler.states import Digest
from graft_scheduler.store import Store
from graft_scheduler.store.depots import Blob, Depot
from graft_scheduler.store.manifest import MAX_MANIFEST_BYTES, Manifest

GRACE_SECONDS = 86_400.0
"""Longer than any upload, and than a worker keeps what it could not tell Redis yet."""
LEAST_GRACE_SECONDS = 3600.0
BEGINNING = b'{"files":['
"""Of every manifest."""
MOST_LOOKED_AT = 1 << 20
"""A larger blob that nobody refers to is not read to find out what it was."""
KINDS = (
    ({"state.json", "optimizer.safetensors"}, "checkpoint"),
    ({"adapters.safetensors"}, "adapter"),
    ({"train.jsonl"}, "data"),
    ({"config.json"}, "model"),
)
"""What a folder was, by a file that it has."""


@dataclass(frozen=True, slots=True)
class Share:
    """What goes of one kind."""

    kind: str
    count: int
    """Folders, or files that belong to none."""
    blobs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Garbage:
    """What would go, in the order in which it would."""

    blobs: tuple[Blob, ...]
    shares: tuple[Share, ...]
    older_than: float
    """Seconds since 1970, by the clock of the store."""
    kept_blobs: int
    kept_bytes: int
    young_blobs: int
    """Not referred to either, and younger than the grace."""

    @property
    def bytes(self) -> int:
        return sum(blob.size for blob in self.blobs)


@dataclass(frozen=True, slots=True)
class Collected:
    """What went."""

    blobs: int
    bytes: int
    spared: int
    """Renewed, or gone already, since they were found."""
    abandoned: int
    """Uploads that nobody went on with."""


def check_grace(seconds: float) -> float:
    """The grace, if it is safe.

    Raises:
        InvalidInput: it is too short to tell garbage from what is being stored.
    """
    if seconds < LEAST_GRACE_SECONDS:
        raise InvalidInput(
            f"`--older-than` is {seconds:g} s; it must be at least 1h, and longer than your longest upload: "
            "by its age garbage is told from what is being stored now"
        )
    return seconds


def find_garbage(
    store: Store, redis: Redis, older_seconds: float, providers: Sequence[Provider] = PROVIDERS
) -> Garbage:
    """What nobody refers to; nothing is removed.

    Raises:
        InvalidInput: a grace that is too short.
        Conflict: a record cannot be understood, or Redis knows nothing of this store.
        StoreError: a folder that is referred to is damaged.
    """
    older_than = _now(store) - check_grace(older_seconds)
    there = {blob.digest: blob for blob in store.depot.listing()}
    roots = {provider: list(provider(redis)) for provider in providers}  # after the listing: see above
    if there:
        knows = any(root.digest in there for one in KNOWING for root in roots.get(one, ()))
        _check_is_ours(store, stores_of_jobs(redis), knows_some=knows)
    kept = _reachable(store, chain.from_iterable(roots.values()), there)
    loose = [blob for digest, blob in there.items() if digest not in kept]
    old = {blob.digest: blob for blob in loose if blob.stored_at < older_than}
    blobs, shares = _sorted_out(store.depot, old)
    kept_bytes = sum(blob.size for digest, blob in there.items() if digest in kept)
    return Garbage(blobs, shares, older_than, len(there) - len(loose), kept_bytes, len(loose) - len(old))


def remove_garbage(store: Store, garbage: Garbage) -> Collected:
    """Remove it, but for what was renewed meanwhile.

    Raises:
        StoreError: something cannot be removed; what went is gone.
    """
    depot, blobs, size = store.depot, 0, 0
    for blob in garbage.blobs:
        now = look_up(depot, blob.digest)
        if now is not None and now.stored_at < garbage.older_than:
            depot.remove(blob.digest)
            blobs, size = blobs + 1, size + blob.size
    return Collected(blobs, size, len(garbage.blobs) - blobs, depot.clear_abandoned())


def look_up(depot: Depot, digest: Digest) -> Blob | None:
    """One blob, as a listing has it."""
    found = depot.listing(after=digest[:-1], most=1)  # no other digest begins like it
    return found[0] if found and found[0].digest == digest else None


def _now(store: Store) -> float:
    """The time by the clock of the store, which need not be that of this machine."""
    digest = store.put_bytes(f"graft gc {secrets.token_hex(16)}\n".encode())
    try:
        blob = look_up(store.depot, digest)
    finally:
        store.depot.remove(digest)
    if blob is None:
        raise StoreError(f"store {store.place} does not list what was just stored; nothing was removed")
    return blob.stored_at


def _check_is_ours(store: Store, stores: set[str], *, knows_some: bool) -> None:
    """Raises `Conflict` where this Redis is not the one that knows what is in the store.

    It is where a job was submitted with the store; while no job is remembered at all, where something of
    what has a name, or belongs to a study, is in the store.
    """
    if store.id in stores or (not stores and knows_some):
        return
    raise Conflict(
        f"no job in Redis uses store {store.place}, and nothing that Redis has a name for is in it; "
        "check `redis_url` and `store_url`: is this the Redis of those who use it?"
    )


def _reachable(store: Store, roots: Iterable[Root], there: dict[Digest, Blob]) -> set[Digest]:
    """The roots, and the files of those that are folders."""
    kinds: dict[Digest, set[str]] = {}
    for root in roots:
        kinds.setdefault(root.digest, set()).add(root.kind)
    kept = set(kinds)
    for digest, ways in kinds.items():
        if digest in there and ways != {"log"}:  # which is a file, and may look like anything
            kept |= _files_of(store, there[digest])
    return kept


def _files_of(store: Store, blob: Blob) -> set[Digest]:
    """Those of a folder; none of what is a file.

    Raises:
        StoreError: it begins like a folder, and cannot be read.
    """
    if blob.size > MAX_MANIFEST_BYTES or not _begins_like_a_folder(store.depot, blob.digest):
        return set()
    return {entry.digest for entry in store.files(blob.digest).values()}


def _begins_like_a_folder(depot: Depot, digest: Digest) -> bool:
    return next(iter(depot.read(digest)), b"").startswith(BEGINNING)


def _sorted_out(depot: Depot, old: dict[Digest, Blob]) -> tuple[tuple[Blob, ...], tuple[Share, ...]]:
    """Folders before their files, so that none is left without some; and how much is of which kind."""
    folders = {digest: one for digest, blob in old.items() if (one := _manifest(depot, blob)) is not None}
    shares: dict[str, Share] = {}
    order: list[Blob] = [old[digest] for digest in folders]
    claimed = set(folders)
    for digest, manifest in folders.items():
        own = [
            entry.digest for entry in manifest.files if entry.digest in old and entry.digest not in claimed
        ]
        files = [old[one] for one in dict.fromkeys(own)]
        claimed.update(own)
        order += files
        _add(shares, _kind({entry.name for entry in manifest.files}), [old[digest], *files])
    rest = [blob for digest, blob in old.items() if digest not in claimed]
    for blob in rest:
        _add(shares, "file", [blob])
    return (*order, *rest), tuple(sorted(shares.values(), key=lambda one: -one.bytes))


def _manifest(depot: Depot, blob: Blob) -> Manifest | None:
    if blob.size > MOST_LOOKED_AT:
        return None
    try:
        data = b"".join(depot.read(blob.digest))
        return Manifest.model_validate_json(data) if data.startswith(BEGINNING) else None
    except (StoreError, ValueError):
        return None  # gone meanwhile, or no folder after all


def _kind(names: set[str]) -> str:
    return next((kind for known, kind in KINDS if known & names), "folder")


def _add(shares: dict[str, Share], kind: str, blobs: Sequence[Blob]) -> None:
    before = shares.get(kind, Share(kind, 0, 0, 0))
    size = before.bytes + sum(blob.size for blob in blobs)
    shares[kind] = Share(kind, before.count + 1, before.blobs + len(blobs), size)
