"""Roles as a chat template knows them, found by trying.

Reading gives every role its usual name. Some templates know another one: those of old GLM models write any role between
`<|` and `|>`, and only `<|observation|>` is a token. There the message gets back the role that the user wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from luthier.errors import DataError

WORD = "ZQTOOLQZ"
Render = Callable[[list[dict[str, Any]]], str]


def prefers_written(render: Render, tokens: Collection[str], written: str, usual: str) -> bool:
    """Whether the template knows the role that the user wrote better than its usual name.

    It does if it writes such a message and refuses or leaves out the other, or writes a special token for it alone.

    Args:
        render: the template; raises a DataError where it refuses the messages.
        tokens: special tokens of the tokenizer.
        written: the user's role, such as `observation`.
        usual: `tool` or `system`.
    """
    for opening in _openings(usual):
        texts = [_try(render, [*opening, *_turns(role, usual)]) for role in (usual, written)]
        if not any(WORD in text for text in texts):
            continue
        if WORD not in texts[0]:
            return True
        return WORD in texts[1] and any(token in texts[1] and token not in texts[0] for token in tokens)
    return False


def _openings(usual: str) -> list[list[dict[str, Any]]]:
    """The turns before the message; some templates know no calls, and others no answer of a tool without one."""
    if usual == "system":
        return [[]]
    function = {"name": "look", "arguments": {"at": "it"}}
    user = {"role": "user", "content": "Look."}
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "a1b2c3d4e", "type": "function", "function": function}],
    }
    return [[user, call], [user, {"role": "assistant", "content": "I look."}]]


def _turns(role: str, usual: str) -> list[dict[str, Any]]:
    if usual == "system":
        return [{"role": role, "content": WORD}, {"role": "user", "content": "Hi."}]
    return [{"role": role, "content": WORD, "name": "look", "tool_call_id": "a1b2c3d4e"}]


def _try(render: Render, messages: list[dict[str, Any]]) -> str:
    try:
        return render(messages)
    except DataError:
        return ""
