"""Write a manifest as YAML."""

import re
from typing import Any

import yaml

from cpmbee_job.launch.kube.protocol import Object


def to_yaml(manifest: Object) -> str:
    """Return readable YAML in the order of the object. Equal objects have equal texts."""
    return yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))


class _Dumper(yaml.SafeDumper):
    """Multi-line strings as blocks, lists of plain words on one line, no aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 (pyyaml's signature)
        return True

    def text(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)

    def items(self, data: list[Any]) -> yaml.SequenceNode:
        plain = all(isinstance(item, str) and re.fullmatch(r"[\w./-]*", item) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=plain)


_Dumper.add_representer(str, _Dumper.text)
_Dumper.add_representer(list, _Dumper.items)
# Quote strings that other YAML parsers read as a number or a boolean: for kubectl, the id 123456789e12 is a number.
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.?[0-9][0-9_.]*([eE][-+]?[0-9]+)?|0[xob][0-9a-fA-F_]+)$"),
    list("-+.0123456789"),
)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^[yYnN]$"), list("yYnN"))
