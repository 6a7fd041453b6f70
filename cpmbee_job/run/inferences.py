"""The request that an inference in a pod leaves in its folder, as far as others than its writer read it."""

from cpmbee_job.documents import Document
from cpmbee_job.run import keys
from cpmbee_job.store.base import Store


class InferenceRequest(Document):
    command: keys.InferenceCommand
    model: str
    delta: str | None
    data: str


def read_request(store: Store, folder: str) -> InferenceRequest:
    """Read the request in that folder of the store. Raises `NotFoundError`, `DamagedError`."""
    key = f"{folder}/{keys.REQUEST}"
    return InferenceRequest.parse(store.get(key), f"{store.url}/{key}")
