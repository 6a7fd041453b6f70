"""`python -m tests.cluster up|down|status|build`: a Kubernetes cluster of one node on this machine."""

import argparse
import fcntl
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster import addons, binaries, certificates, containers, control_plane, images, machine, network, node
from tests.cluster.daemons import kill, running
from tests.cluster.layout import BIN, KUBECONFIG, STATE, ClusterError

DAEMONS = [
    "kubelet",  # the first to be stopped: it would start again what ends
    "kube-proxy",
    "coredns",
    "kube-scheduler",
    "kube-controller-manager",
    "kube-apiserver",
    "etcd",
    "containerd",
]

log = logging.getLogger(__name__)


def up() -> None:
    """Start the cluster, or restart its missing parts."""
    started = time.monotonic()
    machine.check()
    machine.install_packages()
    machine.check_network()
    binaries.build()
    machine.prepare()
    if network.make_bridge():
        node.kill_pods()  # those that were there before are attached to nothing
    network.add_rules()
    certificates.make()
    node.write_config()
    node.containerd().up()
    containers.import_program(node.PAUSE, BIN / "pause", "/pause")
    for daemon in [*control_plane.daemons(), *node.daemons()]:
        daemon.up()
    addons.dns().up()
    addons.wait_for_node()
    addons.definitions()
    addons.training_operator()
    log.info("The cluster is up after %.0f s.", time.monotonic() - started)
    sys.stdout.write(f"export KUBECONFIG={KUBECONFIG} PATH={BIN}:$PATH\n")


def down() -> None:
    """Remove the cluster; what was built for it stays in the cache."""
    if not machine.MARK.exists():
        log.info("There is no cluster in %s.", STATE)
        return
    for name in DAEMONS:
        kill(name)
    log.info("Stopping the pods")
    node.remove_pods()
    network.remove()
    machine.restore()
    node.remove_files()
    log.info("The cluster is gone.")


def status() -> None:
    """Report which daemons run."""
    if not machine.MARK.exists():
        raise ClusterError(f"There is no cluster in {STATE}: `make cluster` makes one.")
    dead = [name for name in DAEMONS if not running(name)]
    for name in DAEMONS:
        sys.stdout.write(f"{name:24} {'ended' if name in dead else 'runs'}\n")
    if dead:
        raise ClusterError("Not all of the cluster runs: run `make cluster` to repair it.")
    sys.stdout.write(addons.kubectl("get", "nodes,deployments", "--all-namespaces"))


def build() -> None:
    """Make what is slow to make for a cluster and the images on it, into the cache."""
    machine.check()
    machine.install_packages(machine.PACKAGES | images.PACKAGES)
    binaries.build()
    images.build()


@contextmanager
def alone() -> Iterator[None]:
    """Hold the lock against a concurrent start or stop of the cluster."""
    STATE.mkdir(parents=True, exist_ok=True)
    folder = os.open(STATE, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
        if STATE.exists() and not any(STATE.iterdir()):
            STATE.rmdir()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("command", choices=["up", "down", "status", "build"])
    command = {"up": up, "down": down, "status": status, "build": build}[parser.parse_args().command]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        machine.need_root()
        with alone():
            command()
    except ClusterError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
