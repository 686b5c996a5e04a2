"""Coverage-guided fuzzing of everything that reads files from outside, with atheris.

    pip install atheris
    python tests/fuzz.py dcm -max_total_time=600

The first argument is a kind of file (see ``KINDS`` in tests/runtime/hostile.py), what follows goes
to libFuzzer. It starts from a small valid file and ends at the first input that is neither read nor
refused with a proper error, or that takes more memory or time than it may; that input is saved.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent / "runtime"))

with atheris.instrument_imports(include=["berdiff", "nibabel", "zipfile"]):
    import hostile


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in hostile.KINDS:
        sys.exit(f"usage: fuzz.py KIND [libFuzzer options]; kinds: {', '.join(hostile.KINDS)}")
    kind = sys.argv.pop(1)
    corpus = tempfile.mkdtemp(prefix=f"fuzz-{kind}-")
    (Path(corpus) / "valid").write_bytes(hostile.valid(kind))
    accepted = 0

    def once(data: bytes) -> None:
        nonlocal accepted
        accepted += hostile.consume(kind, data)

    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    options = ["-rss_limit_mb=3000", "-timeout=30", "-max_len=200000"]
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:], corpus], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
