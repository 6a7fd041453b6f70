import pytest
import typer

from cpmbee_job.cli.shared.options import StoreOptions, seconds
from cpmbee_job.errors import UsageError
from cpmbee_job.spec import StorageSpec


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of a pod."""
    settings = StorageSpec(endpoint_url="http://inside:8333", region="here")
    monkeypatch.setenv("CPMBEE_STORAGE", settings.model_dump_json())
    return monkeypatch


def test_pods_have_their_storage_settings_in_the_environment(pod: pytest.MonkeyPatch) -> None:
    assert StoreOptions().storage() == StorageSpec(endpoint_url="http://inside:8333", region="here")


def test_options_override_the_environment(pod: pytest.MonkeyPatch) -> None:
    expected = StorageSpec(endpoint_url="http://outside:1", region="here", path_style=False)
    assert StoreOptions("http://outside:1", False).storage() == expected


def test_an_invalid_environment_variable_is_named(pod: pytest.MonkeyPatch) -> None:
    pod.setenv("CPMBEE_STORAGE", '{"endpoint": 1}')
    with pytest.raises(UsageError, match="CPMBEE_STORAGE"):
        StoreOptions().storage()


@pytest.mark.parametrize(
    ("text", "length"), [("90", 90), ("1.5", 1.5), ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("7d", 604800)]
)
def test_durations(text: str, length: float) -> None:
    assert seconds(text) == length


@pytest.mark.parametrize("text", ["", "h", "soon", "-1", "1y", "10m5h"])
def test_invalid_durations(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        seconds(text)
