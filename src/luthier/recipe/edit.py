"""Changes to the text of a recipe that leave everything else as it is: comments, order, quotes, line ends."""

from __future__ import annotations

from typing import Any

import yaml as pyyaml

from luthier.recipe import yaml
from luthier.recipe.settings import copy


def with_columns(text: str, path: tuple[str, ...], columns: str) -> str | None:
    """The recipe with `columns` in the source at a path; None if the text has no such source that could be changed.

    Args:
        text: a recipe in YAML.
        path: of the source, such as ("data", "train").
        columns: a mapping in YAML, on one line.
    """
    node = _node_at(text, path)
    if node is None:
        return None
    text_node = isinstance(node, pyyaml.ScalarNode) and node.tag == f"{yaml.TAG}str"
    if text_node or (isinstance(node, pyyaml.SequenceNode) and node.flow_style):
        start, end = node.start_mark.index, node.end_mark.index
        changed = f"{text[:start]}{{path: {text[start:end]}, columns: {columns}}}{text[end:]}"
    elif isinstance(node, pyyaml.MappingNode) and node.value:
        changed = _in_mapping(text, node, columns)
    else:
        return None
    # The only proof that an edit of text is right: what is read from it.
    return changed if _read(changed) == _expected(_read(text), path, _read(columns)) else None


def _in_mapping(text: str, node: pyyaml.MappingNode, columns: str) -> str:
    written = next((below for key, below in node.value if key.value == "columns"), None)
    if written is not None:
        start = written.start_mark.index
        end = start + len(text[start : written.end_mark.index].rstrip())  # a block ends where the next key begins
        return text[:start] + columns + text[end:]
    first = node.value[0][0].start_mark
    if node.flow_style:
        return f"{text[: first.index]}columns: {columns}, {text[first.index :]}"
    line_end = "\r\n" if "\r\n" in text else "\n"
    return f"{text[: first.index]}columns: {columns}{line_end}{' ' * first.column}{text[first.index :]}"


def _node_at(text: str, path: tuple[str, ...]) -> pyyaml.Node | None:
    try:
        node = pyyaml.compose(text, pyyaml.SafeLoader)
    except pyyaml.YAMLError:
        return None
    for name in path:
        if not isinstance(node, pyyaml.MappingNode):
            return None
        node = next((below for key, below in node.value if key.value == name), None)
    return node


def _expected(recipe: Any, path: tuple[str, ...], columns: Any) -> Any:
    recipe = copy(recipe)
    block = recipe
    for name in path[:-1]:
        block = block[name]
    source = block[path[-1]]
    block[path[-1]] = {**(source if isinstance(source, dict) else {"path": source}), "columns": columns}
    return recipe


def _read(text: str | None) -> Any:
    try:
        return yaml.parse(text or "", "recipe").data
    except yaml.RecipeError:
        return None
