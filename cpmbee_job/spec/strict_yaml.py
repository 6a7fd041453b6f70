"""Load YAML from untrusted sources; errors name the position."""

import json
import re
from typing import Any

import yaml

MAX_DEPTH = 64
MAX_NODES = 100_000
"""Values of a document, including those that aliases repeat."""


class StrictDumper(yaml.SafeDumper):
    """Writes YAML that `StrictLoader` reads as the same values: the string `1e9` is quoted."""


class StrictLoader(yaml.SafeLoader):
    """Loads safe YAML. It rejects duplicate keys and excessive documents, and reads `1e-4` as a number (in YAML 1.1 it
    is a string). All errors are `YAMLError`s."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._num_nodes = 0
        self._sizes: dict[int, int] = {}
        """Number of nodes in each complete node."""

    def fetch_more_tokens(self) -> None:
        try:
            super().fetch_more_tokens()
        except (ValueError, OverflowError) as error:  # in %YAML, or after \U
            problem = "a version number or a character code is too large"
            raise yaml.scanner.ScannerError(None, None, problem, self.get_mark()) from error

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias, before = self.check_event(yaml.AliasEvent), self._num_nodes
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self._depth == MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested more than {MAX_DEPTH} levels deep", mark)
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and id(node) not in self._sizes:
            raise yaml.composer.ComposerError(None, None, "an alias to a node that contains it", mark)
        self._num_nodes += self._sizes[id(node)] if is_alias else 1
        if self._num_nodes > MAX_NODES:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_NODES:,} values", mark)
        if not is_alias:
            self._sizes[id(node)] = self._num_nodes - before
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            found = super().construct_object(node, deep)
            if isinstance(found, str):
                found.encode()
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            is_surrogate = isinstance(error, UnicodeEncodeError)
            problem = "an incomplete surrogate pair" if is_surrogate else f"not a valid value of {node.tag}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error
        return found

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()  # the library rejects other nodes
        for key_node, _ in pairs:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool):
                written = key if isinstance(key, str) else json.dumps(key)
                if written in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
                seen.add(written)
        return super().construct_mapping(node, deep)


for _kind in (StrictLoader, StrictDumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?([0-9][0-9_]*)(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
