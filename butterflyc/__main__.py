"""Run ``python -m butterflyc``; the ``butterflyc`` command is the same."""

from __future__ import annotations

import sys


def main() -> None:
    from .cli.app import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
