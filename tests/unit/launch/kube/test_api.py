"""The API's transport, against a real HTTP server that plays good and bad answers."""

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


def test_an_object_is_asked_for_in_the_namespace_with_the_token(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body=pod("a"))]
    assert cluster.get(PODS, "a")["metadata"]["name"] == "a"
    assert server.requests[0][0] == "/api/v1/namespaces/team/pods/a"
    assert server.tokens() == ["Bearer old"]


def test_a_cluster_wide_kind_is_asked_for_without_a_namespace(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body=pod("n"))]
    cluster.get(NODES, "n")
    assert server.requests[0][0] == "/api/v1/nodes/n"


def test_a_creation_is_strict_and_may_be_dry(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(201, pod("a"))]
    cluster.create(PODS, pod("a"), dry_run=True)
    assert server.queries == [{"fieldValidation": "Strict", "dryRun": "All"}]
    assert server.requests[0][3] == pod("a")


def test_what_the_server_warns_of_is_told(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(201, pod("a"), headers={"Warning": r'299 - "would violate \"x\"", 299 - "old"'})]
    told: list[str] = []
    cluster.create(PODS, pod("a"), on_warning=told.append)
    assert told == ['would violate "x"', "old"]


def test_only_the_metadata_of_an_object_is_fetched(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body=pod("s"))]
    cluster.get_metadata("api/v1/secrets", "s")
    assert "as=PartialObjectMetadata" in server.requests[0][2]["accept"]


def test_the_servers_clock_is_read(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body={"gitVersion": "v1.34.4"})]
    assert cluster.server_time().tzinfo is not None


def test_a_deletion_names_the_object_by_its_uid(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body={})]
    cluster.delete(PODS, "a", "uid-a")
    assert server.requests[0][3]["preconditions"] == {"uid": "uid-a"}


@pytest.mark.parametrize(
    ("code", "kind"),
    [(404, NotFoundError), (409, ConflictError), (403, ClusterError), (401, ClusterError), (500, UnreachableError)],
)
def test_a_refusal_keeps_the_servers_words(
    cluster: ApiCluster, server: ApiServer, code: int, kind: type[Exception]
) -> None:
    server.answers = [status(code, "because of this")]
    with pytest.raises(kind, match="because of this"):
        cluster.get(PODS, "a")


def test_an_invalid_object_is_refused_by_its_causes(cluster: ApiCluster, server: ApiServer) -> None:
    causes = [{"field": "spec.x", "message": "must be 1"}]
    server.answers = [status(422, "invalid", details={"causes": causes})]
    with pytest.raises(RejectedError) as caught:
        cluster.create(PODS, pod("a"))
    assert caught.value.causes == (("spec.x", "must be 1"),)


def test_a_proxys_page_is_quoted(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(403, b"<html>who are you</html>")]
    with pytest.raises(ClusterError, match=r"status 403.*who are you"):
        cluster.get(PODS, "a")


# Tries


def test_a_burst_of_errors_is_waited_out(cluster: ApiCluster, server: ApiServer, pauses: list[float]) -> None:
    server.answers = [status(500), status(503), Answer(429, {}, headers={"Retry-After": "7"}), Answer(body=pod("a"))]
    assert cluster.get(PODS, "a") == pod("a")
    assert len(pauses) == 3
    assert pauses[2] >= 5, "as long as the server asked for"


def test_a_server_that_hangs_is_tried_again(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(hang=True), Answer(body=pod("a"))]
    assert cluster.get(PODS, "a") == pod("a")


def test_an_answer_that_was_cut_off_is_asked_for_again(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [
        Answer(body=pod("a" * 99), cut=True),
        Answer(body=[b'{"metadata'], cut=True),
        Answer(body=pod("a")),
    ]
    assert cluster.get(PODS, "a") == pod("a")


def test_after_some_tries_the_servers_words_are_an_error(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [status(500, "etcd leader changed")]
    with pytest.raises(UnreachableError, match="etcd leader changed"):
        cluster.get(PODS, "a")
    assert len(server.requests) == TRIES


def test_a_server_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    with api_server() as gone:
        file = gone.kubeconfig(tmp_path)
    transport = Transport(lambda: config.new_client_from_config(file), pause=lambda _: None)
    with pytest.raises(UnreachableError, match="refused"):
        ApiCluster(transport, "team").get(PODS, "a")


def test_a_server_that_does_not_speak_tls_is_told_at_once(tmp_path: Path, pauses: list[float]) -> None:
    with api_server() as plain:
        plain.address = plain.address.replace("http:", "https:")
        file = plain.kubeconfig(tmp_path)
        transport = Transport(lambda: config.new_client_from_config(file), pause=pauses.append)
        with pytest.raises(UnreachableError, match=r"WRONG_VERSION_NUMBER|wrong version number|record layer"):
            ApiCluster(transport, "team").get(PODS, "a")
    assert not pauses


def test_a_certificate_that_nobody_vouches_for_is_told_at_once(tmp_path: Path, pauses: list[float]) -> None:
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


def test_a_list_is_read_page_by_page(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [page(pod("a"), more="next"), page(pod("b"))]
    assert [item["metadata"]["name"] for item in cluster.list(PODS, {"run": "r"})] == ["a", "b"]
    assert server.queries[1] == {"limit": "500", "labelSelector": "run=r", "continue": "next"}


def test_a_list_goes_on_where_a_page_has_expired(cluster: ApiCluster, server: ApiServer) -> None:
    expired = status(410, "too old", metadata={"continue": "fresh"})
    server.answers = [page(pod("a"), more="next"), expired, page(pod("b"))]
    assert [item["metadata"]["name"] for item in cluster.list(PODS)] == ["a", "b"]
    assert server.queries[2]["continue"] == "fresh"


def test_a_list_that_begins_anew_tells_nothing_twice(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [page(pod("a"), more="next"), status(410, "too old"), page(pod("a"), pod("b"))]
    assert [item["metadata"]["name"] for item in cluster.list(PODS)] == ["a", "b"]


# Watches


def told(cluster: ApiCluster, number: int) -> list[tuple[str, str]]:
    """The first changes that a watch tells."""
    changes = (change for change in cluster.watch(PODS, {"run": "r"}) if change is not None)
    return [(change, item["metadata"]["name"]) for change, item in itertools.islice(changes, number)]


def test_a_watch_tells_what_is_there_and_what_changes(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [page(pod("a")), events(("MODIFIED", pod("a", 2)), ("DELETED", pod("a", 3)))]
    assert told(cluster, 3) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


def test_a_watch_that_ends_is_opened_again_where_it_was(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [
        page(pod("a")),
        events(("BOOKMARK", pod("", 7))),
        status(500),
        events(("MODIFIED", pod("a", 8))),
    ]
    assert told(cluster, 2)[1] == ("MODIFIED", "a")
    assert [query.get("resourceVersion") for query in server.queries] == [None, "1", "7", "7"]


def test_a_watch_that_breaks_off_inside_a_line_tells_it_once(cluster: ApiCluster, server: ApiServer) -> None:
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
def test_a_watch_too_old_lists_again_and_tells_what_it_missed(
    cluster: ApiCluster, server: ApiServer, in_stream: bool
) -> None:
    gone = events(("ERROR", {"code": 410, "message": "too old"})) if in_stream else status(410, "too old")
    before, after = page(pod("a"), pod("b"), pod("c")), page(pod("b"), pod("c", 5), pod("d"), version=9)
    server.answers = [before, gone, after, events(("MODIFIED", pod("d", 10)))]
    assert told(cluster, 7)[3:] == [("DELETED", "a"), ("MODIFIED", "c"), ("ADDED", "d"), ("MODIFIED", "d")]


def test_a_watch_gives_its_reader_a_turn_while_the_api_is_away(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [status(503)]
    assert list(itertools.islice(cluster.watch(PODS, {}), 2)) == [None, None]


def test_a_server_that_ends_watches_at_once_is_not_hammered(
    cluster: ApiCluster, server: ApiServer, pauses: list[float]
) -> None:
    server.answers = [page(pod("a")), events(("BOOKMARK", pod("", 2)))]
    list(itertools.islice(cluster.watch(PODS, {}), 5))
    assert len(pauses) == len(server.requests) - 2  # but for the list and the last


# Logs


def test_a_log_comes_in_times_and_lines(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body=[b"2026-01-31T12:00:00.1Z one\n2026-01-31T12:00:00.2Z", b" two words\n"])]
    lines = list(cluster.logs("a", "pytorch", since="2026-01-31T12:00:00Z", follow=True))
    assert lines == [("2026-01-31T12:00:00.1Z", "one"), ("2026-01-31T12:00:00.2Z", "two words")]
    assert server.queries[0] == {
        "container": "pytorch",
        "timestamps": "true",
        "follow": "true",
        "sinceTime": "2026-01-31T12:00:00Z",
    }


def test_a_log_with_empty_lines_bad_bytes_and_no_last_newline(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body=b"t1 \nt2 \xff\nt3\nt4 end")]
    assert list(cluster.logs("a", "c")) == [("t1", ""), ("t2", "�"), ("t3", ""), ("t4", "end")]


def test_a_line_without_end_comes_in_pieces(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body=[b"t1 " + b"x" * 2**16, b"x" * 2**17, b"\nt2 y\n"])]
    *pieces, last = cluster.logs("a", "c")
    assert {stamp for stamp, _ in pieces} == {"t1"}
    assert max(len(text) for _, text in pieces) <= 2**16
    assert sum(len(text) for _, text in pieces) == 3 * 2**16
    assert last == ("t2", "y")


def test_a_log_that_breaks_off_gives_whole_lines_only(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body=[b"t1 one\nt2 tw"], cut=True)]
    lines = cluster.logs("a", "c")
    assert next(lines) == ("t1", "one")
    with pytest.raises(UnreachableError, match="was interrupted"):
        next(lines)


def test_a_log_shorter_than_announced_broke_off(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body=b"t1 one\n" + b"t2 two\n" * 10, cut=True)]
    with pytest.raises(UnreachableError, match="was interrupted"):
        list(cluster.logs("a", "c"))


def test_a_connection_left_in_the_middle_of_a_log_serves_nobody_else(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [Answer(body=[b"t1 one\n", b"t2 two\n" * 9999]), Answer(body=pod("a"))]
    lines = cluster.logs("a", "c")
    next(lines)
    lines.close()  # type: ignore[attr-defined]
    assert cluster.get(PODS, "a") == pod("a")


def test_a_container_without_a_log_is_not_found(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [status(400, 'container "pytorch" in pod "a" is waiting to start: PodInitializing')]
    with pytest.raises(NotFoundError, match="PodInitializing"):
        next(cluster.logs("a", "pytorch"))
