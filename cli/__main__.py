"""``python -m berdiff.cli``: the same command, for launchers that start modules."""

from .main import run

if __name__ == "__main__":
    run()
