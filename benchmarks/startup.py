"""CPU time of starting the command and of importing the ground floor.

Run it as ``python benchmarks/startup.py`` in an environment where berdiff is installed.
"""

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

REPEATS = 10
BERDIFF = str(Path(sys.executable).with_name("berdiff"))
COMMANDS = {
    "python, nothing imported": [sys.executable, "-c", "pass"],
    "import numpy": [sys.executable, "-c", "import numpy"],
    "import berdiff.runtime": [sys.executable, "-c", "import berdiff.runtime"],
    "import berdiff.runtime.detector": [sys.executable, "-c", "import berdiff.runtime.detector"],
    "berdiff --help": [BERDIFF, "--help"],
    "berdiff infer --help": [BERDIFF, "infer", "--help"],
}


def cpu_seconds(command: list[str]) -> float:
    """User and system time of one run of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, {REPEATS} runs each")
    print(f"{'CPU seconds':34}{'least':>8}{'median':>8}")
    for name, command in COMMANDS.items():
        seconds = [cpu_seconds(command) for _ in range(REPEATS)]
        print(f"{name:34}{min(seconds):8.3f}{statistics.median(seconds):8.3f}")


if __name__ == "__main__":
    main()
