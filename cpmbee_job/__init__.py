"""Fine-tune CPM-Bee as a resumable, containerized training job."""

import os
from importlib.metadata import version

__version__ = version("cpmbee-job")

# OpenMP reads it when torch is loaded. Threads that wait by spinning make small steps ten times slower as soon as
# anything else wants the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
