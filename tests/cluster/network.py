"""The pods' bridge and the packet filter's rules, and the way back."""

import json
import logging
import re
import subprocess
from pathlib import Path

from tests.cluster.layout import BRIDGE, NODE_IP, POD_NETWORK, POD_NETWORK_NAME, SERVICE_NETWORK
from tests.cluster.machine import run

COMMENT = "cpmbee-cluster"
RULES = [  # (table, chain, rule): pods reach the node, each other and what the machine reaches
    ("filter", "INPUT", ["-i", BRIDGE, "-j", "ACCEPT"]),
    ("filter", "FORWARD", ["-i", BRIDGE, "-j", "ACCEPT"]),
    ("filter", "FORWARD", ["-o", BRIDGE, "-j", "ACCEPT"]),
    ("nat", "POSTROUTING", ["-s", POD_NETWORK, "!", "-d", POD_NETWORK, "-j", "MASQUERADE"]),
]
OURS = re.compile(r"\bKUBE-|" + COMMENT)

CNI_RESULTS = Path("/var/lib/cni/results")
"""Where plugins keep what they gave a pod; podman's may lie there too."""

log = logging.getLogger(__name__)


def make_bridge() -> bool:
    """Return whether it was created."""
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        return False
    log.info("Making the bridge %s", BRIDGE)
    run("ip", "link", "add", BRIDGE, "mtu", str(mtu()), "type", "bridge")
    run("ip", "address", "add", f"{NODE_IP}/{POD_NETWORK.partition('/')[2]}", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    run("ip", "route", "add", SERVICE_NETWORK, "dev", BRIDGE)  # so a machine without a default route reaches Services
    return True


def add_rules() -> None:
    for table, chain, rule in RULES:
        marked = [*rule, "-m", "comment", "--comment", COMMENT]
        there = subprocess.run(["iptables", "-w", "-t", table, "-C", chain, *marked], capture_output=True, check=False)
        if there.returncode:
            run("iptables", "-w", "-t", table, "-I", chain, *marked)


def mtu() -> int:
    """The packet size of the way out: pods with a larger one would lose their packets there."""
    default = json.loads(run("ip", "-json", "-4", "route", "show", "default"))
    return int(Path(f"/sys/class/net/{default[0]['dev']}/mtu").read_text()) if default else 1500


def remove() -> None:
    for port in Path(f"/sys/class/net/{BRIDGE}/brif").glob("*"):
        run("ip", "link", "delete", port.name)
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        run("ip", "link", "delete", BRIDGE)
    for result in CNI_RESULTS.glob(f"{POD_NETWORK_NAME}-*-eth0"):
        pod = result.name.removeprefix(f"{POD_NETWORK_NAME}-").removesuffix("-eth0")
        result.unlink()
        (CNI_RESULTS / f"cni-loopback-{pod}-lo").unlink(missing_ok=True)
    for family in ("iptables", "ip6tables"):
        _remove_rules(family)


def _remove_rules(family: str) -> None:
    """Delete our rules and those of Kubernetes, and nothing else."""
    table = ""
    removal: list[str] = []
    chains: list[str] = []
    for line in run(f"{family}-save").splitlines():
        if line.startswith("*"):
            table, removal, chains = line, [], []
        elif line.startswith(":KUBE-"):
            chains.append(line[1:].split()[0])
        elif line.startswith("-A ") and OURS.search(line) and not line.startswith("-A KUBE-"):
            removal.append(line.replace("-A ", "-D ", 1))
        elif line == "COMMIT" and (removal or chains):
            flush = [f"-F {chain}" for chain in chains]
            delete = [f"-X {chain}" for chain in chains]
            run(f"{family}-restore", "-w", "--noflush", stdin="\n".join([table, *removal, *flush, *delete, line, ""]))
