import pytest

from cpmbee_job.cli.shared.storage_options import storage
from cpmbee_job.errors import UsageError
from cpmbee_job.spec import StorageSpec


@pytest.fixture(autouse=True)
def _as_in_a_pod(monkeypatch):
    settings = StorageSpec(endpoint_url="http://inside:8333", region="here")
    monkeypatch.setenv("CPMBEE_STORAGE", settings.model_dump_json())


def test_pods_have_their_settings_in_the_environment():
    assert storage(None, None) == StorageSpec(endpoint_url="http://inside:8333", region="here")


def test_options_win():
    expected = StorageSpec(endpoint_url="http://outside:1", region="here", path_style=False)
    assert storage("http://outside:1", False) == expected


def test_a_variable_that_makes_no_sense_is_named(monkeypatch):
    monkeypatch.setenv("CPMBEE_STORAGE", '{"endpoint": 1}')
    with pytest.raises(UsageError, match="CPMBEE_STORAGE"):
        storage(None, None)
