"""BMTrain's own Python code without a GPU: its modules are loaded from the installed wheel, with CUDA's devices and
storages replaced by the CPU's in their text, and NCCL's collectives by those of `torch.distributed` (gloo).

What it does with parameters, hooks and blocks is then what it does on GPUs; what is asynchronous there is not.
`import tests.bmtrain_on_cpu` before `bmtrain`.
"""

import re
import sys
from contextlib import nullcontext
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

_FOLDER = Path(next(iter(find_spec("bmtrain").submodule_search_locations)))
_CHANGES = [
    (r'device="cuda"', 'device="cpu"'),
    (r"\.is_cuda\b", ".is_cpu"),
    (r"torch\.cuda\.(\w+Storage)", r"torch.\1"),
    (r"torch\.cuda\.", "sys.modules['tests.bmtrain_on_cpu'].cuda."),
    (r"(?m)^( *)\S+\.record_stream\(.*\)$", r"\1pass"),
]


_COLLECTIVES = """
    allGather allReduce commCount commInitRank commRank getUniqueId groupEnd groupStart reduceScatter
""".split()


class _Stream:
    def __getattr__(self, _name: str) -> Any:
        return lambda *_arguments: None


cuda = SimpleNamespace(
    Stream=lambda **_options: _Stream(),
    Event=_Stream,
    current_stream=_Stream,
    stream=lambda _stream: nullcontext(),
    set_device=lambda _device: None,
    current_device=lambda: "cpu",
    FloatTensor=torch.FloatTensor,
)
"""What BMTrain uses of `torch.cuda`."""


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        text = Path(self.path).read_text(encoding="utf-8")
        if fullname == "bmtrain.nccl":
            text += f"\nfrom tests.bmtrain_on_cpu import {', '.join(_COLLECTIVES)}\n"
        for pattern, replacement in _CHANGES:
            text = re.sub(pattern, replacement, text)
        return compile("import sys\n" + text, self.path, "exec")


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, _path: object, _target: object = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != "bmtrain":
            return None
        place = _FOLDER.parent.joinpath(*fullname.split("."))
        for file, search in ((place / "__init__.py", [str(place)]), (place.with_suffix(".py"), None)):
            if file.is_file():
                loader = _Loader(fullname, str(file))
                return spec_from_file_location(fullname, file, loader=loader, submodule_search_locations=search)
        return None  # its extension is loaded as it is


sys.meta_path.insert(0, _Finder())


def getUniqueId() -> bytes:
    return b"gloo"


def commInitRank(_unique_id: bytes, _world_size: int, _rank: int) -> str:
    return "world"


def commCount(_comm: str) -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def commRank(_comm: str) -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def groupStart() -> None: ...


def groupEnd() -> None: ...


def allReduce(src: Any, dst: Any, op: str, _comm: str) -> None:
    total = _tensor(src).clone()
    if dist.is_initialized():
        assert op == "sum"
        dist.all_reduce(total)
    _tensor(dst).copy_(total)


gathered: list[int] = []
"""Elements of each gathering, in order."""


def allGather(src: Any, dst: Any, comm: str) -> None:
    parts = [torch.empty_like(_tensor(src)) for _ in range(commCount(comm))]
    if dist.is_initialized():
        dist.all_gather(parts, _tensor(src))
    else:
        parts[0].copy_(_tensor(src))
    gathered.append(dst.size())
    _tensor(dst).copy_(torch.cat(parts))


def reduceScatter(src: Any, dst: Any, op: str, comm: str) -> None:
    total = torch.empty_like(_tensor(src))
    allReduce(src, total.storage(), op, comm)
    _tensor(dst).copy_(total.chunk(commCount(comm))[commRank(comm)])


def _tensor(storage: Any) -> torch.Tensor:
    return torch.tensor([], dtype=storage.dtype).set_(storage)
