"""The API client, with a real HTTP server that sends valid and invalid responses."""

import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from kubernetes import config

from cpmbee_job.errors import ClusterError, ConflictError, NotFoundError, RejectedError, UnreachableError
from cpmbee_job.launch.kube.api import ApiCluster
from cpmbee_job.launch.kube.protocol import NODES, PODS, Object
from cpmbee_job.launch.kube.transport import TRIES, Transport
from tests.unit.launch.api_server import Answer, ApiServer, api_server, pod, status


def page(*pods: Object, version: int = 1, more: str = "") -> Answer:
    return Answer(body={"items": list(pods), "metadata": {"resourceVersion": str(version), "continue": more}})


def events(*changes: tuple[str, Any], cut: bool = False) -> Answer:
    lines = [json.dumps({"type": change, "object": item}).encode() + b"\n" for change, item in changes]
    return Answer(body=lines, cut=cut)


# Single answers


def test_get_uses_the_namespace_and_the_token(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body=pod("a"))]
    assert cluster.get(PODS, "a")["metadata"]["name"] == "a"
    assert server.requests[0][0] == "/api/v1/namespaces/team/pods/a"
    assert server.tokens() == ["Bearer old"]


def test_get_of_a_cluster_wide_kind_has_no_namespace(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body=pod("n"))]
    cluster.get(NODES, "n")
    assert server.requests[0][0] == "/api/v1/nodes/n"


def test_create_validates_fields_strictly_and_supports_dry_run(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(201, pod("a"))]
    cluster.create(PODS, pod("a"), dry_run=True)
    assert server.queries == [{"fieldValidation": "Strict", "dryRun": "All"}]
    assert server.requests[0][3] == pod("a")


def test_create_reports_the_warnings_of_the_server(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(201, pod("a"), headers={"Warning": r'299 - "would violate \"x\"", 299 - "old"'})]
    told: list[str] = []
    cluster.create(PODS, pod("a"), on_warning=told.append)
    assert told == ['would violate "x"', "old"]


def test_get_metadata_fetches_only_the_metadata(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body=pod("s"))]
    cluster.get_metadata("api/v1/secrets", "s")
    assert "as=PartialObjectMetadata" in server.requests[0][2]["accept"]


def test_server_time_is_that_of_the_date_header(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body={"gitVersion": "v1.34.4"})]
    assert cluster.server_time().tzinfo is not None


def test_delete_has_the_uid_as_a_precondition(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body={})]
    cluster.delete(PODS, "a", "uid-a")
    assert server.requests[0][3]["preconditions"] == {"uid": "uid-a"}


@pytest.mark.parametrize(
    ("code", "kind"),
    [(404, NotFoundError), (409, ConflictError), (403, ClusterError), (401, ClusterError), (500, UnreachableError)],
)
def test_an_error_keeps_the_message_of_the_server(
    cluster: ApiCluster, server: ApiServer, code: int, kind: type[Exception]
) -> None:
    server.answers = [status(code, "because of this")]
    with pytest.raises(kind, match="because of this"):
        cluster.get(PODS, "a")


def test_an_invalid_object_is_rejected_with_its_causes(cluster: ApiCluster, server: ApiServer) -> None:
    causes = [{"field": "spec.x", "message": "must be 1"}]
    server.answers = [status(422, "invalid", details={"causes": causes})]
    with pytest.raises(RejectedError) as caught:
        cluster.create(PODS, pod("a"))
    assert caught.value.causes == (("spec.x", "must be 1"),)


def test_the_page_of_a_proxy_is_quoted(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(403, b"<html>who are you</html>")]
    with pytest.raises(ClusterError, match=r"status 403.*who are you"):
        cluster.get(PODS, "a")


# Tries


def test_temporary_errors_are_retried(cluster: ApiCluster, server: ApiServer, pauses: list[float]) -> None:
    server.answers = [status(500), status(503), Answer(429, {}, headers={"Retry-After": "7"}), Answer(body=pod("a"))]
    assert cluster.get(PODS, "a") == pod("a")
    assert len(pauses) == 3
    assert pauses[2] >= 5, "as long as the server asked for"


def test_a_read_timeout_is_retried(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(hang=True), Answer(body=pod("a"))]
    assert cluster.get(PODS, "a") == pod("a")


def test_a_truncated_response_is_retried(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [
        Answer(body=pod("a" * 99), cut=True),
        Answer(body=[b'{"metadata'], cut=True),
        Answer(body=pod("a")),
    ]
    assert cluster.get(PODS, "a") == pod("a")


def test_the_last_try_raises_the_message_of_the_server(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [status(500, "etcd leader changed")]
    with pytest.raises(UnreachableError, match="etcd leader changed"):
        cluster.get(PODS, "a")
    assert len(server.requests) == TRIES


def test_a_refused_connection_is_unreachable(tmp_path: Path) -> None:
    with api_server() as gone:
        file = gone.kubeconfig(tmp_path)
    transport = Transport(lambda: config.new_client_from_config(file), pause=lambda _: None)
    with pytest.raises(UnreachableError, match="refused"):
        ApiCluster(transport, "team").get(PODS, "a")


def test_a_server_without_tls_is_not_retried(tmp_path: Path, pauses: list[float]) -> None:
    with api_server() as plain:
        plain.address = plain.address.replace("http:", "https:")
        file = plain.kubeconfig(tmp_path)
        transport = Transport(lambda: config.new_client_from_config(file), pause=pauses.append)
        with pytest.raises(UnreachableError, match=r"WRONG_VERSION_NUMBER|wrong version number|record layer"):
            ApiCluster(transport, "team").get(PODS, "a")
    assert not pauses


def test_an_untrusted_certificate_is_not_retried(tmp_path: Path, pauses: list[float]) -> None:
    certificate = tmp_path / "server.pem"
    made = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*made.split(), "-keyout", certificate, "-out", tmp_path / "c"], check=True, capture_output=True)
    certificate.write_bytes(certificate.read_bytes() + (tmp_path / "c").read_bytes())
    with api_server(certificate) as untrusted:
        file = untrusted.kubeconfig(tmp_path)
        transport = Transport(lambda: config.new_client_from_config(file), pause=pauses.append)
        with pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
            ApiCluster(transport, "team").get(PODS, "a")
    assert not pauses


# Lists


def test_list_reads_all_pages(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [page(pod("a"), more="next"), page(pod("b"))]
    assert [item["metadata"]["name"] for item in cluster.list(PODS, {"run": "r"})] == ["a", "b"]
    assert server.queries[1] == {"limit": "500", "labelSelector": "run=r", "continue": "next"}


def test_list_continues_after_an_expired_continue_token(cluster: ApiCluster, server: ApiServer) -> None:
    expired = status(410, "too old", metadata={"continue": "fresh"})
    server.answers = [page(pod("a"), more="next"), expired, page(pod("b"))]
    assert [item["metadata"]["name"] for item in cluster.list(PODS)] == ["a", "b"]
    assert server.queries[2]["continue"] == "fresh"


def test_a_restarted_list_yields_no_duplicates(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [page(pod("a"), more="next"), status(410, "too old"), page(pod("a"), pod("b"))]
    assert [item["metadata"]["name"] for item in cluster.list(PODS)] == ["a", "b"]


# Watches


def told(cluster: ApiCluster, number: int) -> list[tuple[str, str]]:
    """The first changes that a watch yields."""
    changes = (change for change in cluster.watch(PODS, {"run": "r"}) if change is not None)
    return [(change, item["metadata"]["name"]) for change, item in itertools.islice(changes, number)]


def test_watch_yields_existing_objects_and_changes(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [page(pod("a")), events(("MODIFIED", pod("a", 2)), ("DELETED", pod("a", 3)))]
    assert told(cluster, 3) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


def test_a_closed_watch_is_reopened_at_its_version(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [
        page(pod("a")),
        events(("BOOKMARK", pod("", 7))),
        status(500),
        events(("MODIFIED", pod("a", 8))),
    ]
    assert told(cluster, 2)[1] == ("MODIFIED", "a")
    assert [query.get("resourceVersion") for query in server.queries] == [None, "1", "7", "7"]


def test_a_watch_interrupted_inside_a_line_yields_it_once(cluster: ApiCluster, server: ApiServer) -> None:
    whole = events(("MODIFIED", pod("a", 2)), ("MODIFIED", pod("a", 3)))
    first, second = whole.body
    server.answers = [
        page(pod("a")),
        Answer(body=[first, second[:20]], cut=True),
        Answer(body=[second[:30], second[30:]]),
    ]
    assert told(cluster, 3)[1:] == [("MODIFIED", "a")] * 2
    assert server.queries[2]["resourceVersion"] == "2"


@pytest.mark.parametrize("in_stream", [True, False])
def test_an_expired_watch_lists_again_and_yields_missed_changes(
    cluster: ApiCluster, server: ApiServer, in_stream: bool
) -> None:
    gone = events(("ERROR", {"code": 410, "message": "too old"})) if in_stream else status(410, "too old")
    before, after = page(pod("a"), pod("b"), pod("c")), page(pod("b"), pod("c", 5), pod("d"), version=9)
    server.answers = [before, gone, after, events(("MODIFIED", pod("d", 10)))]
    assert told(cluster, 7)[3:] == [("DELETED", "a"), ("MODIFIED", "c"), ("ADDED", "d"), ("MODIFIED", "d")]


def test_watch_yields_none_while_the_api_is_unreachable(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [status(503)]
    assert list(itertools.islice(cluster.watch(PODS, {}), 2)) == [None, None]


def test_watch_pauses_before_it_reopens(cluster: ApiCluster, server: ApiServer, pauses: list[float]) -> None:
    server.answers = [page(pod("a")), events(("BOOKMARK", pod("", 2)))]
    list(itertools.islice(cluster.watch(PODS, {}), 5))
    assert len(pauses) == len(server.requests) - 2  # but for the list and the last


# Logs


def test_logs_yields_times_and_lines(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body=[b"2026-01-31T12:00:00.1Z one\n2026-01-31T12:00:00.2Z", b" two words\n"])]
    lines = list(cluster.logs("a", "pytorch", since="2026-01-31T12:00:00Z", follow=True))
    assert lines == [("2026-01-31T12:00:00.1Z", "one"), ("2026-01-31T12:00:00.2Z", "two words")]
    assert server.queries[0] == {
        "container": "pytorch",
        "timestamps": "true",
        "follow": "true",
        "sinceTime": "2026-01-31T12:00:00Z",
    }


def test_logs_with_empty_lines_invalid_utf_8_and_no_final_newline(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body=b"t1 \nt2 \xff\nt3\nt4 end")]
    assert list(cluster.logs("a", "c")) == [("t1", ""), ("t2", "�"), ("t3", ""), ("t4", "end")]


def test_a_very_long_line_is_split(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body=[b"t1 " + b"x" * 2**16, b"x" * 2**17, b"\nt2 y\n"])]
    *pieces, last = cluster.logs("a", "c")
    assert {stamp for stamp, _ in pieces} == {"t1"}
    assert max(len(text) for _, text in pieces) <= 2**16
    assert sum(len(text) for _, text in pieces) == 3 * 2**16
    assert last == ("t2", "y")


def test_an_interrupted_log_yields_only_complete_lines(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body=[b"t1 one\nt2 tw"], cut=True)]
    lines = cluster.logs("a", "c")
    assert next(lines) == ("t1", "one")
    with pytest.raises(UnreachableError, match="was interrupted"):
        next(lines)


def test_a_log_shorter_than_its_content_length_was_interrupted(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body=b"t1 one\n" + b"t2 two\n" * 10, cut=True)]
    with pytest.raises(UnreachableError, match="was interrupted"):
        list(cluster.logs("a", "c"))


def test_a_connection_with_unread_data_is_not_reused(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body=[b"t1 one\n", b"t2 two\n" * 9999]), Answer(body=pod("a"))]
    lines = cluster.logs("a", "c")
    next(lines)
    lines.close()  # type: ignore[attr-defined]
    assert cluster.get(PODS, "a") == pod("a")


def test_a_container_without_a_log_is_not_found(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [status(400, 'container "pytorch" in pod "a" is waiting to start: PodInitializing')]
    with pytest.raises(NotFoundError, match="PodInitializing"):
        next(cluster.logs("a", "pytorch"))
