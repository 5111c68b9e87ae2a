"""The store: data sets, model folders, checkpoints and adapters, each named by what it holds."""

from graft_scheduler.store.artifacts import Store
from graft_scheduler.store.opening import open_store

__all__ = ["Store", "open_store"]
