"""Sphinx configuration of the documentation site: `make docs-site` writes build/site/index.html."""

import tomllib
from pathlib import Path

_project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = _project["name"]
release = version = _project["version"]
copyright = "the authors of cpmbee-job, Apache-2.0"  # noqa: A001 (the name that Sphinx requires)

extensions = ["myst_parser"]
exclude_patterns = ["how-to/ci/*"]
myst_heading_anchors = 4
nitpicky = True

html_theme = "furo"
html_title = project
html_copy_source = False
html_show_sphinx = False
