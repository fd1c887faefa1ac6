"""Find out again, after a crash, which slots are free: walk the state that was opened, while writing goes on.

Nothing below the old end is handed out until this is done; that rule is the native store's.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from fspf.volume.namespace import Namespace
from fspf_native import Tree

if TYPE_CHECKING:
    from fspf.core.types import ContentRoot
    from fspf_native import Store

log = logging.getLogger(__name__)

_CACHE_BYTES = 4 << 20


class Rebuild:
    """The background walk over one state.

    Attributes:
        failure: Why it ended without a result; then nothing old is reused until the next opening.
    """

    def __init__(self, store: Store, namespace: ContentRoot, *, chunk_size: int) -> None:
        self._store = store
        self._root = namespace
        self._chunk_size = chunk_size
        self._stop = threading.Event()
        self.failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="fspf-rebuild", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wait(self) -> bool:
        """Wait for the end; tell whether the space map is complete."""
        self._thread.join()
        return self.failure is None

    def stop(self) -> None:
        """End early, without a result."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._walk()
        except Exception as exc:  # noqa: BLE001  # closing must know that there is no result
            self.failure = str(exc) or repr(exc)
            log.error("free space from before the crash stays unused: %s", exc)  # noqa: TRY400  # hostile data, no bug of ours

    def _walk(self) -> None:
        self._store.rebuild_mark(self._root)
        tree = Tree(self._store, self._root, metadata=True)
        namespace = Namespace.open(tree, chunk_size=self._chunk_size, read_only=True, cache_bytes=_CACHE_BYTES)
        try:
            for _, root, protection in namespace.contents():
                if self._stop.is_set():
                    self.failure = "the volume was closed before it was done"
                    return
                self._store.rebuild_mark(root, protection)
        finally:
            namespace.close()
        gained = self._store.rebuild_finish()
        log.info("space map rebuilt: %d slots are free again", gained)
