import pytest

from cpmbee_job.data.read.error_list import ErrorList
from cpmbee_job.errors import DataError


def test_the_first_of_many_errors_are_named_and_all_are_counted() -> None:
    errors = ErrorList()
    for number in range(1, 31):
        errors.add(DataError("bad"), f"file:{number}")
    with pytest.raises(DataError) as caught:
        errors.refuse("nothing was written")
    lines = str(caught.value).splitlines()
    assert lines[19:] == ["file:20: bad", "and 10 more", "30 errors; nothing was written"]


def test_nothing_is_raised_without_errors() -> None:
    ErrorList().refuse("nothing was written")
