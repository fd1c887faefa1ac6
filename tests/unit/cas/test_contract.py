"""What every CAS promises, written against the Protocol alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from fspf.core.anchor import NEVER_WRITTEN, Anchor, Cas, CasRecord, Lease
from fspf.core.errors import (
    AnchorMovedError,
    CasError,
    LeaseHeldError,
    LeaseLostError,
    UnknownVolumeError,
    VolumeExistsError,
)
from fspf.core.freshness import Freshness
from fspf.core.keys import SecretKey
from tests.unit.cas.conftest import SECOND, World, anchor, holder, volume

A = volume(1)
STRICT = Freshness.strict()


def acquire(cas: Cas, label: str = "test", *, adopt: Anchor | None = None) -> Lease:
    record = cas.fetch(A)
    return cas.acquire(
        A,
        expected=record.anchor,
        expected_epoch=record.epoch,
        adopt=record.anchor if adopt is None else adopt,
        holder=holder(label),
    )


@pytest.fixture
def record(cas: Cas) -> CasRecord:
    return cas.create(A, "data", STRICT)


def test_new_record(cas: Cas, record: CasRecord) -> None:
    assert (record.volume_id, record.name, record.key_version, record.epoch) == (A, "data", 1, 0)
    assert (record.anchor, record.lease, record.freshness) == (NEVER_WRITTEN, None, STRICT)
    assert cas.fetch(A) == record
    assert cas.list() == [record]


def test_volume_is_created_once(cas: Cas, record: CasRecord) -> None:
    with pytest.raises(VolumeExistsError):
        cas.create(A, "other", STRICT)
    assert cas.fetch(A) == record


def test_every_volume_has_its_own_key(cas: Cas) -> None:
    keys = {cas.create(volume(n), f"v{n}", STRICT).key.fingerprint for n in range(5)}
    assert len(keys) == 5
    assert [record.name for record in cas.list()] == ["v0", "v1", "v2", "v3", "v4"]


@pytest.mark.parametrize("name", ["", "data", "données/ü", "\udcff", "x" * 1000])
@pytest.mark.parametrize("freshness", [STRICT, Freshness.none(), Freshness.bounded(500, 64)], ids=str)
def test_name_and_freshness_are_kept(cas: Cas, name: str, freshness: Freshness) -> None:
    cas.create(A, name, freshness)
    assert (cas.fetch(A).name, cas.fetch(A).freshness) == (name, freshness)


def test_unknown_volume(cas: Cas, record: CasRecord) -> None:
    other = volume(2)
    lease = Lease(1, holder(), 0)
    asked: list[Callable[[], object]] = [
        lambda: cas.fetch(other),
        lambda: cas.acquire(other, expected=NEVER_WRITTEN, expected_epoch=0, adopt=NEVER_WRITTEN, holder=holder()),
        lambda: cas.renew(other, lease),
        lambda: cas.advance(other, lease, NEVER_WRITTEN, anchor(1)),
        lambda: cas.release(other, lease),
        lambda: cas.rekey(other, lease, NEVER_WRITTEN, anchor(1), SecretKey.generate()),
        lambda: cas.set_freshness(other, STRICT),
        lambda: cas.remove(other),
    ]
    for ask in asked:
        with pytest.raises(UnknownVolumeError, match=other.hex()):
            ask()
    assert cas.list() == [record]


@pytest.mark.parametrize("length", [0, 15, 17])
def test_what_is_no_volume_id_is_refused(cas: Cas, record: CasRecord, length: int) -> None:
    with pytest.raises(CasError):
        cas.fetch(bytes(length))
    with pytest.raises(CasError):
        cas.create(bytes(length), "x", STRICT)


def test_writing_session(cas: Cas, record: CasRecord, world: World) -> None:
    lease = acquire(cas)
    assert (lease.epoch, lease.holder, lease.expires_ns) == (1, holder(), world.now_ns + 60 * SECOND)
    assert cas.fetch(A).lease == lease
    world.pass_seconds(10)
    cas.advance(A, lease, NEVER_WRITTEN, anchor(1))
    stored = cas.fetch(A)
    assert (stored.anchor, stored.epoch) == (anchor(1), 1)
    assert stored.lease == Lease(1, holder(), world.now_ns + 60 * SECOND)  # an advance renews
    world.pass_seconds(10)
    assert cas.renew(A, lease).expires_ns == world.now_ns + 60 * SECOND
    cas.advance(A, lease, anchor(1), anchor(5))
    cas.release(A, lease)
    assert (cas.fetch(A).anchor, cas.fetch(A).lease) == (anchor(5), None)
    assert acquire(cas).epoch == 2
    assert cas.fetch(A).key == record.key


@pytest.mark.parametrize("label", ["another", "test"], ids=["another writer", "the same process again"])
def test_second_writer_is_refused_with_the_holders_name(cas: Cas, record: CasRecord, label: str) -> None:
    lease = acquire(cas, "first" if label == "another" else label)
    with pytest.raises(LeaseHeldError, match=r"open for writing by host/4711.*lease ends in 60 s") as caught:
        acquire(cas, label)
    assert caught.value.holder == lease.holder
    assert cas.fetch(A).lease == lease


def test_lease_of_a_holder_that_is_gone_can_be_taken_at_once(cas: Cas, record: CasRecord, world: World) -> None:
    acquire(cas, "first")
    world.gone.add(holder("first"))
    assert acquire(cas, "second").epoch == 2


def test_lease_expires(cas: Cas, record: CasRecord, world: World) -> None:
    acquire(cas, "first")
    world.pass_seconds(59.9)
    with pytest.raises(LeaseHeldError, match="ends in 1 s"):
        acquire(cas, "second")
    world.pass_seconds(0.1)
    assert acquire(cas, "second").epoch == 2


def test_stale_writer_is_fenced_off(cas: Cas, record: CasRecord, world: World) -> None:
    old = acquire(cas, "first")
    cas.advance(A, old, NEVER_WRITTEN, anchor(1))
    world.pass_seconds(61)
    new = acquire(cas, "second")
    for use in (
        lambda: cas.advance(A, old, anchor(1), anchor(2)),
        lambda: cas.renew(A, old),
        lambda: cas.rekey(A, old, anchor(1), anchor(2), SecretKey.generate()),
    ):
        with pytest.raises(LeaseLostError, match="second"):
            use()
    cas.release(A, old)  # left alone
    assert cas.fetch(A).lease == new
    assert cas.fetch(A).anchor == anchor(1)
    assert cas.fetch(A).key == record.key


def test_same_holder_with_an_older_epoch_is_fenced_off(cas: Cas, record: CasRecord) -> None:
    old = acquire(cas)
    cas.release(A, old)
    acquire(cas)
    with pytest.raises(LeaseLostError):
        cas.advance(A, old, NEVER_WRITTEN, anchor(1))


def test_expired_lease_that_nobody_took_goes_on(cas: Cas, record: CasRecord, world: World) -> None:
    lease = acquire(cas)  # a machine that slept
    world.pass_seconds(3600)
    cas.advance(A, lease, NEVER_WRITTEN, anchor(1))
    assert cas.fetch(A).anchor == anchor(1)


def test_release_is_idempotent(cas: Cas, record: CasRecord) -> None:
    lease = acquire(cas)
    cas.release(A, lease)
    cas.release(A, lease)
    with pytest.raises(LeaseLostError, match="released"):
        cas.advance(A, lease, NEVER_WRITTEN, anchor(1))


def test_advance_compares_the_anchor(cas: Cas, record: CasRecord) -> None:
    lease = acquire(cas)
    cas.advance(A, lease, NEVER_WRITTEN, anchor(1))
    for expected in (NEVER_WRITTEN, anchor(1, "fork"), anchor(2)):
        with pytest.raises(AnchorMovedError) as caught:
            cas.advance(A, lease, expected, anchor(3))
        assert (caught.value.expected, caught.value.found) == (expected, anchor(1))
    assert cas.fetch(A).anchor == anchor(1)


@pytest.mark.parametrize(
    "new",
    [
        anchor(4),
        anchor(5, "fork"),
        anchor(5),
        anchor(0),
        Anchor(6, bytes(16)),
        Anchor(6, b"short"),
        Anchor(-1, b"x" * 16),
    ],
    ids=str,
)
def test_anchor_never_goes_back(cas: Cas, record: CasRecord, new: Anchor) -> None:
    lease = acquire(cas)
    cas.advance(A, lease, NEVER_WRITTEN, anchor(5))
    with pytest.raises(CasError):
        cas.advance(A, lease, anchor(5), new)
    assert cas.fetch(A).anchor == anchor(5)


def test_acquire_compares_anchor_and_epoch(cas: Cas, record: CasRecord) -> None:
    cas.release(A, acquire(cas))
    for expected, epoch in ((NEVER_WRITTEN, 0), (NEVER_WRITTEN, 2), (anchor(1), 1)):
        with pytest.raises(AnchorMovedError, match="epoch 1"):
            cas.acquire(A, expected=expected, expected_epoch=epoch, adopt=expected, holder=holder())
    assert cas.fetch(A).epoch == 1


def test_recovered_commit_is_adopted_with_the_lease(cas: Cas, record: CasRecord, world: World) -> None:
    lease = acquire(cas)
    cas.advance(A, lease, NEVER_WRITTEN, anchor(7))
    world.gone.add(holder())
    assert acquire(cas, "next", adopt=anchor(8)).epoch == 2
    assert cas.fetch(A).anchor == anchor(8)


@pytest.mark.parametrize("adopt", [anchor(6), anchor(7, "fork"), anchor(0)], ids=str)
def test_older_state_is_adopted_only_without_protection(cas: Cas, record: CasRecord, adopt: Anchor) -> None:
    lease = acquire(cas)
    cas.advance(A, lease, NEVER_WRITTEN, anchor(7))
    cas.release(A, lease)
    with pytest.raises(CasError, match="only a later commit"):
        acquire(cas, adopt=adopt)
    assert (cas.fetch(A).anchor, cas.fetch(A).epoch) == (anchor(7), 1)
    cas.set_freshness(A, Freshness.none())
    acquire(cas, adopt=adopt)
    assert (cas.fetch(A).anchor, cas.fetch(A).epoch) == (adopt, 2)


def test_rekey_is_one_step(cas: Cas, record: CasRecord) -> None:
    lease = acquire(cas)
    cas.advance(A, lease, NEVER_WRITTEN, anchor(1))
    key = SecretKey.generate()
    with pytest.raises(AnchorMovedError):
        cas.rekey(A, lease, NEVER_WRITTEN, anchor(2), key)
    assert (cas.fetch(A).key, cas.fetch(A).key_version) == (record.key, 1)
    cas.rekey(A, lease, anchor(1), anchor(2), key)
    stored = cas.fetch(A)
    assert (stored.key, stored.key_version, stored.anchor, stored.name) == (key, 2, anchor(2), "data")
    assert stored.lease is not None
    cas.advance(A, lease, anchor(2), anchor(3))
    assert cas.fetch(A).key == key


def test_freshness_can_be_changed_during_a_lease(cas: Cas, record: CasRecord) -> None:
    lease = acquire(cas)
    cas.set_freshness(A, Freshness.bounded(100))
    assert (cas.fetch(A).freshness, cas.fetch(A).lease) == (Freshness.bounded(100), lease)


def test_removed_volume_is_forgotten(cas: Cas, record: CasRecord) -> None:
    cas.create(volume(2), "other", STRICT)
    lease = acquire(cas)
    cas.remove(A)
    assert [one.name for one in cas.list()] == ["other"]
    with pytest.raises(UnknownVolumeError):
        cas.advance(A, lease, NEVER_WRITTEN, anchor(1))
    assert cas.create(A, "data", STRICT).key != record.key


def test_volumes_do_not_touch_each_other(cas: Cas, record: CasRecord) -> None:
    other = cas.create(volume(2), "other", STRICT)
    lease = acquire(cas)
    cas.advance(A, lease, NEVER_WRITTEN, anchor(1))
    assert cas.fetch(volume(2)) == other
    with pytest.raises(LeaseLostError):
        cas.advance(volume(2), lease, NEVER_WRITTEN, anchor(1))


def test_closed_cas_says_so(cas: Cas, record: CasRecord) -> None:
    cas.close()
    cas.close()
    with pytest.raises(CasError, match="closed"):
        cas.fetch(A)
    with pytest.raises(CasError, match="closed"):
        cas.create(volume(2), "x", STRICT)


def test_eight_threads_each_advance_their_volume(cas: Cas) -> None:
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            volume_id = volume(number)
            record = cas.create(volume_id, f"v{number}", STRICT)
            lease = cas.acquire(
                volume_id, expected=record.anchor, expected_epoch=0, adopt=record.anchor, holder=holder(f"{number}")
            )
            now = record.anchor
            for generation in range(1, 26):
                cas.advance(volume_id, lease, now, anchor(generation))
                now = anchor(generation)
                assert cas.fetch(volume_id).anchor == now
        except BaseException as exc:  # noqa: BLE001 - shown by the main thread
            failures.append(exc)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [one.anchor for one in cas.list()] == [anchor(25)] * 8


def test_eight_threads_one_volume_one_linear_history(cas: Cas, record: CasRecord) -> None:
    lease = acquire(cas)
    won: list[Anchor] = []

    def write(name: str) -> None:
        for _ in range(25):
            seen = cas.fetch(A).anchor
            new = anchor(seen.generation + 1, name)
            try:
                cas.advance(A, lease, seen, new)
            except AnchorMovedError:
                continue
            won.append(new)

    threads = [threading.Thread(target=write, args=(f"t{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.generation for one in won) == list(range(1, len(won) + 1))
    assert cas.fetch(A).anchor == max(won, key=lambda one: one.generation)
