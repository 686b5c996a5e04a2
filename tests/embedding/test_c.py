"""detector.onnx in C and C++, built with CMake from what the examples say."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from programs import EXAMPLES, Case, done, missing, need

pytestmark = pytest.mark.slow

HEADERS = ("/usr/local/include/onnxruntime", "/usr/include/onnxruntime")
STRICT = "-Wall -Wextra -Wpedantic -Werror"


def headers() -> Path:
    """Folder of ONNX Runtime's header, which its Python package does not bring."""
    for folder in (os.environ.get("ONNXRUNTIME_INCLUDE", ""), *HEADERS):
        if folder and Path(folder, "onnxruntime_c_api.h").is_file():
            return Path(folder)
    return Path(
        missing(
            "no onnxruntime_c_api.h (Debian 13: libonnxruntime-dev); ONNXRUNTIME_INCLUDE names "
            "its folder"
        )
    )


@pytest.fixture(scope="module")
def programs(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Both examples, built against the library of the Python package."""
    cmake, include = need("cmake", "cmake"), headers()
    need("g++", "g++")

    def build(folder: Path) -> None:
        (folder / "lib").mkdir()
        (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
        (folder / "lib" / "libonnxruntime.so.1").symlink_to(library)
        (folder / "lib" / "libonnxruntime.so").symlink_to(library)
        done([
            cmake, "-S", EXAMPLES / "cpp", "-B", folder / "build",
            f"-DONNXRUNTIME_INCLUDE={include}",
            f"-DONNXRUNTIME_LIBRARY={folder / 'lib' / 'libonnxruntime.so'}",
            f"-DCMAKE_C_FLAGS={STRICT}", f"-DCMAKE_CXX_FLAGS={STRICT}",
        ])  # fmt: skip
        done([cmake, "--build", folder / "build"])

    return made_once("c-examples", build)


def run(programs: Path, name: str, *words: object) -> subprocess.CompletedProcess[str]:
    (program,) = (programs / "build").rglob(name)
    return subprocess.run(
        [program, *map(str, words)],
        env={**os.environ, "LD_LIBRARY_PATH": str(programs / "lib")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_c_finds_what_the_runtime_finds(case: Case, programs: Path, tmp_path: Path) -> None:
    # As a scanner gives it: whole numbers, to be normalised.
    stored = np.round(1500 * case.image).astype(">u2")
    image, found = tmp_path / "image.pgm", tmp_path / "map.pgm"
    image.write_bytes(b"P5\n64 64\n4095\n" + stored.tobytes())
    ended = run(programs, "detect", case.file, image, found, 77)
    assert ended.returncode == 0, ended.stderr
    number, score = re.fullmatch(r"id (\d+)\nscore (\S+)\n", ended.stdout).groups()  # type: ignore[union-attr]

    model = case.detector.bundle.manifest.preprocessing
    prepared = model.normalise(stored.astype(np.float32)[None])
    expected = case.detector.detect(prepared[None], [int(number)], seed=77)
    assert float(score) == pytest.approx(expected.score[0], abs=1e-5)
    content = found.read_bytes()
    assert content.startswith(b"P5\n64 64\n65535\n")
    pixels = np.frombuffer(content[-2 * 64 * 64 :], ">u2").reshape(64, 64) / 65535
    np.testing.assert_allclose(pixels, expected.anomaly_map[0], rtol=0, atol=1e-5 + 1 / 65535)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"P5\n32 64\n255\n" + bytes(32 * 64), "no grey PGM image of 64 x 64"),
        (b"P5\n64 64\n255\n" + bytes(100), "no grey PGM image"),
        (b"P5\n64 64\n255\n" + bytes(64 * 64), "cannot be normalised"),
    ],
    ids=["size", "cut", "constant"],
)
def test_c_says_what_is_wrong_with_an_image(
    case: Case, programs: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "image.pgm").write_bytes(content)
    ended = run(programs, "detect", case.file, tmp_path / "image.pgm", tmp_path / "map.pgm")
    assert ended.returncode == 1
    assert message in ended.stderr
    assert not (tmp_path / "map.pgm").exists()


def test_c_says_what_is_wrong_with_a_file(case: Case, programs: Path, tmp_path: Path) -> None:
    other = case.detector.bundle.path / "onnx" / "decoder.onnx"
    for file, message in (
        (tmp_path / "none.onnx", "none.onnx"),
        (other, "no detector in one file"),
    ):
        ended = run(programs, "detect", file, "x.pgm", "y.pgm")
        assert ended.returncode == 1
        assert message in ended.stderr


def test_threads_in_cpp_find_what_the_runtime_finds(
    case: Case, programs: Path, tmp_path: Path
) -> None:
    image = case.raw(tmp_path / "image.f32")
    ended = run(programs, "detect_stream", case.file, image, 12)
    assert ended.returncode == 0, ended.stderr
    scores = [float(line.removeprefix("score ")) for line in ended.stdout.splitlines()]
    batch = np.repeat(case.image[None, None], 12, axis=0)
    expected = case.detector.detect(batch, range(12)).score
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    assert len(set(scores)) > 1


def test_a_deadline_in_cpp_ends_what_is_running(case: Case, programs: Path, tmp_path: Path) -> None:
    image = case.raw(tmp_path / "image.f32")
    ended = run(programs, "detect_stream", case.file, image, 100_000, 200)
    assert ended.returncode == 1
    assert "terminate" in ended.stderr.lower()
