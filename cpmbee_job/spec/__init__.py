"""The job spec: the YAML file that defines model, data, training and cluster."""

from cpmbee_job.spec.job import JobSpec
from cpmbee_job.spec.reading import known_keys, load_spec, parse_spec
from cpmbee_job.spec.storage import StorageSpec
from cpmbee_job.spec.training import DataSetSpec, DataSpec, TrainSpec

__all__ = ["DataSetSpec", "DataSpec", "JobSpec", "StorageSpec", "TrainSpec", "known_keys", "load_spec", "parse_spec"]
