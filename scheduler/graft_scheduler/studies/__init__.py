"""Studies: hyperparameter searches whose trials are ordinary jobs, with Optuna's state in Redis."""
