"""promtool, which evaluates alert rules."""

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.cluster.layout import BIN
from tests.cluster.machine import run


@functools.cache
def program() -> str:
    """That of PATH, or else of Debian's package, which is unpacked into the cache and not installed: it would start a
    server. Tests are skipped only where there can be neither."""
    kept = BIN / "promtool"
    if found := shutil.which("promtool") or shutil.which(kept):
        return found
    if not shutil.which("apt-get"):
        pytest.skip("promtool is not in PATH, and this is no Debian machine to take it from")
    BIN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BIN.parent) as folder:
        if download(folder).returncode:
            run("apt-get", "update", "-qq")  # a fresh machine has no package lists
            download(folder).check_returncode()
        (package,) = Path(folder).glob("*.deb")
        run("dpkg", "--extract", package, folder)
        (Path(folder) / "usr/bin/promtool").replace(kept)  # atomic, so concurrent installs are safe
    return str(kept)


def download(folder: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["apt-get", "download", "-qq", "prometheus"], cwd=folder, check=False)


def promtool(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([program(), *arguments], capture_output=True, text=True, check=False)
