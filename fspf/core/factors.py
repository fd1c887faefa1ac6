"""Which factors a policy's `attestation:` may name, and the shape of each: one table for the parser and for the verifier.

Whether evidence shows what a factor asks for is decided by `fspf.attestation.match`; docs/ATTESTATION.md explains each factor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fspf.core.errors import PolicyError

_KINDS: Final = {bool: "a boolean", int: "a number", str: "a text", list: "a list", dict: "a mapping"}

Path = tuple[str | int, ...]  # how to get from an item to one value in it: names and indexes
Problem = tuple[Path, str]  # where, and what is wrong there


@dataclass(frozen=True, slots=True)
class Hex:
    """Bytes in hexadecimal, of one length; or a list of them, of which any will do."""

    length: int  # bytes

    def problems(self, value: Any, path: Path) -> Iterator[Problem]:
        """Yield what is wrong with *value*."""
        if isinstance(value, list):
            if not value:
                yield path, "a list of at least one value is expected: an empty one would let nobody in"
            for index, one in enumerate(value):
                yield from self._one(one, (*path, index))
        else:
            yield from self._one(value, path)

    def _one(self, value: Any, path: Path) -> Iterator[Problem]:
        if not isinstance(value, str) or not re.fullmatch(r"[0-9A-Fa-f]*", value) or len(value) != 2 * self.length:
            yield path, f"{2 * self.length} hex digits are expected{_seen(value)}"


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number; with *minimum* the evidence may show more, with *maximum* less, else exactly this."""

    limit: int  # the largest that the evidence can show
    sense: str = "exact"  # or "minimum", "maximum"

    def problems(self, value: Any, path: Path) -> Iterator[Problem]:
        """Yield what is wrong with *value*."""
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= self.limit:
            yield path, f"a number from 0 to {self.limit} is expected{_seen(value)}"


@dataclass(frozen=True, slots=True)
class Texts:
    """A list of texts, in order."""

    def problems(self, value: Any, path: Path) -> Iterator[Problem]:
        """Yield what is wrong with *value*."""
        if not isinstance(value, list):
            yield path, f"a list of texts is expected{_seen(value)}"
            return
        for index, one in enumerate(value):
            if not isinstance(one, str):
                yield (*path, index), f"a text is expected{_seen(one)}; put quotes around it"


@dataclass(frozen=True, slots=True)
class Registers:
    """PCR numbers (0 to 23) with their values, each in SHA-256 or SHA-384."""

    def problems(self, value: Any, path: Path) -> Iterator[Problem]:
        """Yield what is wrong with *value*."""
        if not isinstance(value, Mapping) or not value:
            yield path, f"PCR numbers with their values are expected{_seen(value)}"
            return
        numbers = set()
        for key, digest in value.items():
            number = register_number(key)
            if number is None:
                yield (*path, key), f"a PCR number from 0 to 23 is expected, not {_name(key)}"
            elif number in numbers:
                yield (*path, key), f"PCR {number} is named twice"
            numbers.add(number)
            one = digest if isinstance(digest, str) else ""
            if len(one) not in {64, 96} or not re.fullmatch(r"[0-9A-Fa-f]+", one):
                yield (*path, key), f"64 (SHA-256) or 96 (SHA-384) hex digits are expected{_seen(digest)}"


@dataclass(frozen=True, slots=True)
class Group:
    """A mapping with named values of its own."""

    members: Mapping[str, Shape]
    required: frozenset[str] = field(default_factory=frozenset)

    def problems(self, value: Any, path: Path) -> Iterator[Problem]:
        """Yield what is wrong with *value*."""
        if not isinstance(value, Mapping):
            yield path, f"a mapping is expected{_seen(value)}"
            return
        for key, one in value.items():
            shape = self.members.get(key) if isinstance(key, str) else None
            if shape is None:
                yield (*path, key), f"unknown key {_name(key)}; known are {', '.join(sorted(self.members))}"
            else:
                yield from shape.problems(one, (*path, key))
        for name in sorted(self.required - value.keys()):
            yield path, f"{name} is missing"


Shape = Hex | Number | Texts | Registers | Group

# What an SGX quote shows: the names are SCONE's, at the top level of an item. All of an item must hold for one quote.
SGX: Final[Mapping[str, Shape]] = {
    "mrenclave": Hex(32),
    "mrsigner": Hex(32),
    "isvprodid": Number(0xFFFF),
    "isvsvn": Number(0xFFFF, "minimum"),
}
TPM: Final = Group({"pcrs": Registers(), "ak": Hex(32)}, frozenset({"pcrs"}))
MEASURED: Final = Group(
    {"executable": Hex(32), "arguments": Texts(), "volume_tag": Hex(16), "node": Hex(32)}, frozenset({"executable"})
)
SNP_TCB: Final = Group({
    name: Number(0xFF, "minimum") for name in ("fmc", "bootloader", "tee", "snp", "microcode")
})  # fmt: skip
SNP: Final = Group(
    {
        "measurement": Hex(48),
        "host_data": Hex(32),
        "id_key_digest": Hex(48),
        "author_key_digest": Hex(48),
        "family_id": Hex(16),
        "image_id": Hex(16),
        "chip_id": Hex(64),
        "guest_svn": Number(0xFFFFFFFF, "minimum"),
        "vmpl": Number(3, "maximum"),
        "tcb": SNP_TCB,
    },
    frozenset({"measurement"}),
)
TDX: Final = Group(
    {
        "mrtd": Hex(48),
        **{f"rtmr{index}": Hex(48) for index in range(4)},
        "mrseam": Hex(48),
        "mrconfigid": Hex(48),
        "mrowner": Hex(48),
        "mrownerconfig": Hex(48),
        "mrservicetd": Hex(48),
        "td_attributes": Hex(8),
        "xfam": Hex(8),
    },
    frozenset({"mrtd"}),
)
FACTORS: Final[Mapping[str, Shape]] = {
    **SGX,
    "key": Hex(32),  # key id: SHA-256 of the DER SubjectPublicKeyInfo
    "tpm": TPM,
    "measured-process": MEASURED,
    "sev-snp": SNP,
    "tdx": TDX,
}

MODES: Final = ("hardware", "none")
# SCONE's words.
TOLERABLE: Final = (
    "debug-mode",
    "hyperthreading",
    "insecure-configuration",
    "insecure-igpu",
    "outdated-tcb",
    "software-hardening-needed",
)
EVERY_ADVISORY: Final = "*"


def problems(item: Any, path: Path = ()) -> Iterator[Problem]:
    """Yield what is wrong with one item of an `attestation:` list.

    Args:
        item: As the YAML parser gives it.
        path: Where the item is; the paths that come out begin with it.
    """
    if not isinstance(item, Mapping):
        yield path, f"an item with factors ({', '.join(FACTORS)}) is expected{_seen(item)}"
        return
    if not item:
        yield path, "an item without factors would let anybody in"
    yield from Group(FACTORS).problems(item, path)
    signer = {"mrsigner", "isvprodid", "isvsvn"} & item.keys()
    if "mrenclave" not in item and signer and len(signer) < 3:
        yield path, "mrsigner, isvprodid and isvsvn belong together: fewer let in other programs of the same signer"


def security_problems(security: Any, path: Path = ()) -> Iterator[Problem]:
    """Yield what is wrong with a policy's `security: attestation:`."""
    if not isinstance(security, Mapping):
        yield path, f"a mapping is expected{_seen(security)}"
        return
    for key, value in security.items():
        if key == "mode":
            if value not in MODES:
                yield (*path, key), f"{' or '.join(MODES)} is expected{_seen(value)}"
        elif key == "tolerate":
            yield from Texts().problems(value, (*path, key))
            for index, word in enumerate(value if isinstance(value, list) else ()):
                if isinstance(word, str) and word not in TOLERABLE:
                    yield (*path, key, index), f"unknown {_name(word)}; known are {', '.join(TOLERABLE)}"
        elif key == "ignore_advisories":
            if value != EVERY_ADVISORY:
                yield from Texts().problems(value, (*path, key))
        else:
            yield (*path, key), f"unknown key {_name(key)}; known are ignore_advisories, mode, tolerate"


def check_item(item: Any) -> None:
    """Refuse an item of an `attestation:` list that has a problem.

    Raises:
        PolicyError: With the first problem and where it is, without line and column.
    """
    for path, message in problems(item):
        where = ".".join(str(part) for part in path)
        raise PolicyError(f"attestation: {where}: {message}" if where else f"attestation: {message}")


def check_security(security: Any) -> None:
    """Refuse a `security: attestation:` that has a problem.

    Raises:
        PolicyError: As `check_item`.
    """
    for path, message in security_problems(security):
        where = ".".join(str(part) for part in path)
        raise PolicyError(f"security.attestation: {where}: {message}" if where else f"security.attestation: {message}")


def register_number(key: Any) -> int | None:
    """Return the PCR that a key of `pcrs:` names (11 or "11"), None if it names none."""
    if isinstance(key, str) and re.fullmatch(r"0|[1-9][0-9]?", key):
        key = int(key)
    return key if isinstance(key, int) and not isinstance(key, bool) and 0 <= key <= 23 else None


def _seen(value: Any) -> str:
    """Say what was found, without showing what may be long."""
    if isinstance(value, str):
        return f", not {len(value)} characters" if len(value) > 20 else f", not {value!r}"
    if isinstance(value, bool) or not isinstance(value, int):
        return f", not {_KINDS.get(type(value), type(value).__name__)}"
    return f", not {_name(value)}"


def _name(value: Any) -> str:
    """Show a key or a number of a policy; a hostile one may be megabytes long."""
    if isinstance(value, int):
        return f"{value}" if abs(value) < 1 << 64 else "so large a number (digits need quotes)"
    return repr(value[:40]) if isinstance(value, str) else f"{_KINDS.get(type(value), type(value).__name__)}"
