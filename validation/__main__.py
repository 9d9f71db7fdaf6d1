"""``python -m validation``: what can be done with a run afterwards, or planned before one."""

from __future__ import annotations

import sys

from validation.commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
