"""Runs clients from npm against a server.

Not collected by pytest: it needs Node and npm's registry. `scripts/test-all` runs it where there is
Node: node_clients.py BUNDLE FOLDER
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from m2m100_onnx import Translator
from serving import serving

NODE = Path(__file__).resolve().parent / "node"


def main(bundle: str, folder: str) -> int:
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "clients.mjs"):
        shutil.copy(NODE / name, place)
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
    subprocess.run(install, cwd=place, check=True)
    translator = Translator(bundle, intra_op_num_threads=1)
    expected = translator.translate("Open the file.", source_lang="en", target_lang="de")
    with serving(Path(bundle).resolve(), place) as server:
        command = ["node", "clients.mjs", server.url, expected]
        return subprocess.run(command, cwd=place, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
