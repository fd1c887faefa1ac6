"""Change the volume key without touching data: wrap every epoch key anew and anchor a root record under the new key.

It does not rotate epoch keys: who has an old volume key *and* an old keyring can still read old chunks.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from fspf.core.anchor import Anchor
from fspf.core.errors import CasUnreachableError, FspfError
from fspf.core.format import NONCE_LEN, KeyringRecord
from fspf.volume.layout import Layout
from fspf.volume.opening import acquire_state, find_state, lock_for_writing
from fspf.volume.volume import Volume
from fspf_native import SecretKey

if TYPE_CHECKING:
    from fspf.core.anchor import Cas, Lease
    from fspf.volume.opening import Opening


def rekey(path: str | bytes | os.PathLike[str], cas: Cas, *, label: str = "rekey") -> int:
    """Give the volume at *path* a new volume key; returns the version of the new key.

    At every crash point either the old or the new key opens the volume (COMMIT.md, rekey).

    Raises:
        FspfError: As for opening for writing.
    """
    layout = Layout(path)
    _settle_log(path, cas, label)
    try:
        lock_for_writing(layout, cas)
        opening, lease = acquire_state(layout, cas, label)
        try:
            return _rekey(layout, cas, lease, opening)
        finally:
            cas.release(opening.record.volume_id, lease)
    finally:
        layout.close()


def _settle_log(path: str | bytes | os.PathLike[str], cas: Cas, label: str) -> None:
    """Commit what a crash left in the intent log: it is sealed under the old key."""
    layout = Layout(path)
    try:
        pending = find_state(layout, cas).log
    finally:
        layout.close()
    if pending:
        Volume.open(path, cas, label=label).close()


def _rekey(layout: Layout, cas: Cas, lease: Lease, opening: Opening) -> int:
    record, state, volume_id = opening.record, opening.state, opening.header.volume_id
    new_key, new_version = SecretKey.generate(), record.key_version + 1
    # 1: only records of the present version; what an interrupted rekey left would contradict ours.
    present = [*opening.keyring.of_version(record.key_version).values()]
    present = [entry for entry in present if entry.epoch in opening.epoch_keys]
    epoch_keys = opening.epoch_keys | {lease.epoch: SecretKey.generate()}
    own = KeyringRecord.wrap(record.key, record.key_version, volume_id, lease.epoch, epoch_keys[lease.epoch])
    layout.replace_keyring([*present, own])
    # 2: the same keys under the new version beside them.
    wrapped = [
        KeyringRecord.wrap(new_key, new_version, volume_id, epoch, key) for epoch, key in sorted(epoch_keys.items())
    ]
    layout.replace_keyring([*present, own, *wrapped])
    # 3: the same state as a new generation under the new key. Until step 4 it counts for nobody.
    root = replace(
        state,
        generation=state.generation + 1,
        epoch=lease.epoch,
        previous_tag=state.tag,
        anchor_generation=state.generation,
        anchor_tag=state.tag,
        keyring_epochs=len(epoch_keys),
        created_ns=time.time_ns(),
    )
    frame = root.seal_frame(new_key, new_version, opening.header_bytes, os.urandom(NONCE_LEN))
    layout.write_root(root.generation, frame.pack())
    # 4: key and anchor change in one transaction.
    old, new = Anchor(state.generation, state.tag), Anchor(root.generation, frame.tag)
    try:
        cas.rekey(volume_id, lease, old, new, new_key)
    except CasUnreachableError:
        try:
            arrived = cas.fetch(volume_id).anchor == new
        except FspfError:
            arrived = False
        if not arrived:
            raise
    # 5: the old wrappings are of no use any more.
    layout.replace_keyring(wrapped)
    return new_version
