"""Exports of a training job's figures to trackers; nothing that fails here stops a job."""
