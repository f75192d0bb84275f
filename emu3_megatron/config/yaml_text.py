"""Reads YAML, and refuses a key that stands in a mapping twice."""

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML's own rule, which PyYAML does not hold: keys of a mapping are unique."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, yaml.Node] = {}
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name != "<<" and seen.setdefault(name, key) is not key:
                first = seen[name].start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    problem=f"{name} stands there twice, first in line {first}; keep one",
                    problem_mark=key.start_mark,
                )
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """The value of a document.

    Raises:
        yaml.YAMLError: it is not YAML, or has a key twice.
    """
    return yaml.load(text, _Loader)  # a SafeLoader
