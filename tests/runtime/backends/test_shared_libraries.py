"""What a library needs is read from the file itself, without loading it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from berdiff.runtime.backends.shared_libraries import missing_libraries, needed_libraries

COMPILER = shutil.which("gcc") or shutil.which("cc") or shutil.which("g++")
elf_only = pytest.mark.skipif(sys.platform != "linux", reason="ELF files are Linux's")


@elf_only
@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
def test_names_the_library_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty.c").write_text("int nothing;\n")

    def build(name: str, *options: str) -> Path:
        file = tmp_path / name
        command = [COMPILER, "-shared", "-fPIC", *options, tmp_path / "empty.c", "-o", file]
        subprocess.run([str(part) for part in command], check=True)
        return file

    gone = build("libberdiff_gone.so.7", "-Wl,-soname,libberdiff_gone.so.7")
    user = build("libuser.so", "-Wl,--no-as-needed", str(gone), "-lm")
    gone.unlink()
    assert needed_libraries(user)[:2] == ["libberdiff_gone.so.7", "libm.so.6"]
    assert missing_libraries(user) == ["libberdiff_gone.so.7"]


@elf_only
def test_finds_what_an_installed_library_needs() -> None:
    import onnxruntime

    (file,) = (Path(onnxruntime.__file__).parent / "capi").glob("onnxruntime_pybind11_state*.so")
    assert "libc.so.6" in needed_libraries(file)
    assert missing_libraries(file) == []


@pytest.mark.parametrize("content", [b"", b"MZ\x90\0", b"\x7fELF\x01\x01" + bytes(100)])
def test_other_files_need_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert needed_libraries(tmp_path / "file") == []
