"""Fine-tune CPM-Bee as a resumable, containerized training job."""

from importlib.metadata import version

__version__ = version("cpmbee-job")
