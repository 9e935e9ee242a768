"""The command line `python3 -m launch`."""

from __future__ import annotations

import sys

from launch.supervisor import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
