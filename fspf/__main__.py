"""Let `python -m fspf` do what `fspf` does.

The command line itself is in `fspf.cli`.
"""

from __future__ import annotations

import sys

from fspf.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
