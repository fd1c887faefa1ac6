"""The plan of an update: every difference that matters is a line, and what is weaker is marked.

That comparing a policy with itself finds nothing is tested for arbitrary policies in tests/property/test_policy.py.
"""

from __future__ import annotations

import json

import pytest

from fspf.policy.document import parse_policy
from fspf.policy.plan import plan
from tests.support.policies import FULL, HEX32, key_id

OTHER = "22" * 32
KEYS = f"[{key_id('ann')}]"

CHANGES = {
    # what becomes what -> lines of the plan
    "a secret for a service": (
        "MODE: prod", 'MODE: "$$SCONE::mariadbkey:hex$$"',
        ["~ service: service mysql changes variable MODE"],  # it has that secret already, by its file
    ),
    "a new secret for a service": (
        "MODE: prod", 'MODE: "$$SCONE::from_vault$$"',
        ["+ secret: service mysql gains secret from_vault", "~ service: service mysql changes variable MODE"],
    ),
    "a private key for a service": (
        "MODE: prod", 'MODE: "$$SCONE::key$$"', ["+ secret: service mysql gains the private key of key", "~ service: service mysql changes variable MODE"],
    ),
    "the key of a certificate": (
        "MODE: prod", 'MODE: "$$SCONE::crt:privatekey$$"',
        ["+ secret: service mysql gains the private key of crt", "~ service: service mysql changes variable MODE"],
    ),
    "a secret taken away": (
        'MYSQL_ROOT_PASSWORD: "$$SCONE::rootpass$$", ', "",
        ["- secret: service mysql loses secret rootpass", "- service: service mysql loses variable MYSQL_ROOT_PASSWORD"],
    ),
    "another command": ('"mysqld", ', '"mysqld", "--skip-grant-tables", ', ["~ service: service mysql changes its command"]),
    "another working directory": ("pwd: /", "pwd: /tmp", ["~ service: service mysql changes its pwd"]),
    "less freshness for a volume": (
        "update_policy: rollback_protected }", "update_policy: no_rollback_protection }",
        ["~ freshness: volume data of service mysql changes from rollback_protected to no_rollback_protection (weaker)"],
    ),
    "more freshness for the main volume": (
        "fspf_update_policy: rollback_protected_reinitializable", "fspf_update_policy: rollback_protected",
        ["~ freshness: service mysql's main volume changes from rollback_protected_reinitializable to rollback_protected"],
    ),
    "another image": (
        "fspf_tag: 0011", "fspf_tag: 1111",
        ["~ volume: service mysql changes the initial tag of its main volume; instances keep their anchors"],
    ),
    "a lagging volume": (
        "- name: data\n", "- name: data\n    freshness: bounded:500ms\n",
        ["~ freshness: volume data changes from strict to bounded:500ms (weaker)"],
    ),
    "another place": (
        "path: /var/lib/mysql", "path: /data", ["~ volume: service mysql changes where volume data is: /var/lib/mysql becomes /data"],
    ),
    "another way in": (
        f'- mrenclave: ["{HEX32}"]', f'- mrenclave: ["{HEX32}"]\n      - mrenclave: ["{OTHER}"]',
        [f'+ attestation: service mysql gains a way in: {{"mrenclave":["{OTHER}"]}} (weaker)'],
    ),
    "another program": (
        f'- mrenclave: ["{HEX32}"]', f'- mrenclave: ["{OTHER}"]',
        [f'+ attestation: service mysql gains a way in: {{"mrenclave":["{OTHER}"]}} (weaker)',
         f'- attestation: service mysql loses a way in: {{"mrenclave":["{HEX32}"]}}'],
    ),
    "a wider file": (
        "permission: 0o400", "permission: 0o444", ["~ file: service mysql changes permission of /etc/my.cnf: 400 becomes 444 (weaker)"],
    ),
    "another file": ("encryption_key=", "key=", ["~ file: service mysql changes the content of /etc/my.cnf"]),
    "a secret made in another way": (
        "name: mariadbkey, kind: binary, size: 32", "name: mariadbkey, kind: binary, size: 64",
        ["~ secret: policy messenger/db changes how secret mariadbkey is made: it gets another value"],
    ),
    "an importer more": (
        "export: [ { session: messenger/app } ]", "export: [ { session: messenger/app }, messenger/web ]",
        ["+ export: policy messenger/web gains secret rootpass (weaker)"],
    ),
    "an importer less": (
        ", export: [ { session: messenger/app } ]", "", ["- export: policy messenger/app loses secret rootpass"],
    ),
    "an importer that may write": (
        "update_policy: ephemeral }", "update_policy: rollback_protected }",
        ["~ export: policy messenger/backup changes volume data (rollback_protected) (weaker)"],
    ),
    "a reader more": ("read: [CREATOR]", f"read: [CREATOR, {key_id('ann')}]", [f"+ access: key {key_id('ann')} gains read (weaker)"]),
    "an author less": (
        "update: [ { require-at-least-1: [ CREATOR ] } ]", f"update: {KEYS}",
        [f"+ access: key {key_id('ann')} gains update (weaker)", "- access: 1 of (CREATOR) loses update"],
    ),
    "no hardware": ("mode: hardware", "mode: none", ["~ attestation: mode changes from hardware to none (weaker)"]),
    "old hardware": ("tolerate: []", "tolerate: [outdated-tcb]", ["+ attestation: tolerate gains outdated-tcb (weaker)"]),
    "an advisory": (
        "ignore_advisories: []", "ignore_advisories: [INTEL-SA-00615]", ["+ attestation: ignore_advisories gains INTEL-SA-00615 (weaker)"],
    ),
    "every advisory": ("ignore_advisories: []", 'ignore_advisories: "*"', ["+ attestation: ignore_advisories gains * (weaker)"]),
    "a restore": (
        "security:", f"restore: [{{volume: data, tag: {'0f' * 16}, generation: 7, epoch: 4, reason: disk died}}]\nsecurity:",
        ["~ restore: volume data changes generation 7 (0f0f0f0f) becomes the newest, in epoch 4: disk died (weaker)"],
    ),
    "only a comment": ("security:", "# a comment\nsecurity:", None),
}  # fmt: skip
KEY_CHANGES = "~ secret: policy messenger/db changes the key key: without migrate, every update makes another"


@pytest.mark.parametrize("case", CHANGES)
def test_what_changes_is_said(case: str) -> None:
    old, new, expected = CHANGES[case]
    assert FULL.count(old) == 1
    found = plan(parse_policy(FULL.encode()), parse_policy(FULL.replace(old, new).encode()))
    lines = [str(step) for step in found.steps]
    if expected is None:
        assert lines == []
    else:
        assert sorted(lines) == sorted([*expected, KEY_CHANGES])


def test_each_difference_of_the_policies_is_in_the_plan() -> None:
    """Whatever single change of a value there is: the plan is not empty when the hash differs."""
    for case, (old, new, expected) in CHANGES.items():
        before, after = parse_policy(FULL.encode()), parse_policy(FULL.replace(old, new).encode())
        assert bool(plan(before, after).steps) == (before.hash != after.hash) == (expected is not None), case


def test_a_new_policy_gains_everything() -> None:
    found = plan(None, parse_policy(FULL.encode()))
    assert found.old is None
    assert {str(step.kind) for step in found.steps if step.area in {"secret", "volume", "service", "file"}} == {"gains"}
    assert "policy messenger/db: is new" in found.text


def test_a_plan_shows_no_value() -> None:
    text = FULL.replace("{ name: rootpass, kind: ascii, size: 24,", "{ name: rootpass, kind: ascii, value: hunter2,")
    old, new = parse_policy(FULL.encode()), parse_policy(text.encode())
    for found in (plan(old, new), plan(None, new), plan(new, old)):
        assert "hunter2" not in found.text + json.dumps(found.members())
    other = parse_policy(text.replace("hunter2", "correct horse").encode())
    assert "secret rootpass is made" in plan(new, other).text


def test_it_is_json() -> None:
    members = json.loads(json.dumps(plan(None, parse_policy(FULL.encode())).members()))
    assert set(members) == {"name", "old", "new", "steps"}
    assert all(set(step) == {"kind", "area", "who", "what", "weaker"} for step in members["steps"])
