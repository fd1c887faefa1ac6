"""Puts the hash of its predecessor into a policy's text, and leaves the rest of the text alone.

What the hash means is said in docs/POLICY.md; nothing else of a policy is ever written by a program.
"""

from __future__ import annotations

from fspf.core.errors import PolicyError
from fspf.policy.fields import mapping
from fspf.policy.tree import read_tree, refuse

KEY = "predecessor"


def with_predecessor(text: bytes, policy_hash: str) -> bytes:
    """Return *text* with a predecessor before its first key; one that has a predecessor stays as it is.

    The hash of a policy is of what it says, so it does not matter where the key is put.

    Raises:
        PolicyError: The text is no YAML mapping, or one in braces.
    """
    found = mapping(read_tree(text), "a policy")
    if KEY in found:
        return text
    first = min((key.place for key, _ in found.pairs.values()), default=None)
    if first is None:
        raise PolicyError("the policy is empty")
    lines = text.decode("utf-8").splitlines(keepends=True)
    before = lines[first.line - 1][: first.column - 1].removeprefix("\ufeff") if first.line <= len(lines) else "{"
    if before.strip(" "):
        refuse(first, f"a policy in braces: write the predecessor into it, {KEY}: {policy_hash}")
    at = len("".join(lines[: first.line - 1]).encode())
    if first.line == 1 and text.startswith(b"\xef\xbb\xbf"):
        at = 3
    edited = text[:at] + f"{before}{KEY}: {policy_hash}\n".encode() + text[at:]
    again = mapping(read_tree(edited), "a policy")
    if again.pairs.keys() != found.pairs.keys() | {KEY}:
        raise PolicyError(f"write the predecessor into the policy: {KEY}: {policy_hash}")
    return edited
