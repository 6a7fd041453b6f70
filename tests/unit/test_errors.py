from cpmbee_job import errors
from cpmbee_job.errors import CpmbeeError, ExitCode, JobFailedError


def _classes(base: type[CpmbeeError] = CpmbeeError) -> list[type[CpmbeeError]]:
    return [base, *(found for child in base.__subclasses__() for found in _classes(child))]


def test_every_error_class_has_an_exit_code_of_the_table():
    assert all(isinstance(kind.exit_code, ExitCode) for kind in _classes())


def test_the_docstring_draws_every_class_below_its_base():
    stack: list[str] = []
    drawn = {}
    for line in (errors.__doc__ or "").splitlines()[2:]:
        left, name = line[: len(line) - len(line.lstrip("│├└─ "))], line.lstrip("│├└─ ").split(" ")[0]
        stack[len(left) // 4 :] = [name]
        drawn[name] = stack[-2] if len(stack) > 1 else "Exception"
    assert drawn == {kind.__name__: kind.__base__.__name__ for kind in _classes() if kind.__module__ == errors.__name__}


def test_an_instance_can_have_the_exit_code_of_a_run():
    assert JobFailedError("failed", exit_code=3).exit_code == 3
    assert JobFailedError("failed").exit_code == 100
