"""Where the cluster's parts lie on this machine, and its addresses."""

import os
from pathlib import Path

STATE = Path(os.environ.get("CPMBEE_CLUSTER") or "/var/lib/cpmbee-cluster").absolute()
"""All that a running cluster owns; `down` removes it."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cpmbee-cluster"
BIN = CACHE / "bin"
GO = Path(__file__).parent / "go"

KUBECONFIG = STATE / "kubeconfig"
PKI = STATE / "pki"
CONFIG = STATE / "config"
CONTAINERD_SOCKET = STATE / "containerd.sock"
CNI_PLUGINS = Path("/usr/lib/cni")
CGROUPS = Path("/sys/fs/cgroup")

NODE = "node-1"
BRIDGE = "cpmbee0"
POD_NETWORK_NAME = "cpmbee-pods"
NODE_IP = "10.244.0.1"
POD_NETWORK = "10.244.0.0/24"
SERVICE_NETWORK = "10.96.0.0/16"
API_SERVICE_IP = "10.96.0.1"
API_PORT = 6443
DOMAIN = "cluster.local"


class ClusterError(Exception):
    """Report why the cluster cannot run on this machine."""
