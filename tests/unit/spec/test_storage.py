import pytest

from cpmbee_job.errors import SpecError
from cpmbee_job.process import contract
from cpmbee_job.spec import StorageSpec


def test_invalid_storage_in_the_environment_is_an_error(monkeypatch):
    monkeypatch.setenv(contract.STORAGE_ENV, '{"endpoint": "http://s3"}')
    with pytest.raises(SpecError, match=contract.STORAGE_ENV):
        StorageSpec.from_environment()


def test_unknown_fields_of_a_newer_launcher_are_ignored():
    assert StorageSpec.known_from_json('{"region": "eu", "invented": 1}').region == "eu"
