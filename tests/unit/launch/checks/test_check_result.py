"""Checks run at the same time; a failing one does not prevent others."""

import time

from cpmbee_job.errors import ClusterError, StoreError
from cpmbee_job.launch.checks.check_result import CheckResult, run_checks


def fine():
    yield CheckResult("fine", "ok", "all well")


def denied():
    raise ClusterError('pods is forbidden: User "me" cannot list resource "pods" in API group ""')


def broken():
    raise StoreError("no bucket", hint="make one")


def hanging():
    time.sleep(60)
    return []


def test_results_come_in_the_order_of_their_checks():
    results = list(run_checks({"broken": broken, "denied": denied, "fine": fine}))
    assert results == [
        CheckResult("broken", "problem", "no bucket", "make one"),
        CheckResult(
            "denied", "not_permitted", 'pods is forbidden: User "me" cannot list resource "pods" in API group ""'
        ),
        CheckResult("fine", "ok", "all well"),
    ]


def test_a_hanging_check_is_a_problem_and_others_still_report():
    results = list(run_checks({"hanging": hanging, "fine": fine}, seconds=0.2))
    assert [(result.check, result.state) for result in results] == [("hanging", "problem"), ("fine", "ok")]


def test_a_refusal_by_admission_is_not_a_missing_permission():
    def refused():
        raise ClusterError('pods "a" is forbidden: exceeded quota: q')

    assert [result.state for result in run_checks({"job": refused})] == ["problem"]
