"""The job spec as a frozen pydantic model. `docs/reference/spec.md` and the JSON Schema are generated from the
docstrings of the fields."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Self

import yaml
from pydantic import AfterValidator, Field

from cpmbee_job.spec.cluster import ClusterSpec, Image, WorkersSpec
from cpmbee_job.spec.storage import StorageSpec
from cpmbee_job.spec.strict_yaml import StrictDumper
from cpmbee_job.spec.training import DataSpec, LoraSpec, TrainSpec
from cpmbee_job.spec.types import NAME_PATTERN, RESERVED_NAMES, Place, Section


def _is_not_reserved(name: str) -> str:
    if name in RESERVED_NAMES:
        raise ValueError("is reserved for another folder in `output`; choose another name")
    return name


class JobSpec(Section):
    """The spec of a job. `train`, `lora`, `workers`, `cluster` and `storage` are optional; `image` is required only
    on a cluster."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=40), AfterValidator(_is_not_reserved)]
    """Name of the job, of lower case letters, digits and dashes."""
    model: Place
    """Folder with `vocab.txt`, `config.json` and weights (`*.safetensors` or `pytorch_model.bin`)."""
    data: DataSpec
    output: Place
    """Folder in which the run's folder `<name>/<run>/` is created."""
    train: TrainSpec = TrainSpec()
    lora: LoraSpec = LoraSpec()
    image: Image | None = None
    """Image of the training pods (target `train` of the Dockerfile), with a tag or a digest."""
    workers: WorkersSpec = WorkersSpec()
    cluster: ClusterSpec = ClusterSpec()
    storage: StorageSpec = StorageSpec()

    @property
    def global_batch_size(self) -> int:
        """Packed rows in one step, for any number of live processes."""
        return self.train.global_batch_size or self.train.batch_size * self.workers.count * max(self.workers.gpus, 1)

    @property
    def inputs(self) -> dict[str, str]:
        """The URLs of the inputs of a run, by dotted key."""
        train = self.data.train
        sets = {"": train} if isinstance(train, str) else {f".{n}.path": one.path for n, one in enumerate(train)}
        places = {
            "model": self.model,
            **{f"data.train{key}": path for key, path in sets.items()},
            "data.eval": self.data.eval,
            "lora.init_from": self.lora.init_from,
        }
        return {key: place for key, place in places.items() if place is not None}

    def with_fields(self, fields: Mapping[str, str | int | None]) -> Self:
        """Return a copy with other values of these fields, by dotted key."""
        document = self.model_dump(mode="json")
        for field, value in fields.items():
            *parents, key = field.split(".")
            node: Any = document
            for parent in parents:
                node = node[int(parent) if isinstance(node, list) else parent]
            node[key] = value
        return self.model_validate_json(json.dumps(document))

    def to_yaml(self) -> str:
        return yaml.dump(self.model_dump(mode="json"), Dumper=StrictDumper, sort_keys=False, allow_unicode=True)
