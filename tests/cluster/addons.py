"""What makes the cluster one for training jobs: names for Services, the training operator, kinds of others."""

import logging
import time
from pathlib import Path

import yaml

from tests.cluster import binaries, containers
from tests.cluster.daemons import Daemon, answers, wait_for
from tests.cluster.layout import BIN, CONFIG, DOMAIN, KUBECONFIG, NODE, NODE_IP, STATE, ClusterError
from tests.cluster.machine import run

DNS_READY = 10246
MANIFESTS = Path(__file__).parent / "manifests"
COREFILE = f"""\
. {{
    bind {NODE_IP}
    errors
    ready 127.0.0.1:{DNS_READY}
    kubernetes {DOMAIN} in-addr.arpa {{
        kubeconfig {CONFIG}/coredns.kubeconfig
        fallthrough in-addr.arpa
    }}
    forward . /etc/resolv.conf
    cache 30 {{
        disable success {DOMAIN}
        disable denial {DOMAIN}
    }}
}}
"""

log = logging.getLogger(__name__)


def kubectl(*arguments: str | Path) -> str:
    common = (f"--kubeconfig={KUBECONFIG}", f"--cache-dir={STATE}/kubectl-cache")
    return run(BIN / "kubectl", *common, *arguments)


def dns() -> Daemon:
    """The DNS server, which is a process of the node at the bridge's address."""
    (CONFIG / "Corefile").write_text(COREFILE)
    kubectl("apply", "--server-side", "-f", MANIFESTS / "coredns.yaml")
    ready = f"http://127.0.0.1:{DNS_READY}/ready"
    return Daemon("coredns", [f"{BIN}/coredns", "-conf", f"{CONFIG}/Corefile"], lambda: answers(ready), (NODE_IP, 53))


def wait_for_node() -> None:
    def is_ready() -> bool:
        path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        try:
            return kubectl("get", "node", NODE, "-o", path) == "True"
        except ClusterError:  # it has not registered yet
            return False

    wait_for(is_ready, 60, "The node is not Ready", alive="kubelet")


def training_operator() -> None:
    """The operator by its own manifests; an accepted job is the proof that its webhook answers."""
    if _accepts_jobs():
        log.info("training operator runs")
        return
    log.info("Starting the training operator")
    manifests = binaries.OPERATOR_MANIFESTS.read_text()
    deployment = next(item for item in yaml.safe_load_all(manifests) if item["kind"] == "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    containers.import_program(container["image"], BIN / "training-operator.v1", container["command"][0])
    kubectl("apply", "--server-side", "--force-conflicts", "-f", binaries.OPERATOR_MANIFESTS)
    deadline = time.monotonic() + 180
    while not _accepts_jobs():
        if time.monotonic() > deadline:
            _try_a_job()  # its error says why
        time.sleep(0.5)


def definitions() -> None:
    """Define the kinds of our manifests that no operator here handles, so that the API server validates them."""
    kubectl("apply", "--server-side", "-f", binaries.DEFINITIONS)

    def are_known() -> bool:
        try:
            kubectl("wait", "--for=condition=Established", "--timeout=5s", "-f", binaries.DEFINITIONS)
        except ClusterError:  # nor does `wait` wait where there is no condition yet
            return False
        return True

    wait_for(are_known, 60, "The API server does not serve the kinds of other operators", alive="kube-apiserver")


def _accepts_jobs() -> bool:
    try:
        _try_a_job()
    except ClusterError:
        return False
    return True


def _try_a_job() -> None:
    kubectl("create", "--dry-run=server", "-f", MANIFESTS / "trial-job.yaml")
