"""Checks run at once and none hides another."""

import time

from cpmbee_job.errors import ClusterError, StoreError
from cpmbee_job.launch.checks.findings import Finding, examine


def fine():
    yield Finding("fine", "ok", "all well")


def denied():
    raise ClusterError('pods is forbidden: User "me" cannot list resource "pods" in API group ""')


def broken():
    raise StoreError("no bucket", hint="make one")


def hanging():
    time.sleep(60)
    return []


def test_findings_come_in_the_order_of_their_checks():
    found = list(examine({"broken": broken, "denied": denied, "fine": fine}))
    assert found == [
        Finding("broken", "problem", "no bucket", "make one"),
        Finding("denied", "not_permitted", 'pods is forbidden: User "me" cannot list resource "pods" in API group ""'),
        Finding("fine", "ok", "all well"),
    ]


def test_a_check_that_hangs_is_a_problem_and_the_others_are_told():
    found = list(examine({"hanging": hanging, "fine": fine}, seconds=0.2))
    assert [(finding.check, finding.state) for finding in found] == [("hanging", "problem"), ("fine", "ok")]


def test_an_admission_that_refuses_is_no_lack_of_rights():
    def refused():
        raise ClusterError('pods "a" is forbidden: exceeded quota: q')

    assert [finding.state for finding in examine({"job": refused})] == ["problem"]
