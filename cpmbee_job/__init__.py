"""Fine-tune CPM-Bee as a resumable, containerized training job."""

import os
from importlib.metadata import version

__version__ = version("cpmbee-job")

# OpenMP reads this when torch is imported. Threads that spin while they wait make small steps ten times slower when
# another process uses the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# torch's allocator reads this. Large tensors are mapped each time; with pages of 2 MB, if the kernel provides them on
# request, there are far fewer page faults than with pages of 4 KB.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
