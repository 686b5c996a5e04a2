"""Every name of TensorRT that the project uses exists in all the versions it supports.

The bindings are the real ones, from their wheels. The libraries under them are replaced by empty
ones: names are looked up, nothing is built.
"""

from __future__ import annotations

import ast
import ctypes
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import berdiff.runtime

RUNTIME = Path(berdiff.runtime.__file__).parent
VERSIONS = [
    ("tensorrt-cu12-bindings", "10.3.0"),
    ("tensorrt-cu12-bindings", "10.16.*"),
    ("tensorrt-cu12-bindings", "11.*"),
    ("tensorrt-cu13-bindings", "10.16.*"),
    ("tensorrt-cu13-bindings", "11.*"),
]

# What the variables that hold the library's objects are called, in each file that uses it.
VARIABLES = {
    "engines/build.py": {},
    "engines/library.py": {},
    "engines/graph.py": {"graph": "INetworkDefinition", "layer": "ILayer", "tensor": "ITensor"},
    "engines/compile.py": {
        "builder": "Builder",
        "graph": "INetworkDefinition",
        "parser": "OnnxParser",
        "config": "IBuilderConfig",
        "profile": "IOptimizationProfile",
        "tensor": "ITensor",
        "cache": "ITimingCache",
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "inspector": "EngineInspector",
    },
    "backends/tensorrt_networks.py": {
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
        "config": "IRuntimeConfig",
        "cache": "IRuntimeCache",
    },
}
# Used with TensorRT for RTX only, whatever TensorRT has of it.
RTX_ONLY = re.compile(
    r"ComputeCapability|IBuilderConfig\.(num_compute_capabilities|set_compute_capability)|"
    r"CudaGraphStrategy|DynamicShapesKernelSpecializationStrategy|"
    r"ICudaEngine\.create_runtime_config|IRuntimeConfig|IRuntimeCache"
)

# Used where the code has found another name.
COMPANIONS = {"ICudaEngine.get_engine_stat": "EngineStat"}


def names_in(file: Path, variables: dict[str, str]) -> tuple[set[str], set[str]]:
    """What a file uses, as "BuilderFlag.TF32", and the parts it asks for with `hasattr` first."""
    tree = ast.parse(file.read_text())
    aliases = {
        node.targets[0].id: re.sub(r"^(\w+\.)*_?trt\.", "", ast.unparse(node.value))
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and re.fullmatch(r"(\w+\.)*_?trt\.\w+", ast.unparse(node.value))
    }
    used, seen = set(), set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        text = ast.unparse(node)
        if match := re.fullmatch(r"(?:\w+\.)*_?trt\.(\w+(?:\.\w+)?)", text):
            used.add(match[1])
        elif match := re.fullmatch(r"(?:self\._)?(\w+)\.(\w+)", text):
            owner, name = match[1], match[2]
            if owner in aliases:
                used.add(f"{aliases[owner]}.{name}")
            elif owner in variables:
                seen.add(owner)
                used.add(f"{variables[owner]}.{name}")
    assert seen == set(variables), f"{file.name} no longer has the variables listed here"
    asked = re.findall(r'hasattr\([\w.]+, "(\w+)"\)', ast.unparse(tree).replace("'", '"'))
    return used - {"__version__"}, set(asked)


def names() -> tuple[set[str], set[str]]:
    """All names used, and all parts of names that are asked for first."""
    used: set[str] = set()
    asked: set[str] = set()
    for name, variables in VARIABLES.items():
        found = names_in(RUNTIME / name, variables)
        used |= found[0]
        asked |= found[1]
    return used, asked


def has(library: ModuleType, name: str) -> bool:
    first, _, rest = name.partition(".")
    owner = getattr(library, first, None)
    return owner is not None and (not rest or hasattr(owner, rest))


def test_every_file_that_uses_the_library_is_listed() -> None:
    files = [*(RUNTIME / "engines").glob("*.py"), *(RUNTIME / "backends").glob("*.py")]
    using = {
        file.relative_to(RUNTIME).as_posix()
        for file in files
        if re.search(r"\b_?trt\.[A-Za-z]", file.read_text())
    }
    assert using == set(VARIABLES)


def test_names_are_found_in_the_code() -> None:
    used, asked = names()
    assert used >= {
        "BuilderFlag.TF32",
        "Builder.build_serialized_network",
        "EngineInspector.get_engine_information",
        "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY",
        "ICudaEngine.device_memory_size_v2",
        "IExecutionContext.execute_async_v3",
        "ILayer.metadata",
        "ILogger.__init__",
        "LayerType.DEQUANTIZE",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "Runtime.deserialize_cuda_engine",
    }
    assert "SAME_COMPUTE_CAPABILITY" in asked
    assert any(RTX_ONLY.match(name) for name in used)


def test_names_exist_in_tensorrt_for_rtx() -> None:
    library = pytest.importorskip("tensorrt_rtx")
    used, _ = names()
    assert {name for name in used if not has(library, name)} == set()


@pytest.mark.slow
@pytest.mark.parametrize(("package", "version"), VERSIONS, ids=lambda value: value)
def test_names_exist_in_tensorrt(
    package: str, version: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    kept = Path(pytestconfig.cache.mkdir("tensorrt-bindings"))  # type: ignore[union-attr]
    zipfile.ZipFile(wheel(package, version, kept)).extractall(tmp_path)
    stubs = stub_libraries(tmp_path / "tensorrt_bindings" / "tensorrt.so", tmp_path / "stubs")
    environment = os.environ | {"LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", LOOK_UP],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["version"].startswith(version.rstrip("*"))
    assert answer["log"] == ["a warning"]

    used, asked = names()
    present = answer["names"]
    needed = {name for name in used if not RTX_ONLY.match(name)}
    absent = {name for name in needed if not is_in(present, name)}
    assert {name for name in absent if not is_optional(present, name, asked)} == set()


# Prints everything that the bindings define, and tries the two classes the project derives from.
LOOK_UP = """
import json
import tensorrt_bindings as trt
from berdiff.runtime.engines.library import BuildLog, make_logger

log = BuildLog()
make_logger(trt, log).log(trt.ILogger.Severity.WARNING, "a warning")
class Monitor(trt.IProgressMonitor):
    def __init__(self):
        trt.IProgressMonitor.__init__(self)
Monitor()
names = {name: dir(getattr(trt, name)) for name in dir(trt)}
print(json.dumps({"version": trt.__version__, "log": log.warnings, "names": names}))
"""


def is_in(present: dict[str, list[str]], name: str) -> bool:
    first, _, rest = name.partition(".")
    return first in present and (not rest or rest in present[first])


def is_optional(present: dict[str, list[str]], name: str, asked: set[str]) -> bool:
    """Whether the code does without a name that is absent: it asks for it, or for its class."""
    first, _, rest = name.partition(".")
    companion = COMPANIONS.get(name, first)
    return rest in asked or (companion in asked and companion not in present)


def wheel(package: str, version: str, kept: Path) -> Path:
    """The wheel for this interpreter, downloaded unless an earlier run has kept it."""
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    pattern = f"{package.replace('-', '_')}-{version.rstrip('*')}*-{python}-*.whl"
    if not list(kept.glob(pattern)):
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", str(kept)]
        command += [*shlex.split(os.environ.get("PIP_ARGS", "")), f"{package}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            offered = re.search(r"\(from versions: (.*?)\)", done.stderr)
            if offered and offered[1] != "none":
                pytest.skip(f"there is no {package} {version} for {python}")
            unavailable(f"no package index with {package} can be reached:\n{done.stderr}")
    return max(kept.glob(pattern))


def stub_libraries(extension: Path, folder: Path) -> Path:
    """Empty libraries for all that an extension module needs and this process does not have."""
    for tool in ("gcc", "nm", "readelf"):
        if shutil.which(tool) is None:
            unavailable(f"there is no {tool} to make stub libraries with")
    undefined = subprocess.check_output(["nm", "-D", "--undefined-only", extension], text=True)
    here = ctypes.CDLL(None)  # the interpreter's and the C library's names
    wanted: list[str] = re.findall(r" U (\w+)$", undefined, re.MULTILINE)
    missing = [name for name in wanted if not hasattr(here, name)]
    assert missing, f"{extension.name} needs nothing"
    needed = subprocess.check_output(["readelf", "-d", extension], text=True)
    libraries = re.findall(r"\(NEEDED\).*\[(libnv[^]]+)\]", needed)
    assert libraries, f"{extension.name} needs no library of TensorRT"
    folder.mkdir()
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in missing))
    for library in libraries:
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library]
        subprocess.run([*command, source], check=True)
    return folder


def unavailable(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
