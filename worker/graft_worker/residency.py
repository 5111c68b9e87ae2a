"""Names for what a runner may keep for its next job; equal only where what they name is the same.

Nothing is kept of a base or a data set whose name says nothing of its content, of one that a full
fine-tune changes, or of one that comes with code of its own.
"""

from __future__ import annotations

from graft_scheduler.basemodels import looks_like_path
from graft_scheduler.hyperparameters import Method, QuantizationConfig
from graft_scheduler.jobs import CountJob, TrainJob

Name = tuple[object, ...]


def base_name(spec: TrainJob) -> Name | None:
    """Of the loaded base; nothing where it cannot be kept."""
    if spec.method is Method.FULL or spec.model.trust_remote_code:
        return None
    content: str | None = spec.model.digest
    if content is None:
        if looks_like_path(spec.model.source) or spec.model.revision is None:
            return None
        content = f"{spec.model.source}@{spec.model.revision}"
    is_quantised = spec.method is Method.QLORA
    quantization = spec.quantization or QuantizationConfig() if is_quantised else None
    return (
        content,
        spec.precision,
        None if quantization is None else (quantization.bits, quantization.group_size),
    )


def data_name(spec: TrainJob) -> Name | None:
    """Of the data set as one base's tokens; nothing where it cannot be kept."""
    shared = _shared_data_name(spec)
    return None if shared is None else (*shared, spec.seed)


def runner_name(spec: TrainJob | CountJob) -> Name | None:
    """Of the runner that has most of what the job needs; nothing for a job that takes one of its own.

    Jobs that differ in their seed alone share a runner; it may have to split the data set anew.
    """
    if not isinstance(spec, TrainJob):
        return None
    base, data = base_name(spec), _shared_data_name(spec)
    return None if base is None or data is None else (base, data)


def _shared_data_name(spec: TrainJob) -> Name | None:
    data = spec.data
    if data.digest is None:
        return None
    return data.digest, data.format, data.mask_prompt, data.valid_fraction, spec.max_length
