"""Records travel between two CAS in a sealed document; anchors and epochs never go back by accident."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from typing import Final

import pytest

from fspf.cas import EmbeddedCas, export_records, import_records
from fspf.cas.portable import TAKEOVER_ADVICE, parse_records
from fspf.cas.unlock import Argon2
from fspf.core.anchor import NEVER_WRITTEN, Anchor, CasRecord
from fspf.core.errors import (
    FormatError,
    FreshnessError,
    FspfError,
    LeaseHeldError,
    UnknownVolumeError,
    UnsupportedFormatError,
    UsageError,
    VolumeExistsError,
    WrongKeyError,
)
from fspf.core.freshness import Freshness
from fspf.core.keys import SecretKey
from tests.unit.cas.conftest import OpenEmbedded, World, anchor, holder, volume

A, B = volume(1), volume(2)
PASS: Final = b"between two machines"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Argon2, "fresh", lambda: Argon2(os.urandom(16), 64, 1, 1))


@pytest.fixture
def old(open_embedded: OpenEmbedded, cas_path: str) -> EmbeddedCas:
    """Volume A at generation 7 under a live lease of epoch 1, volume B never written."""
    cas = open_embedded()
    cas.create(A, "first", Freshness.bounded(500, 64))
    lease = cas.acquire(A, expected=NEVER_WRITTEN, expected_epoch=0, adopt=NEVER_WRITTEN, holder=holder())
    cas.advance(A, lease, NEVER_WRITTEN, anchor(7))
    cas.create(B, "sec\udcffond", Freshness.strict())
    return cas


@pytest.fixture
def new(open_embedded: OpenEmbedded, cas_path: str) -> EmbeddedCas:
    return open_embedded(cas_path + ".new.sqlite")


def put(cas: EmbeddedCas, record: CasRecord) -> None:
    cas.import_records([record], override=True)


def test_all_records_arrive_without_their_leases(old: EmbeddedCas, new: EmbeddedCas) -> None:
    document = export_records(old, None, PASS)
    assert import_records(new, document, PASS) == new.list()
    assert new.list() == [replace(record, lease=None) for record in old.list()]
    assert old.fetch(A).lease is not None
    assert new.acquire(A, expected=anchor(7), expected_epoch=1, adopt=anchor(7), holder=holder()).epoch == 2


def test_named_records_only(old: EmbeddedCas, new: EmbeddedCas) -> None:
    assert [one.name for one in import_records(new, export_records(old, [A, A], PASS), PASS)] == ["first"]
    assert [one.volume_id for one in new.list()] == [A]
    with pytest.raises(UnknownVolumeError):
        export_records(old, [volume(9)], PASS)


def test_document_shows_nothing(old: EmbeddedCas) -> None:
    document = export_records(old, None, PASS)
    for secret in (b"first", A, anchor(7).root_tag, b"bounded"):
        assert secret not in document
    assert export_records(old, None, PASS) != document  # another salt


def test_wrong_passphrase(old: EmbeddedCas, new: EmbeddedCas) -> None:
    with pytest.raises(WrongKeyError, match="wrong passphrase"):
        import_records(new, export_records(old, None, PASS), b"another")
    with pytest.raises(UsageError, match="empty"):
        export_records(old, None, b"")
    assert new.list() == []


def test_every_damaged_byte_is_refused(old: EmbeddedCas, new: EmbeddedCas) -> None:
    document = export_records(old, None, PASS)
    for offset in range(len(document)):
        with pytest.raises(FormatError, match=r"damaged|not a document"):
            parse_records(document[:offset] + bytes([document[offset] ^ 1]) + document[offset + 1 :], PASS)
    for length in range(0, len(document), 7):
        with pytest.raises(FormatError, match=r"cut off"):
            import_records(new, document[:length], PASS)
    assert new.list() == []


def resummed(document: bytes, offset: int) -> bytes:
    body = document[:offset] + bytes([document[offset] ^ 1]) + document[offset + 1 : -8]
    return body + hashlib.sha256(body).digest()[:8]


def test_every_tampered_byte_is_refused(old: EmbeddedCas, new: EmbeddedCas) -> None:
    """With the checksum repaired."""
    document = export_records(old, None, PASS)
    for offset in range(len(document) - 8):
        with pytest.raises(FspfError) as caught:
            parse_records(resummed(document, offset), PASS)
        assert type(caught.value) is not FspfError
    with pytest.raises(UnsupportedFormatError, match="use a newer fspf"):
        parse_records(resummed(document, 9), PASS)


def test_import_is_repeatable(old: EmbeddedCas, new: EmbeddedCas) -> None:
    document = export_records(old, None, PASS)
    first = import_records(new, document, PASS)
    assert import_records(new, document, PASS) == first == new.list()


def at(record: CasRecord, where: Anchor, epoch: int, key: SecretKey | None = None) -> CasRecord:
    return replace(record, anchor=where, epoch=epoch, lease=None, key=key or record.key)


REFUSED: Final = [
    pytest.param(anchor(8), FreshnessError, id="anchor would move back"),
    pytest.param(anchor(7, "fork"), FreshnessError, id="anchor would move to another history"),
]


@pytest.mark.parametrize(("there", "error"), REFUSED)
def test_anchor_does_not_move_back(old: EmbeddedCas, new: EmbeddedCas, there: Anchor, error: type[FspfError]) -> None:
    before = at(old.fetch(A), there, 9)
    put(new, before)
    document = export_records(old, None, PASS)
    with pytest.raises(error, match="an import does not move an anchor back") as caught:
        import_records(new, document, PASS)
    assert caught.value.exit_code == 21
    assert new.list() == [before]  # all or none: B neither


def test_anchor_moves_forward(old: EmbeddedCas, new: EmbeddedCas) -> None:
    put(new, at(old.fetch(A), anchor(3), 1))
    import_records(new, export_records(old, [A], PASS), PASS)
    assert new.fetch(A).anchor == anchor(7)


def test_key_does_not_change(old: EmbeddedCas, new: EmbeddedCas) -> None:
    before = at(old.fetch(A), anchor(3), 1, SecretKey.generate())
    put(new, before)
    with pytest.raises(VolumeExistsError, match="another key"):
        import_records(new, export_records(old, None, PASS), PASS)
    assert new.list() == [before]


def test_open_volume_is_not_replaced(old: EmbeddedCas, new: EmbeddedCas, world: World) -> None:
    put(new, at(old.fetch(A), anchor(3), 4))
    new.acquire(A, expected=anchor(3), expected_epoch=4, adopt=anchor(3), holder=holder("mount"))
    document = export_records(old, None, PASS)
    with pytest.raises(LeaseHeldError, match="mount"):
        import_records(new, document, PASS)
    world.gone.add(holder("mount"))
    import_records(new, document, PASS)
    assert (new.fetch(A).anchor, new.fetch(A).epoch) == (anchor(7), 5)


@pytest.mark.parametrize("epoch", [0, 1, 2, 30])
def test_epochs_never_go_back_even_if_replaced(old: EmbeddedCas, new: EmbeddedCas, epoch: int) -> None:
    put(new, at(old.fetch(A), anchor(9), epoch, SecretKey.generate()))
    import_records(new, export_records(old, None, PASS), PASS, replace=True)
    stored = new.fetch(A)
    assert (stored.anchor, stored.key, stored.epoch) == (anchor(7), old.fetch(A).key, max(1, epoch))


def test_cas_that_cannot_import(old: EmbeddedCas) -> None:
    class Remote:
        url = "https://cas"

    with pytest.raises(UsageError, match="https://cas"):
        import_records(Remote(), export_records(old, None, PASS), PASS)  # type: ignore[arg-type]


def test_the_advice_names_the_danger() -> None:
    assert "fork" in TAKEOVER_ADVICE
