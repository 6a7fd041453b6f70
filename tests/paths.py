"""Folders of this repository that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
CHART = ROOT / "helm" / "cpmbee-job"
DOCS = ROOT / "docs"
