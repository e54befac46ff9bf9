"""Makes `python -m m2m100_onnx` the `m2m100` command."""

from __future__ import annotations

import sys

from m2m100_onnx.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
