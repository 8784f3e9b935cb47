"""YAML as job files have it: plain values, and no key twice in a mapping."""

import re
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class JobYamlError(ValueError):
    """Text that is not YAML, says one key twice, or has what is not what it seems."""


def read_yaml(text: str) -> Any:
    """Return the plain values of a YAML text.

    YAML forbids a key to be twice in a mapping, but PyYAML keeps the last one: a section that was
    pasted in again would silently replace the first.

    Raises:
        JobYamlError: the text is not YAML, has a key twice, or a number like 010; with the lines.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise JobYamlError(f"it is not valid YAML: {error}") from error
    except RecursionError:
        raise JobYamlError("its brackets or indents are nested too deeply") from None


_OTHER_NUMBERS = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


class _Loader(yaml.SafeLoader):
    """Looks at mappings as they are written: what a merge (`<<`) brings in may be said again.

    Numbers with another base than they seem to have are refused, and text that is none.
    """

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if any("\ud800" <= character <= "\udfff" for character in node.value):
            node.value = _joined(node)
        if node.tag in _NUMBERS and _OTHER_NUMBERS.fullmatch(node.value):
            raise JobYamlError(
                f"{node.value} on line {node.start_mark.line + 1} is the number"
                f" {self.construct_object(node)} to YAML, which reads a leading 0 as base 8 and"
                " colons as base 60. Write the number without them, or text in quotes"
            )
        return node

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


def _joined(node: yaml.ScalarNode) -> str:
    """Return text in which characters that JSON wrote as two escapes are one again."""
    try:
        return node.value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise JobYamlError(
            f"the text {node.value!r} on line {node.start_mark.line + 1} has half a character"
            " (\\uD800 to \\uDFFF), which no file can hold. Write the character itself"
        ) from None
