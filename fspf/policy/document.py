"""A policy document: YAML text to a checked `Policy` with its hash.

Storing policies and asking who may is left to `fspf.cas.policies` and `access`; docs/POLICY.md describes the language.
"""

from __future__ import annotations

from fspf.policy import boards, fields, sections, semantics
from fspf.policy.model import AccessPolicy, Policy, Security
from fspf.policy.tree import MAX_LEN, Node, canonical, read_tree, refuse, shown, tree_hash

__all__ = ["MAX_LEN", "VERSION", "canonical_form", "parse_policy"]

VERSION = "0.3"
_KEYS = (
    "version", "name", "predecessor", "services", "images", "volumes", "secrets", "access_policy", "security", "restore",
)  # fmt: skip


def parse_policy(text: bytes) -> Policy:
    """Read a policy and check all of it.

    Raises:
        PolicyError: With line and column of the first thing that is wrong.
    """
    return _policy(read_tree(text))


def canonical_form(text: bytes) -> bytes:
    """Return what the hash of a policy is taken of.

    Raises:
        PolicyError: The text is no YAML that a policy may be.
    """
    return canonical(read_tree(text))


def _policy(tree: Node) -> Policy:
    found = fields.pairs(tree, "a policy", _KEYS, {"version", "name"})
    get = found.get
    version_node = found.pairs["version"][1]
    version = fields.text(version_node, "version")
    if version != VERSION:
        refuse(version_node.place, f'version is "{VERSION}", {shown(version)} is not known')
    policy = Policy(
        name=fields.policy_name(found.pairs["name"][1], "name"),
        hash=tree_hash(tree),
        version=version,
        predecessor=fields.optional(get("predecessor"), lambda one: fields.hex_digits(one, "predecessor", 32)),
        services=fields.each(get("services"), "services", sections.service),
        images=fields.each(get("images"), "images", sections.image),
        volumes=fields.each(get("volumes"), "volumes", sections.volume),
        secrets=fields.each(get("secrets"), "secrets", sections.secret),
        access_policy=fields.optional(get("access_policy"), boards.access_policy) or AccessPolicy(),
        security=fields.optional(get("security"), sections.security) or Security(),
        restore=fields.each(get("restore"), "restore", sections.restore),
    )
    semantics.check(policy)
    return policy
