"""The one node: containerd, kubelet and kube-proxy, and the containers' end."""

import contextlib
import json
import logging
import os
import shutil
import signal
import time
from pathlib import Path

import yaml

from tests.cluster import containers, machine, network
from tests.cluster.daemons import Daemon, answers
from tests.cluster.layout import (
    BIN,
    BRIDGE,
    CNI_PLUGINS,
    CONFIG,
    CONTAINERD_SOCKET,
    DOMAIN,
    NODE,
    NODE_IP,
    PKI,
    POD_NETWORK,
    POD_NETWORK_NAME,
    STATE,
    ClusterError,
)
from tests.cluster.machine import run

PAUSE = "localhost/pause:1"
KUBELET_PORT, KUBELET_HEALTH, PROXY_HEALTH, PROXY_METRICS = 10250, 10248, 10256, 10249

CONTAINERD_CONFIG = f"""\
version = 2
root = "{STATE}/containerd"
state = "{STATE}/containerd-run"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{STATE}/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{CONFIG}/cni"
"""

log = logging.getLogger(__name__)


def write_config() -> None:
    (CONFIG / "cni").mkdir(exist_ok=True)
    for name, text in {
        "cni/pods.conflist": json.dumps(_pod_network()),
        "containerd.toml": CONTAINERD_CONFIG,
        "kubelet.yaml": yaml.safe_dump(_kubelet_config()),
        "proxy.yaml": yaml.safe_dump(_proxy_config()),
    }.items():
        file = CONFIG / name
        if not file.exists() or file.read_text() != text:  # kube-proxy ends when its file is written
            file.write_text(text)


def containerd() -> Daemon:
    def ready() -> bool:
        try:
            run(*containers.CTR, "version")
        except ClusterError:
            return False
        return True

    return Daemon("containerd", ["containerd", "--config", f"{CONFIG}/containerd.toml"], ready)


def daemons() -> list[Daemon]:
    kubelet = [
        f"{BIN}/kubelet",
        f"--config={CONFIG}/kubelet.yaml",
        f"--kubeconfig={CONFIG}/kubelet.kubeconfig",
        f"--root-dir={STATE}/kubelet",
        f"--cert-dir={STATE}/kubelet/pki",
        f"--hostname-override={NODE}",
        f"--node-ip={NODE_IP}",
    ]
    proxy = [f"{BIN}/kube-proxy", f"--config={CONFIG}/proxy.yaml"]
    kubelet_health, proxy_health = (f"http://127.0.0.1:{port}/healthz" for port in (KUBELET_HEALTH, PROXY_HEALTH))
    return [
        Daemon("kubelet", kubelet, lambda: answers(kubelet_health), (NODE_IP, KUBELET_PORT)),
        Daemon("kube-proxy", proxy, lambda: answers(proxy_health), ("127.0.0.1", PROXY_HEALTH)),
    ]


def _pod_network() -> dict[str, object]:
    addresses = {
        "type": "host-local",
        "dataDir": f"{STATE}/addresses",
        "ranges": [[{"subnet": POD_NETWORK, "gateway": NODE_IP}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "hairpinMode": True,  # a pod reaches itself through its Service
        "mtu": network.mtu(),
        "ipam": addresses,
    }
    return {"cniVersion": "0.4.0", "name": POD_NETWORK_NAME, "plugins": [bridge]}


def _kubelet_config() -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_IP,
        "port": KUBELET_PORT,
        "healthzPort": KUBELET_HEALTH,
        "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": f"{PKI}/ca.crt"}},
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "podLogsDir": f"{STATE}/pod-logs",
        "volumePluginDir": f"{STATE}/volume-plugins",
        "clusterDNS": [NODE_IP],
        "clusterDomain": DOMAIN,
        "cgroupDriver": "cgroupfs",
        "failSwapOn": False,
        "oomScoreAdj": 0,  # a lower one needs rights that a virtual machine's root may lack
        "maxPods": 60,
        "enforceNodeAllocatable": [],
        "systemReserved": {"memory": "3Gi"},  # what the control plane takes of the same machine
        "imageGCHighThresholdPercent": 100,  # an image that is collected could not be pulled again
        "evictionHard": {"memory.available": "200Mi", "nodefs.available": "1Gi", "imagefs.available": "1Gi"},
    }


def _proxy_config() -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": f"{CONFIG}/proxy.kubeconfig"},
        "hostnameOverride": NODE,
        "clusterCIDR": POD_NETWORK,
        "mode": "iptables",
        "iptables": {"localhostNodePorts": False},
        "healthzBindAddress": f"127.0.0.1:{PROXY_HEALTH}",
        "metricsBindAddress": f"127.0.0.1:{PROXY_METRICS}",
        "oomScoreAdj": 0,
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def kill_pods() -> None:
    """Kill every process of every pod; a running kubelet then restarts the pods."""
    deadline = time.monotonic() + 20
    while members := _members():
        if time.monotonic() > deadline:
            raise ClusterError(f"Processes of pods do not die: {members}.")
        for pid in members:
            _kill(pid)
        time.sleep(0.1)


def remove_pods() -> None:
    """End the pods with all that held them; no part of the cluster needs to be alive for it."""
    kill_pods()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"containerd-shim" in command[0] and str(CONTAINERD_SOCKET).encode() in command:
            _kill(int(process.name))
    for group in _pod_groups():
        with contextlib.suppress(FileNotFoundError):
            group.rmdir()


def remove_files() -> None:
    """Unmount what lies under the cluster's folder, and remove it."""
    for mount in reversed(_mounts()):
        run("umount", mount)
    if left := _mounts():  # deleting would reach into what is mounted
        raise ClusterError(f"Still mounted: {', '.join(left)}.")
    shutil.rmtree(STATE)


def _pod_groups() -> list[Path]:
    """The control groups of pods in all hierarchies, the innermost first."""
    return [Path(folder) for top in machine.pod_groups() for folder, _, _ in os.walk(top, topdown=False)]


def _members() -> set[int]:
    pids: set[int] = set()
    for group in _pod_groups():
        with contextlib.suppress(OSError):  # removed meanwhile
            pids.update(map(int, (group / "cgroup.procs").read_text().split()))
    return pids


def _mounts() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [point for point in points if Path(point).is_relative_to(STATE)]


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
