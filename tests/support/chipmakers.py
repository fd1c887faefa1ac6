"""Makers of processors of our own, for what the real ones' vectors do not show: revoked chips, old parts, new modules.

Everything is put together from the formats' descriptions and signed with keys made here; the verifiers under test are not used.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fspf.attestation import Collateral, Trust

NOW: Final = datetime(2026, 1, 15, 12, tzinfo=UTC)
NOW_NS: Final = round(NOW.timestamp()) * 1_000_000_000
DAY: Final = timedelta(days=1)
FMSPC: Final = "010203040506"
QE_SIGNER: Final = "dc" * 32


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def raw_p256(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def der(tag: int, body: bytes) -> bytes:
    length = bytes([len(body)]) if len(body) < 128 else bytes([0x82]) + len(body).to_bytes(2, "big")
    return bytes([tag]) + length + body


def integer(number: int) -> bytes:
    return der(2, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def pck_extension(svns: Sequence[int], pce_svn: int, fmspc: str) -> bytes:
    """Return Intel's extension of a PCK certificate."""
    arc = bytes.fromhex("2a864886f84d010d01")

    def pair(oid: bytes, value: bytes) -> bytes:
        return der(0x30, der(6, arc + oid) + value)

    tcb = b"".join(pair(bytes([2, 1 + index]), integer(svn)) for index, svn in enumerate(svns))
    tcb += pair(b"\x02\x11", integer(pce_svn)) + pair(b"\x02\x12", der(4, bytes(16)))
    whole = pair(b"\x01", der(4, bytes(16))) + pair(b"\x02", der(0x30, tcb)) + pair(b"\x03", der(4, bytes(2)))
    return der(0x30, whole + pair(b"\x04", der(4, bytes.fromhex(fmspc))) + pair(b"\x05", der(10, b"\0")))


def level(
    status: str, svn: int, pce: int = 10, advisories: Sequence[str] = (), tdx: Sequence[int] = (3, 0)
) -> dict[str, Any]:
    """Return a level of TCB info that asks for *svn* everywhere, and for the given first TDX components."""
    return {
        "tcb": {
            "sgxtcbcomponents": [{"svn": svn}] * 16,
            "tdxtcbcomponents": [{"svn": one} for one in (*tdx, *[svn] * (16 - len(tdx)))],
            "pcesvn": pce,
        },
        "tcbStatus": status,
        "advisoryIDs": list(advisories),
    }


def part_level(status: str, svn: int, advisories: Sequence[str] = ()) -> dict[str, Any]:
    return {"tcb": {"isvsvn": svn}, "tcbStatus": status, "advisoryIDs": list(advisories)}


class Intel:
    """A maker with root, PCK CA, signing key and one platform."""

    def __init__(self) -> None:
        self.keys = {
            who: ec.generate_private_key(ec.SECP256R1()) for who in ("root", "ca", "signing", "pck", "attestation")
        }
        self.root = self.issue("Intel SGX Root CA", "root", "root", "Intel SGX Root CA", ca=True)
        self.ca = self.issue("Intel SGX PCK Platform CA", "ca", "root", "Intel SGX Root CA", ca=True)
        self.signing = self.issue("Intel SGX TCB Signing", "signing", "root", "Intel SGX Root CA")
        self.pck = self.platform()

    def issue(
        self,
        subject: str,
        who: str,
        by: str,
        issuer: str,
        *,
        ca: bool = False,
        extension: bytes = b"",
        days: tuple[int, int] = (-300, 300),
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(issuer))
            .public_key(self.keys[who].public_key())
            .serial_number(1000 + sum(subject.encode()))
            .not_valid_before(NOW + days[0] * DAY)
            .not_valid_after(NOW + days[1] * DAY)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if extension:
            oid = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
            builder = builder.add_extension(x509.UnrecognizedExtension(oid, extension), critical=False)
        return builder.sign(self.keys[by], hashes.SHA256())

    def platform(self, svns: Sequence[int] = (5,) * 16, pce_svn: int = 11, fmspc: str = FMSPC) -> x509.Certificate:
        extension = pck_extension(svns, pce_svn, fmspc)
        return self.issue("Intel SGX PCK Certificate", "pck", "ca", "Intel SGX PCK Platform CA", extension=extension)

    def crl(
        self, who: str, issuer: str, revoked: Sequence[x509.Certificate] = (), days: tuple[int, int] = (-1, 29)
    ) -> bytes:
        builder = x509.CertificateRevocationListBuilder(name(issuer), NOW + days[0] * DAY, NOW + days[1] * DAY)
        for one in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(one.serial_number).revocation_date(NOW - DAY).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.keys[who], hashes.SHA256()).public_bytes(Encoding.DER)

    def tcb_info(self, kind: str, levels: Sequence[Any], **change: Any) -> dict[str, Any]:
        module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        modules = [
            {
                **module,
                "id": "TDX_01",
                "tcbLevels": [part_level("UpToDate", 4), part_level("OutOfDate", 2, ["OLD-MODULE"])],
            },
            {**module, "id": "TDX_03", "tcbLevels": [part_level("UpToDate", 3)]},
        ]
        tdx = {"tdxModule": module, "tdxModuleIdentities": modules} if kind == "tdx" else {}
        return {
            "id": kind.upper(), "version": 3, "issueDate": "2026-01-14T00:00:00Z", "nextUpdate": "2026-02-13T00:00:00Z",
            "fmspc": FMSPC.upper(), "pceId": "0000", "tcbType": 0, "tcbEvaluationDataNumber": 18, "tcbLevels": list(levels),
        } | tdx | change  # fmt: skip

    def qe_identity(self, kind: str, **change: Any) -> dict[str, Any]:
        return {
            "id": "TD_QE" if kind == "tdx" else "QE", "version": 2,
            "issueDate": "2026-01-14T00:00:00Z", "nextUpdate": "2026-02-13T00:00:00Z",
            "miscselect": "00000000", "miscselectMask": "FFFFFFFF",
            "attributes": "11" + "00" * 15, "attributesMask": "FB" + "FF" * 7 + "00" * 8,
            "mrsigner": QE_SIGNER.upper(), "isvprodid": 2,
            "tcbLevels": [part_level("UpToDate", 4), part_level("OutOfDate", 2, ["OLD-QE"]), part_level("Revoked", 1)],
        } | change  # fmt: skip

    def collateral(
        self,
        kind: str,
        levels: Sequence[Any],
        *,
        tcb: Mapping[str, Any] | None = None,
        qe: Mapping[str, Any] | None = None,
        revoked: Sequence[x509.Certificate] = (),
        root_revoked: Sequence[x509.Certificate] = (),
        pck_crl_days: tuple[int, int] = (-1, 29),
        root_crl_days: tuple[int, int] = (-1, 29),
    ) -> Collateral:
        documents = (self.tcb_info(kind, levels, **(tcb or {})), self.qe_identity(kind, **(qe or {})))
        info, identity = (json.dumps(document, separators=(",", ":")).encode() for document in documents)
        chain = self.signing.public_bytes(Encoding.PEM) + self.root.public_bytes(Encoding.PEM)
        return Collateral(
            info, raw_p256(self.keys["signing"], info), identity, raw_p256(self.keys["signing"], identity), chain,
            (self.crl("ca", "Intel SGX PCK Platform CA", revoked, pck_crl_days),),
            self.crl("root", "Intel SGX Root CA", root_revoked, root_crl_days),
        )  # fmt: skip

    def trust(self, *collateral: Collateral) -> Trust:
        root = hashlib.sha256(self.root.public_bytes(Encoding.DER)).hexdigest()
        return Trust(intel_roots=frozenset({root}), collateral=collateral)

    def enclave(self, **change: Any) -> bytes:
        values: dict[str, Any] = {
            "attributes": b"\x05" + bytes(15), "mrenclave": b"\xe1" * 32, "mrsigner": b"\xe2" * 32, "prodid": 7, "svn": 3,
            "data": bytes(64),
        } | change  # fmt: skip
        body: bytes = (
            bytes(16) + values.get("miscselect", bytes(4)) + bytes(28) + values["attributes"] + values["mrenclave"] + bytes(32)
            + values["mrsigner"] + bytes(96) + struct.pack("<HH", values["prodid"], values["svn"]) + bytes(60) + values["data"]
        )  # fmt: skip
        return body

    def domain(self, **change: Any) -> bytes:
        values: dict[str, Any] = {
            "tcb": bytes([4, 1]) + b"\x05" * 14,
            "signer": bytes(48),
            "seam": bytes(8),
            "attributes": bytes(8),
        }
        values |= change
        body: bytes = (
            values["tcb"] + b"\xa1" * 48 + values["signer"] + values["seam"] + values["attributes"] + b"\xe7" + bytes(7)
            + b"".join(bytes([0xB0 + index]) * 48 for index in range(8)) + bytes(64)
        )  # fmt: skip
        return body

    def quote(
        self,
        kind: str,
        body: bytes,
        *,
        version: int = 4,
        qe: Mapping[str, Any] | None = None,
        chain: Sequence[x509.Certificate] = (),
    ) -> bytes:
        """Return a quote over *body*, with this platform's certificates or others."""
        vendor = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
        signed = struct.pack("<HHIHH", version, 2, 0x81 if kind == "tdx" else 0, 0, 0) + vendor + bytes(20)
        if version == 5:
            signed += struct.pack("<HI", {384: 1, 584: 2, 648: 3}[len(body)], len(body))
        signed += body
        key, authentication = point(self.keys["attestation"]), b"authentic"
        described = {
            "attributes": b"\x11" + bytes(15), "mrsigner": bytes.fromhex(QE_SIGNER), "prodid": 2, "svn": 4,
            "data": hashlib.sha256(key + authentication).digest() + bytes(32),
        }  # fmt: skip
        report = self.enclave(**(described | dict(qe or {})))
        pem = b"".join(one.public_bytes(Encoding.PEM) for one in (chain or (self.pck, self.ca, self.root)))
        inner = (
            report + raw_p256(self.keys["pck"], report) + struct.pack("<H", len(authentication)) + authentication
            + struct.pack("<HI", 5, len(pem)) + pem
        )  # fmt: skip
        wrapped = inner if version == 3 else struct.pack("<HI", 6, len(inner)) + inner
        data = raw_p256(self.keys["attestation"], signed) + key + wrapped
        return signed + struct.pack("<I", len(data)) + data


@cache
def rsa_key(who: str) -> rsa.RSAPrivateKey:
    """Return a key of a role; the size is not AMD's, which would take seconds to make."""
    return rsa.generate_private_key(65537, 2048)


class Amd:
    """A maker with ARK and ASK of a product, and one chip."""

    def __init__(
        self,
        product: str = "Milan",
        tcb: Mapping[int, int] | None = None,
        chip: bytes = b"\xc1" * 64,
        named: str = "",
    ) -> None:
        self.product = product
        self.vcek_key = ec.derive_private_key(77, ec.SECP384R1())
        self.ark = self.issue(f"ARK-{product}", f"ARK-{product}", rsa_key("ark").public_key(), rsa_key("ark"), ca=True)
        self.ask = self.issue(f"SEV-{product}", f"ARK-{product}", rsa_key("ask").public_key(), rsa_key("ark"), ca=True)
        extensions = {"2": der(0x16, f"{named or product}-B0".encode()), "4": chip}
        for number, svn in (tcb or {1: 3, 2: 0, 3: 8, 8: 115}).items():
            extensions[f"3.{number}"] = integer(svn)
        self.vcek = self.issue(
            "SEV-VCEK", f"SEV-{product}", self.vcek_key.public_key(), rsa_key("ask"), extensions=extensions
        )

    def issue(
        self,
        subject: str,
        issuer: str,
        key: Any,
        signer: rsa.RSAPrivateKey,
        *,
        ca: bool = False,
        extensions: Mapping[str, bytes] | None = None,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(issuer))
            .public_key(key)
            .serial_number(1000 + sum(subject.encode()))
            .not_valid_before(NOW - 300 * DAY)
            .not_valid_after(NOW + 300 * DAY)
        )
        if ca:
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        for oid, value in (extensions or {}).items():
            whole = x509.ObjectIdentifier(f"1.3.6.1.4.1.3704.1.{oid}")
            builder = builder.add_extension(x509.UnrecognizedExtension(whole, value), critical=False)
        return builder.sign(signer, hashes.SHA384(), rsa_padding=self.padding())

    @staticmethod
    def padding() -> padding.PSS:
        return padding.PSS(padding.MGF1(hashes.SHA384()), 48)

    def crl(self, revoked: Sequence[x509.Certificate], signer: str = "ark") -> bytes:
        builder = x509.CertificateRevocationListBuilder(name(f"ARK-{self.product}"), NOW - DAY, NOW + 29 * DAY)
        for one in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(one.serial_number).revocation_date(NOW - DAY).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(rsa_key(signer), hashes.SHA384(), rsa_padding=self.padding()).public_bytes(Encoding.DER)

    def trust(self, *crls: bytes) -> Trust:
        return Trust(amd_roots=frozenset({hashlib.sha256(self.ark.public_bytes(Encoding.DER)).hexdigest()}), crls=crls)

    def certificates(self) -> list[bytes]:
        return [one.public_bytes(Encoding.DER) for one in (self.vcek, self.ask, self.ark)]

    def report(self, changes: Mapping[int, bytes] | None = None, *, version: int = 3) -> bytes:
        """Return a signed report; *changes* are bytes at offsets, made before signing."""
        raw = bytearray(1184)
        parts = {
            0x00: struct.pack("<II", version, 4), 0x08: struct.pack("<Q", 0x30000), 0x34: struct.pack("<I", 1),
            0x90: b"\x3e" * 48, 0x160: b"\xff" * 32, 0x180: bytes([3, 0, 0, 0, 0, 0, 8, 115]),
            0x188: bytes([0x19, 1, 1]) if version >= 3 else b"", 0x1A0: b"\xc1" * 64,
        } | dict(changes or {})  # fmt: skip
        for offset, data in parts.items():
            raw[offset : offset + len(data)] = data
        r, s = decode_dss_signature(self.vcek_key.sign(bytes(raw[:0x2A0]), ec.ECDSA(hashes.SHA384())))
        raw[0x2A0:0x2E8], raw[0x2E8:0x330] = r.to_bytes(72, "little"), s.to_bytes(72, "little")
        return bytes(raw)
