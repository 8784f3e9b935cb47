"""YAML as job files have it: plain values, and no key twice in a mapping."""

from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"


class JobYamlError(ValueError):
    """Text that is not YAML, or that says one key twice."""


def read_yaml(text: str) -> Any:
    """Return the plain values of a YAML text.

    YAML forbids a key to be twice in a mapping, but PyYAML keeps the last one: a section that was
    pasted in again would silently replace the first.

    Raises:
        JobYamlError: the text is not YAML, or has a key twice; with the lines.
    """
    try:
        return yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        raise JobYamlError(f"it is not valid YAML: {error}") from error


class _UniqueKeys(yaml.SafeLoader):
    """Looks at mappings as they are written: what a merge (`<<`) brings in may be said again."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                raise JobYamlError(
                    f"key {key.value!r} is there twice, on line {lines[name]} and on line {line}."
                    " Only the last one would count: make one of both"
                )
            lines[name] = line
        return node
