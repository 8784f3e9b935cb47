"""YAML as job files have it: plain values, and no key twice in a mapping."""

import re
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"
# More than any job has. What an alias (`*name`) stands for counts each time.
_MOST_VALUES = 100_000
_DEEPEST = 100
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class JobYamlError(ValueError):
    """Text that is not YAML, says one key twice, or has what is not what it seems."""


def read_yaml(text: str) -> Any:
    """Return the plain values of a YAML text.

    YAML forbids a key to be twice in a mapping, but PyYAML keeps the last one: a section that was
    pasted in again would silently replace the first.

    Raises:
        JobYamlError: the text is not YAML, has a key twice, or a number like 010; with the lines.
            Or it comes to far more values than it has characters, as aliases of aliases do.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise JobYamlError(f"it is not valid YAML: {error}") from error
    except RecursionError:
        raise JobYamlError("its brackets or indents are nested too deeply") from None


_OTHER_NUMBERS = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


class _Loader(yaml.SafeLoader):
    """Looks at mappings as they are written: what a merge (`<<`) brings in may be said again.

    Numbers with another base than they seem to have are refused, and text that is none.
    """

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level >= _DEEPEST:  # PyYAML takes seconds to find out by itself
            raise RecursionError
        super().fetch_flow_collection_start(token)

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


def _check_size(root: yaml.Node) -> None:
    """Refuse what is larger than it looks: values that are there by aliases, again and again."""
    sizes: dict[int, int] = {}

    def size_of(node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = _MOST_VALUES + 1  # of what is a part of itself
            items = node.value
            if isinstance(node, yaml.MappingNode):
                items = [part for pair in items for part in pair]
            sizes[id(node)] = 1 + sum(map(size_of, items))
        return sizes[id(node)]

    if size_of(root) > _MOST_VALUES:
        raise JobYamlError(
            f"its aliases (*name) make more than {_MOST_VALUES} values of it, or name what they are"
            " a part of. Write the values out"
        )


def _joined(node: yaml.ScalarNode) -> str:
    """Return text in which characters that JSON wrote as two escapes are one again."""
    try:
        return node.value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise JobYamlError(
            f"the text {node.value!r} on line {node.start_mark.line + 1} has half a character"
            " (\\uD800 to \\uDFFF), which no file can hold. Write the character itself"
        ) from None
