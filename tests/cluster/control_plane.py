"""etcd, the API server, the controllers and the scheduler, as processes of this machine."""

from tests.cluster.daemons import Daemon, answers
from tests.cluster.layout import API_PORT, BIN, CONFIG, DOMAIN, NODE_IP, PKI, SERVICE_NETWORK, STATE

ETCD_PORT, ETCD_PEER_PORT = 23790, 23800  # not etcd's own, which Debian's service may have
CONTROLLERS_PORT, SCHEDULER_PORT = 10257, 10259
ETCD = f"http://127.0.0.1:{ETCD_PORT}"
API = f"https://{NODE_IP}:{API_PORT}"


def daemons() -> list[Daemon]:
    return [_etcd(), _api_server(), _controllers(), _scheduler()]


def _etcd() -> Daemon:
    peer = f"http://127.0.0.1:{ETCD_PEER_PORT}"
    command = [
        "etcd",
        "--name=cpmbee",
        f"--data-dir={STATE}/etcd",
        f"--listen-client-urls={ETCD}",
        f"--advertise-client-urls={ETCD}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=cpmbee={peer}",
    ]
    return Daemon("etcd", command, lambda: answers(f"{ETCD}/health"), ("127.0.0.1", ETCD_PORT))


def _api_server() -> Daemon:
    command = [
        f"{BIN}/kube-apiserver",
        f"--etcd-servers={ETCD}",
        f"--bind-address={NODE_IP}",  # the bridge: nothing is served to other machines
        f"--advertise-address={NODE_IP}",
        f"--secure-port={API_PORT}",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--client-ca-file={PKI}/ca.crt",
        f"--tls-cert-file={PKI}/apiserver.crt",
        f"--tls-private-key-file={PKI}/apiserver.key",
        f"--kubelet-client-certificate={PKI}/apiserver-to-kubelet.crt",
        f"--kubelet-client-key={PKI}/apiserver-to-kubelet.key",
        "--kubelet-preferred-address-types=InternalIP",  # the node's name is in no DNS
        f"--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}",
        f"--service-account-signing-key-file={PKI}/service-accounts.key",
        f"--service-account-key-file={PKI}/service-accounts.key",
    ]
    ready = f"{API}/readyz"
    return Daemon("kube-apiserver", command, lambda: answers(ready, authority=PKI / "ca.crt"), (NODE_IP, API_PORT))


def _controllers() -> Daemon:
    command = [
        f"{BIN}/kube-controller-manager",
        f"--kubeconfig={CONFIG}/controller-manager.kubeconfig",
        "--bind-address=127.0.0.1",
        f"--secure-port={CONTROLLERS_PORT}",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--flex-volume-plugin-dir={STATE}/volume-plugins",  # by default one under /usr, which it makes
        f"--root-ca-file={PKI}/ca.crt",
        f"--service-account-private-key-file={PKI}/service-accounts.key",
        f"--cluster-signing-cert-file={PKI}/ca.crt",
        f"--cluster-signing-key-file={PKI}/ca.key",
    ]
    health = f"https://127.0.0.1:{CONTROLLERS_PORT}/healthz"
    return Daemon("kube-controller-manager", command, lambda: answers(health), ("127.0.0.1", CONTROLLERS_PORT))


def _scheduler() -> Daemon:
    command = [
        f"{BIN}/kube-scheduler",
        f"--kubeconfig={CONFIG}/scheduler.kubeconfig",
        "--bind-address=127.0.0.1",
        f"--secure-port={SCHEDULER_PORT}",
        "--leader-elect=false",
    ]
    health = f"https://127.0.0.1:{SCHEDULER_PORT}/healthz"
    return Daemon("kube-scheduler", command, lambda: answers(health), ("127.0.0.1", SCHEDULER_PORT))
