"""Fine-tune CPM-Bee as a resumable, containerized training job."""

import os
from importlib.metadata import version

__version__ = version("cpmbee-job")

# OpenMP reads it when torch is loaded. Threads that wait by spinning make small steps ten times slower as soon as
# anything else wants the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# torch's allocator reads it. Large tensors are mapped anew each time; in pages of 2 MB, where the kernel gives them on
# request, that is many times fewer page faults than in pages of 4 KB.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
