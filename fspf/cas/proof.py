"""Proofs that a request comes from the holder of its token's key: RFC 9449 (DPoP), and a hash of the body.

Where tokens come from is `gate`'s business. A proof names a nonce of the serving process, which remembers the
proofs it has seen as long as their nonce counts: so none works twice, on whatever process, and no clocks are compared.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from fspf.attestation.signatures import load_key
from fspf.cas.tokens import UnauthenticatedError, decode, encode
from fspf.core.errors import AttestationError, UsageError

SessionKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
SessionPublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey

NONCE_LIFE_NS: Final = 60_000_000_000  # then it is replaced; for as long again it still counts
_MAX_PROOF: Final = 4096  # characters
_MAX_SEEN: Final = 200_000  # proofs per nonce; then it is replaced at once
_P256_LEN: Final = 32
_CLAIMS: Final = frozenset({"htm", "htu", "iat", "jti", "ath", "bh", "nonce"})
_MIN_JTI: Final = 16  # characters
_MAX_JTI: Final = 64


def load_session_key(spki: bytes) -> SessionPublicKey:
    """Return the public key of a session: Ed25519 or P-256.

    Raises:
        UsageError: It is neither, or not in its canonical encoding.
    """
    try:
        key = load_key(spki, "public_key")
    except AttestationError as exc:
        raise UsageError(str(exc)) from None
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1":
        return key
    raise UsageError("public_key: the key of a session is an Ed25519 or P-256 key")


def header_of(key: SessionPublicKey) -> str:
    """Return the only header that proofs of *key* may have, encoded: there is one way to write it."""
    if isinstance(key, ed25519.Ed25519PublicKey):
        algorithm, jwk = "EdDSA", {"crv": "Ed25519", "kty": "OKP", "x": encode(key.public_bytes_raw())}
    else:
        numbers = key.public_numbers()
        x, y = (encode(number.to_bytes(_P256_LEN, "big")) for number in (numbers.x, numbers.y))
        algorithm, jwk = "ES256", {"crv": "P-256", "kty": "EC", "x": x, "y": y}
    return encode(json.dumps({"typ": "dpop+jwt", "alg": algorithm, "jwk": jwk}, separators=(",", ":")).encode())


def hash_of(data: bytes) -> str:
    """Return base64url of SHA-256."""
    return encode(hashlib.sha256(data).digest())


class Prover:
    """Makes the proofs of one session."""

    def __init__(self, key: SessionKey) -> None:
        self._key = key
        self._header = header_of(key.public_key())

    def prove(self, *, method: str, url: str, token: str, nonce: str, body: bytes, now_s: int) -> str:
        """Return the proof of one request; each can be used once."""
        claims = {
            "htm": method,
            "htu": url,
            "iat": now_s,
            "jti": secrets.token_urlsafe(16),
            "ath": hash_of(token.encode()),
            "bh": hash_of(body),
            "nonce": nonce,
        }
        message = f"{self._header}.{encode(json.dumps(claims, separators=(',', ':')).encode())}"
        return f"{message}.{encode(self._sign(message.encode()))}"

    def _sign(self, message: bytes) -> bytes:
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(message)
        r, s = decode_dss_signature(self._key.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(_P256_LEN, "big") + s.to_bytes(_P256_LEN, "big")


class Holder:
    """What is needed again and again to check the proofs of one token."""

    def __init__(self, token: str, spki: bytes) -> None:
        self._key = load_session_key(spki)
        self._header_of_key = header_of(self._key)
        self._header = ""  # the one that was seen and understood
        self._ath = hash_of(token.encode())

    def check(self, proof: str, *, method: str, url: str, body: bytes) -> dict[str, Any]:
        """Return the claims of *proof* if it is this holder's, for this request; its nonce is not looked at.

        Raises:
            UnauthenticatedError: It is not.
        """
        parts = proof.split(".")
        if len(proof) > _MAX_PROOF or len(parts) != 3 or not proof.isascii():
            raise _refusal("not a JWT")
        header, payload, signature = parts
        if header not in {self._header, self._header_of_key}:
            self._understand(header)
        try:
            self._verify(decode(signature), f"{header}.{payload}".encode())
        except (InvalidSignature, ValueError):
            raise _refusal("the signature is not that of the token's key") from None
        try:
            claims = json.loads(decode(payload))
        except (ValueError, RecursionError):
            claims = None
        if not isinstance(claims, dict) or not claims.keys() >= _CLAIMS:
            raise _refusal(f"the claims {', '.join(sorted(_CLAIMS))} are expected")
        expected = {"htm": method, "htu": url, "ath": self._ath, "bh": hash_of(body)}
        for name, value in expected.items():
            if claims[name] != value:
                raise _refusal(f"{name}: it was made for another request")
        if type(claims["iat"]) is not int:
            raise _refusal("iat: a number of seconds is expected")
        jti = claims["jti"]
        if not isinstance(jti, str) or not jti.isascii() or not _MIN_JTI <= len(jti) <= _MAX_JTI:
            raise _refusal(f"jti: a text of {_MIN_JTI} to {_MAX_JTI} characters is expected")
        return claims

    def _understand(self, header: str) -> None:
        """Accept another way to write the same header."""
        try:
            seen = json.loads(decode(header))
            expected = json.loads(decode(self._header_of_key))
        except (ValueError, RecursionError):
            raise _refusal("the header is no JSON object") from None
        if not isinstance(seen, dict) or any(seen.get(name) != expected[name] for name in ("typ", "alg")):
            raise _refusal("typ dpop+jwt and the algorithm of the token's key are expected")
        jwk = seen.get("jwk")
        if not isinstance(jwk, dict) or any(jwk.get(name) != value for name, value in expected["jwk"].items()):
            raise _refusal("jwk: another key than the token's")
        if "d" in jwk or not seen.keys() <= {"typ", "alg", "jwk"}:
            raise _refusal("the header has members that do not belong there")
        self._header = header

    def _verify(self, signature: bytes, message: bytes) -> None:
        if isinstance(self._key, ed25519.Ed25519PublicKey):
            self._key.verify(signature, message)
            return
        if len(signature) != 2 * _P256_LEN:
            raise ValueError
        r, s = (int.from_bytes(half, "big") for half in (signature[:_P256_LEN], signature[_P256_LEN:]))
        self._key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))


class Nonces:
    """The nonces of this process, and the proofs that were seen with each."""

    def __init__(self, now_ns: int) -> None:
        self.current = ""
        self._previous = ""
        self._since_ns = 0
        self._seen: set[str] = set()
        self._seen_before: set[str] = set()
        self._replace(now_ns)
        self._replace(now_ns)

    def _replace(self, now_ns: int) -> None:
        self._previous, self._seen_before = self.current, self._seen
        self.current, self._seen = secrets.token_urlsafe(16), set()
        self._since_ns = now_ns

    def fresh(self, now_ns: int) -> str:
        """Return the nonce that clients are to use now."""
        if now_ns - self._since_ns >= NONCE_LIFE_NS or len(self._seen) >= _MAX_SEEN:
            if now_ns - self._since_ns >= 2 * NONCE_LIFE_NS:
                self._replace(now_ns)
            self._replace(now_ns)
        return self.current

    def use(self, nonce: Any, jti: str, now_ns: int) -> None:
        """Note that a proof was seen.

        Raises:
            UnauthenticatedError: It was seen before, or its nonce does not count (any more).
        """
        self.fresh(now_ns)
        if nonce == self.current:
            seen = self._seen
        elif nonce == self._previous:
            seen = self._seen_before
        else:
            message = "the proof needs a nonce of this process, see DPoP-Nonce"
            raise UnauthenticatedError("use_dpop_nonce", message, usual=True)
        if jti in seen or len(seen) >= 2 * _MAX_SEEN:
            raise _refusal("jti: this proof was used before")
        seen.add(jti)


def _refusal(what: str) -> UnauthenticatedError:
    return UnauthenticatedError("invalid_dpop_proof", f"the proof (DPoP) does not count: {what}")
