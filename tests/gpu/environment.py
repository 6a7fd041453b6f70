"""Creates an environment for the GPU tests on top of a Python with CUDA's torch: `make test-gpu GPU_PYTHON=python3`.

Packages of `pyproject.toml` that are missing on the machine are installed below `.venv-gpu`, in the versions that
`locks/dev.txt` pins; torch and its dependencies remain those of the machine. BMTrain is installed from a wheel or, for
Python 3.12, built from its sources with the machine's `nvcc`. Prints the path of the environment's Python. Imports only
the standard library. pip's settings apply: PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER installs from a folder.
"""

import importlib
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "locks" / "dev.txt"
LEFT_OUT = {"torch", "bmtrain", "sklearn", "nvidia-nccl-cu11"}
"""torch is the machine's, BMTrain is installed separately, the rest is excluded in `locks/overrides.txt`."""


def main() -> None:
    folder = ROOT / ".venv-gpu" / f"{sys.version_info.major}.{sys.version_info.minor}-torch-{_torch_version()}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"Creating {folder} ...", file=sys.stderr)
        try:
            venv.create(folder, clear=True, with_pip=True)
        except subprocess.CalledProcessError:
            sys.exit(f"{sys.executable} cannot create a virtual environment with pip; on Debian, install python3-venv")
        own = subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        )
        # The machine's packages come last, even if GPU_PYTHON is itself in a virtual environment.
        theirs = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
        lines = [f"import site; site.addsitedir({path!r})\n" for path in theirs]
        (Path(own.strip()) / "machine.pth").write_text("".join(lines), encoding="utf-8")
        if subprocess.run([python, __file__, "fill"], stdout=sys.stderr, check=False).returncode:
            sys.exit(f"cannot complete {folder}; see the messages above")
        (folder / "complete").touch()
    print(python)


def _torch_version() -> str:
    if sys.version_info < (3, 11):
        sys.exit(f"{sys.executable} is Python {sys.version.split()[0]}; Python 3.11 or newer is required")
    try:
        import torch
    except ImportError as error:
        sys.exit(f"{sys.executable} has no torch ({error}); set GPU_PYTHON to a Python that has it")
    if torch.version.cuda is None:
        sys.exit(f"torch {torch.__version__} of {sys.executable} was built without CUDA")
    return torch.__version__


def fill() -> None:
    """Install the packages that are missing in the Python that runs this."""
    pip("install", ["setuptools"])  # builds source distributions
    tried: set[str] = set()
    while missing := unmet(requirements()):
        if missing <= tried:
            sys.exit(f"{LOCK.name} has no version that satisfies the requirements for {', '.join(sorted(missing))}")
        pip("install", sorted(missing))
        tried |= missing
    _pip("install", "--editable", str(ROOT))
    if find_spec("bmtrain") is None:
        if sys.version_info < (3, 12):
            pip("install", ["bmtrain"], "--only-binary=bmtrain")
        else:
            build_bmtrain()


def requirements() -> list[str]:
    import tomllib  # missing in versions of Python that `_torch_version` refuses

    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["train"], "pytest", "pytest-timeout"]


def unmet(wanted: list[str]) -> set[str]:
    """Return the distributions that these requirements, or those of installed ones, still require."""
    from pip._vendor.packaging.requirements import Requirement

    missing: set[str] = set()
    todo = [(Requirement(line), {""}) for line in wanted]
    seen = set()
    while todo:
        requirement, extras = todo.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        applies = requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
        if name in LEFT_OUT or not applies or str(requirement) in seen:
            continue
        seen.add(str(requirement))
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            missing.add(name)
            continue
        if not requirement.specifier.contains(found.version, prereleases=True):
            missing.add(name)
            continue
        todo += [(Requirement(line), {"", *requirement.extras}) for line in found.requires or []]
    return missing


def pip(command: str, names: list[str], *options: str) -> None:
    """Run pip for only these distributions, with the versions and hashes of the lock file."""
    blocks = {block.partition("==")[0]: block for block in re.split(r"(?m)^(?=\w)", LOCK.read_text(encoding="utf-8"))}
    if unknown := [name for name in names if name not in blocks]:
        sys.exit(f"{LOCK.name} does not have {', '.join(unknown)}")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("".join(blocks[name] for name in names))
        file.flush()
        _pip(command, "--require-hashes", *options, "-r", file.name)


def _pip(command: str, *options: str) -> None:
    fixed = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    if subprocess.run([sys.executable, "-m", "pip", command, *fixed, *options], check=False).returncode:
        sys.exit(f"pip {command} failed; see its messages above")
    importlib.invalidate_caches()


def build_bmtrain() -> None:
    """Call `nvcc` directly: BMTrain's CMake file requires architectures that newer versions do not support."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which("nvcc", path=os.pathsep.join([f"{home}/bin", os.environ.get("PATH", "")]))
    if nvcc is None:
        sys.exit(f"BMTrain must be built, but CUDA's compiler nvcc is neither in {home}/bin (CUDA_HOME) nor on PATH")
    torch, nccl = find_spec("torch"), find_spec("nvidia.nccl")
    assert torch is not None
    assert torch.submodule_search_locations is not None
    includes = [
        f"{torch.submodule_search_locations[0]}/include",
        sysconfig.get_path("include"),
    ]  # torch includes pybind11
    libraries = []
    if nccl is not None and nccl.submodule_search_locations is not None:
        place = nccl.submodule_search_locations[0]
        includes.append(f"{place}/include")
        libraries.append(f"-L{place}/lib")
    with tempfile.TemporaryDirectory() as folder:
        pip("download", ["bmtrain"], "--no-binary=bmtrain", "--dest", folder)
        with tarfile.open(next(Path(folder).glob("bmtrain-*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
        source = next(path for path in Path(folder).glob("bmtrain-*") if path.is_dir())
        command = [nvcc, "-shared", "-O2", "-std=c++17", "-arch=native", "-Xcompiler=-fPIC,-march=native"]
        command += [f"-I{path}" for path in [source / "csrc" / "include", *includes]]
        command += [str(source / "csrc" / "bind.cpp"), *map(str, (source / "csrc" / "cuda").glob("*.cu"))]
        command += ["-o", str(source / "bmtrain" / f"C{sysconfig.get_config_var('EXT_SUFFIX')}")]
        print("Building BMTrain ...", flush=True)
        if subprocess.run([*command, *libraries, "-l:libnccl.so.2"], check=False).returncode:
            sys.exit("nvcc failed to build BMTrain; see its messages above")
        shutil.move(source / "bmtrain", sysconfig.get_path("purelib"))


if __name__ == "__main__":
    fill() if sys.argv[1:] == ["fill"] else main()
