"""Sends what the server's OpenAPI document allows, and what it does not, and checks the answers.

Not collected by pytest: it takes minutes. `scripts/test-all` runs it: schema_fuzz.py BUNDLE FOLDER
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from serving import serving

# `unsupported_method` and what is like it are asked of every path in test_bad_input.py.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,negative_data_rejection"
)


def main(bundle: str, folder: str) -> int:
    Path(folder).mkdir(parents=True, exist_ok=True)
    with serving(
        Path(bundle).resolve(), Path(folder), "--calls", "1000", "--deadline", "5"
    ) as server:
        command = [str(Path(sys.executable).with_name("schemathesis")), "run"]
        command += [f"{server.url}/openapi.json", "--checks", CHECKS, "--max-examples", "60"]
        return subprocess.run([*command, "--seed", "1"], cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
