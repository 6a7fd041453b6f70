"""The images that the node has, since it can pull none: made of one file, or imported."""

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from pathlib import Path

from tests.cluster.layout import CONTAINERD_SOCKET, STATE, ClusterError
from tests.cluster.machine import run

CTR = ["ctr", "--address", str(CONTAINERD_SOCKET), "--namespace", "k8s.io"]
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def images() -> list[str]:
    """The names of the node's images."""
    names = run(*CTR, "images", "list", "--quiet").split()
    return [name for name in names if not name.startswith("sha256:")]


def import_image(archive: Path) -> None:
    """Import all images of an archive that `docker save` or `buildah push docker-archive:` wrote."""
    run(*CTR, "images", "import", archive)


def import_layout(layout: Path) -> None:
    """Import the images of an OCI layout under the names that they have there. What the node has is not sent again."""
    present = set(run(*CTR, "content", "list", "--quiet").split())
    index = json.loads((layout / "index.json").read_text())
    for image in index["manifests"]:
        image["annotations"]["io.containerd.image.name"] = image["annotations"]["org.opencontainers.image.ref.name"]
    importing = subprocess.Popen([*CTR, "images", "import", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert importing.stdin is not None
    with importing.stdin, tarfile.open(fileobj=importing.stdin, mode="w|") as archive:
        _add(archive, "oci-layout", (layout / "oci-layout").read_bytes())
        for blob in (layout / "blobs" / "sha256").iterdir():
            if f"sha256:{blob.name}" not in present:
                archive.add(blob, f"blobs/sha256/{blob.name}")
        _add(archive, "index.json", json.dumps(index).encode())
    if importing.wait():
        raise ClusterError(f"`ctr images import` of {layout} failed: its output is above.")


def import_program(name: str, program: Path, path: str) -> None:
    """Make an image with one static program in it, at `path`, and import it unless it is there."""
    if name in images():
        return
    archive = STATE / "image.tar"
    try:
        _write_archive(archive, name, program, path)
        import_image(archive)
    finally:
        archive.unlink(missing_ok=True)


def _write_archive(archive: Path, name: str, program: Path, path: str) -> None:
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as contents:
        temporary = tarfile.TarInfo("tmp")
        temporary.type, temporary.mode = tarfile.DIRTYPE, 0o1777
        contents.addfile(temporary)
        entry = tarfile.TarInfo(path.lstrip("/"))
        entry.size, entry.mode = program.stat().st_size, 0o755
        with program.open("rb") as file:
            contents.addfile(entry, file)
    config = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Entrypoint": [path], "User": "65534:65534"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as contents:
        for file_name, content in (
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            _add(contents, file_name, content)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
