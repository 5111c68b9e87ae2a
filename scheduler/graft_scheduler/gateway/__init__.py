"""A store for a fleet without a shared disk: one folder behind HTTP, as `docs/store.md` describes it."""
