"""Compares what evidence showed with what a policy asks for, and says which factor failed.

Whether the evidence is authentic was settled before, by the module of its kind; the shapes are those of `fspf.core.factors`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from fspf.attestation.claims import UP_TO_DATE, Claims
from fspf.core.errors import AttestationError
from fspf.core.factors import EVERY_ADVISORY, FACTORS, SGX, Group, Hex, Number, Registers, Shape, Texts, register_number

# What has to be tolerated for a status to be good enough: one of these sets. A revoked platform never is.
_TOLERATED_BY: Final[Mapping[str, tuple[frozenset[str], ...]]] = {
    UP_TO_DATE: (frozenset(),),
    "SWHardeningNeeded": (frozenset({"software-hardening-needed"}),),
    "ConfigurationNeeded": (
        frozenset({"insecure-configuration"}),
        frozenset({"hyperthreading", "insecure-igpu"}),  # a quote does not say which of them it is
    ),
    "ConfigurationAndSWHardeningNeeded": (
        frozenset({"insecure-configuration", "software-hardening-needed"}),
        frozenset({"hyperthreading", "insecure-igpu", "software-hardening-needed"}),
    ),
    "OutOfDate": (frozenset({"outdated-tcb"}),),
    "OutOfDateConfigurationNeeded": (
        frozenset({"outdated-tcb", "insecure-configuration"}),
        frozenset({"outdated-tcb", "hyperthreading", "insecure-igpu"}),
    ),
}
_SHOWN: Final = 3  # values of a list in a message
_SOFTWARE: Final = frozenset({"measured-process"})  # kinds that no hardware stands behind


def match(
    claims: Sequence[Claims], requirement: Sequence[Mapping[str, Any]], security: Mapping[str, Any] | None = None
) -> int:
    """Find an item of which every factor is shown, and return its index.

    Args:
        claims: Of everything that the client sent.
        requirement: A service's `attestation:`; its shapes are right.
        security: The policy's `security: attestation:`; without one, hardware is asked for and nothing is tolerated.

    Raises:
        AttestationError: None is; its factor is the first that failed in the item that came closest.
    """
    if not requirement:
        raise AttestationError("attestation", "the policy names no factor for this service, so nobody can attest")
    failures: list[tuple[int, AttestationError]] = []
    for index, item in enumerate(requirement):
        passed, failed = 0, None
        for error in _judge(claims, item, security or {}):
            passed += error is None
            failed = failed or error
        if failed is None and passed:
            return index
        failures.append((passed, failed or AttestationError("attestation", "the item names no factor")))
    closest = max(failures, key=lambda failure: failure[0])[1]
    if len(failures) == 1:
        raise closest
    others = sorted({error.factor for _, error in failures if error is not closest})
    message = str(closest).removeprefix(f"{closest.factor}: ")
    raise AttestationError(
        closest.factor, f"{message}; none of the {len(failures)} alternatives holds, others fail at {', '.join(others)}"
    )


def _judge(
    claims: Sequence[Claims], item: Mapping[str, Any], security: Mapping[str, Any]
) -> Iterator[AttestationError | None]:
    """Yield None for each factor that is shown and an error for each that is not."""
    for kind, wanted in _by_kind(item):
        candidates = [claim for claim in claims if claim.type == kind]
        if not candidates:
            sent = ", ".join(sorted({claim.type for claim in claims})) or "none"
            yield AttestationError(next(iter(wanted)), f"evidence of kind {kind} is expected, seen {sent}")
            continue
        # One piece of evidence must show everything of its kind: a mix of two machines is no machine.
        verdicts = [list(_judge_one(claim, wanted, security)) for claim in candidates]
        yield from max(verdicts, key=lambda verdict: verdict.count(None) - len(verdict))


def _by_kind(item: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the kinds of evidence that an item needs, with the values it asks of each."""
    sgx = {name: value for name, value in item.items() if name in SGX}
    if sgx:
        yield "sgx", sgx
    for name, value in item.items():
        if name not in SGX:
            yield name, {name: value}


def _judge_one(
    claim: Claims, wanted: Mapping[str, Any], security: Mapping[str, Any]
) -> Iterator[AttestationError | None]:
    yield from _platform(claim, security)
    for name, value in wanted.items():
        shape = FACTORS.get(name)
        if shape is None:
            yield AttestationError(name, "this CAS does not know the factor")
        elif isinstance(shape, Group):
            yield from _group(name, shape, value, claim.values)
        else:
            yield _compare(name, shape, value, claim.values.get(name))
    # A key that nobody named proves nothing: anybody can make one.
    if claim.type == "tpm" and "ak" not in wanted["tpm"] and not claim.values.get("ak_known"):
        yield AttestationError(
            "tpm.ak", f"an attestation key that this CAS knows is expected, seen {claim.values['ak']}"
        )


def _platform(claim: Claims, security: Mapping[str, Any]) -> Iterator[AttestationError | None]:
    """Judge what the maker says of the platform, by the policy's `security:`."""
    tolerated = frozenset(security.get("tolerate", ()))
    if claim.type in _SOFTWARE and security.get("mode", "hardware") != "none":
        yield AttestationError(
            claim.type,
            "hardware is expected (security: attestation: mode: hardware), seen a statement made by software",
        )
    if claim.debug and "debug-mode" not in tolerated:
        yield AttestationError(
            f"{claim.type}.debug", "production mode is expected, seen debug mode (tolerate: debug-mode)"
        )
    ways = _TOLERATED_BY.get(claim.status, ())
    if not any(way <= tolerated for way in ways):
        hint = " or ".join(" and ".join(sorted(way)) for way in ways)
        yield AttestationError(
            f"{claim.type}.tcb",
            f"a platform that is {UP_TO_DATE} is expected, seen {claim.status}"
            + (f" (tolerate: {hint})" if hint else ", which cannot be tolerated"),
        )
    ignored = security.get("ignore_advisories", ())
    left = () if ignored == EVERY_ADVISORY else sorted(claim.advisories - frozenset(ignored))
    if left:
        yield AttestationError(
            f"{claim.type}.advisories", f"no advisory but those ignored is expected, seen {', '.join(left)}"
        )


def _group(path: str, shape: Group, wanted: Mapping[str, Any], seen: Any) -> Iterator[AttestationError | None]:
    for name, value in wanted.items():
        member = shape.members.get(name)
        found = seen.get(name) if isinstance(seen, Mapping) else None
        if member is None:
            yield AttestationError(f"{path}.{name}", "this CAS does not know the factor")
        elif isinstance(member, Group):
            yield from _group(f"{path}.{name}", member, value, found)
        elif isinstance(member, Registers):
            yield from _registers(f"{path}.{name}", value, found)
        else:
            yield _compare(f"{path}.{name}", member, value, found)


def _registers(path: str, wanted: Mapping[Any, str], seen: Any) -> Iterator[AttestationError | None]:
    for key, value in wanted.items():
        number = register_number(key)
        bank = "sha256" if len(value) == 64 else "sha384"
        found = seen.get((bank, number)) if isinstance(seen, Mapping) else None
        yield _compare(f"{path}.{number}", Hex(len(value) // 2), value, found)


def _compare(path: str, shape: Shape, wanted: Any, seen: Any) -> AttestationError | None:
    """Return what is wrong with one value, None if nothing is."""
    shown = "nothing" if seen is None else seen
    if isinstance(shape, Hex):
        choices = [one.lower() for one in (wanted if isinstance(wanted, list | tuple) else [wanted])]
        more = f" or {len(choices) - _SHOWN} others" if len(choices) > _SHOWN else ""
        good, expected = seen in choices, " or ".join(choices[:_SHOWN]) + more
    elif isinstance(shape, Number):
        if shape.sense == "minimum":
            good, expected = seen is not None and seen >= wanted, f"at least {wanted}"
        elif shape.sense == "maximum":
            good, expected = seen is not None and seen <= wanted, f"at most {wanted}"
        else:
            good, expected = seen == wanted, f"{wanted}"
    else:
        assert isinstance(shape, Texts), "shapes with parts are compared part by part"
        good, expected = seen is not None and list(seen) == list(wanted), f"{list(wanted)!r:.200}"
        shown = f"{list(seen or ())!r:.200}"
    return None if good else AttestationError(path, f"{expected} is expected, seen {shown}")
