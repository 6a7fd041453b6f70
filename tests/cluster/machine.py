"""Check the machine, install missing Debian packages, and restore its previous state."""

import ipaddress
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.cluster.layout import BRIDGE, CGROUPS, CNI_PLUGINS, POD_NETWORK, SERVICE_NETWORK, STATE, ClusterError

PACKAGES = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ipset": "ipset",
    "ip": "iproute2",
    "modprobe": "kmod",
    str(CNI_PLUGINS / "bridge"): "containernetworking-plugins",
}
MEMORY_GIB = 6
DISK_GIB = 10

MARK = STATE / "machine.json"
"""How the machine was before; its presence says that the folder is a cluster's."""
NEEDED_SYSCTLS = {"net.ipv4.ip_forward": "1", "net.bridge.bridge-nf-call-iptables": "1"}
KUBELET_SYSCTLS = [  # those that the kubelet sets without being asked
    "vm.overcommit_memory",
    "vm.panic_on_oom",
    "kernel.panic",
    "kernel.panic_on_oops",
    "kernel.keys.root_maxkeys",
    "kernel.keys.root_maxbytes",
]
OUTSIDE = ["/var/lib/kubelet", "/var/lib/cni", "/var/log/containers", "/run/containerd"]
"""Folders that kubelet and containerd make wherever they are told to keep their state."""

log = logging.getLogger(__name__)


def run(*command: str | Path, stdin: str | None = None) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run([str(part) for part in command], input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr or done.stdout).strip()
        raise ClusterError(f"`{' '.join(map(str, command))}` failed ({done.returncode}): {words}")
    return done.stdout


def need_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError("A node needs root: run as root, or point KUBECONFIG at a cluster that you have.")


def check() -> None:
    """Refuse a machine that cannot be a node, before anything is made on it."""
    if STATE.exists() and any(STATE.iterdir()) and not MARK.exists():
        raise ClusterError(f"{STATE} is not a cluster's folder: choose another with CPMBEE_CLUSTER.")
    controllers = CGROUPS / "cgroup.controllers"
    has_memory = "memory" in controllers.read_text().split() if controllers.exists() else False
    if not has_memory and not (CGROUPS / "memory").is_dir():
        raise ClusterError(f"No memory controller under {CGROUPS}: pods could not be limited.")
    if not os.access(CGROUPS, os.W_OK):
        raise ClusterError(f"{CGROUPS} is read-only (is this an unprivileged container?): a node needs to write there.")
    if MARK.exists():
        return
    if others := pod_groups():
        raise ClusterError(f"Another kubelet runs on this machine, or has left its pods: {others[0]} exists.")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if memory < MEMORY_GIB:
        raise ClusterError(
            f"The machine has {memory:.0f} GiB of memory: a cluster with a small job needs {MEMORY_GIB}."
        )
    STATE.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(STATE).free / 2**30
    if free < DISK_GIB:
        raise ClusterError(f"{STATE} has {free:.0f} GiB of free disk: a cluster needs {DISK_GIB}, images come on top.")
    _check_overlayfs()


def pod_groups() -> list[Path]:
    """The control groups of all pods, one for each hierarchy that the machine has."""
    return [group for pattern in ("kubepods", "*/kubepods") for group in CGROUPS.glob(pattern)]


def _check_overlayfs() -> None:
    trial = STATE / "overlay-trial"
    try:
        for name in ("lower", "upper", "work", "merged"):
            (trial / name).mkdir(parents=True, exist_ok=True)
        options = f"lowerdir={trial}/lower,upperdir={trial}/upper,workdir={trial}/work"
        run("mount", "-t", "overlay", "overlay", "-o", options, trial / "merged")
        run("umount", trial / "merged")
    except ClusterError as error:
        raise ClusterError(
            f"overlayfs does not work on {STATE} (CPMBEE_CLUSTER names another disk): {error}"
        ) from error
    finally:
        shutil.rmtree(trial)


def install_packages(packages: Mapping[str, str] = PACKAGES) -> None:
    missing = sorted({package for program, package in packages.items() if not shutil.which(program)})
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise ClusterError(f"Not a Debian machine, and these programs are missing: {', '.join(missing)}.")
    log.info("Installing %s ...", " ".join(missing))
    run("apt-get", "update", "-qq")
    frontend = ("env", "DEBIAN_FRONTEND=noninteractive")
    run(*frontend, "apt-get", "install", "--yes", "-qq", "--no-install-recommends", *missing)


def check_network() -> None:
    """Check that iptables filters bridged packets, and that the addresses are unused."""
    if not Path("/proc/sys/net/bridge").exists():
        run("modprobe", "br_netfilter")
    for table in ("filter", "nat", "mangle"):
        run("iptables", "-t", table, "-S")
    for route in json.loads(run("ip", "-json", "-4", "route")):
        if route["dst"] == "default" or route.get("dev") == BRIDGE:
            continue
        for ours in (POD_NETWORK, SERVICE_NETWORK):
            if ipaddress.ip_network(route["dst"]).overlaps(ipaddress.ip_network(ours)):
                raise ClusterError(
                    f"The machine has a route to {route['dst']} ({route.get('dev')}): the cluster needs {ours}."
                )


def prepare() -> None:
    """Note how the machine is, then set what a node needs."""
    if not MARK.exists():
        before = {
            "sysctls": {name: _sysctl(name).read_text().strip() for name in [*NEEDED_SYSCTLS, *KUBELET_SYSCTLS]},
            "absent": [folder for folder in OUTSIDE if not Path(folder).exists()],
        }
        MARK.write_text(json.dumps(before, indent=2))
    for name, value in NEEDED_SYSCTLS.items():
        _sysctl(name).write_text(value)


def restore() -> None:
    """Set the machine back to how `prepare` found it."""
    before = json.loads(MARK.read_text())
    for name, value in before["sysctls"].items():
        if _sysctl(name).read_text().strip() != value:
            _sysctl(name).write_text(value)
    for folder in before["absent"]:
        shutil.rmtree(folder, ignore_errors=True)


def _sysctl(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")
