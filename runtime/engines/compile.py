"""One ONNX file to one engine, and what that engine is."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from ..bundle import Bundle
from ..cuda.networks import TENSORS
from ..errors import BackendError
from ..files import sha256_file, write_atomic
from . import inspection
from .gpu import Gpu
from .graph import products
from .library import TENSORRT_RTX, BuildLog, Library, make_logger
from .options import PORTABLE, BuildOptions
from .store import NetworkEngine, engine_file, onnx_digests

# Called with the network, what is being done to it, and how far that is, from 0 to 1.
Progress = Callable[[str, str, float], None]

# Warnings that say a network runs otherwise than it was asked to.
_SUSPECT = re.compile(
    r"unsupported|not (?:natively )?support|fall(?:s|ing)?[ -]?back|no implementation|"
    r"cannot be (?:built|run|used)|ignored",
    re.IGNORECASE,
)
# Those among them that say nothing of the kind.
_HARMLESS = (
    # `t` is int64 by the bundle's interface, and given as such.
    re.compile(r"Make sure input \S+ has Int64 binding"),
)


@dataclass(frozen=True)
class Job:
    """What all three networks of a build have in common."""

    library: Library
    trt: ModuleType
    bundle: Bundle
    target: str
    gpu: Gpu | None
    options: BuildOptions
    timing_cache: Path | None
    progress: Progress | None


def build_network(job: Job, network: str, folder: Path) -> NetworkEngine:
    """Build one network's engine into a folder, and say what it is.

    Raises
    ------
    BackendError
        If it cannot be built, or is not what the ONNX file says.
    """
    log = BuildLog()
    logger = make_logger(job.trt, log)
    started = time.perf_counter()
    serialized, expected = _serialize(job, network, log, logger)
    seconds = time.perf_counter() - started
    warnings = _checked_warnings(network, log)
    made = _inspect(job, network, serialized, log, logger)
    compute = inspection.computed_types(expected, made.layers, network)
    _check_io(network, made.inputs, made.outputs)
    file = engine_file(folder, network)
    file.write_bytes(serialized)
    return NetworkEngine(
        onnx_sha256=onnx_digests(job.bundle)[network],
        sha256=sha256_file(file),
        size=file.stat().st_size,
        inputs=made.inputs,
        outputs=made.outputs,
        compute=compute,
        weights=inspection.weight_bytes_by_type(made.layers),
        layers=len(made.layers),
        # The whole file bounds the weights, where the library does not tell.
        weight_bytes=inspection.memory_from_log(log.facts, "Weights") or file.stat().st_size,
        scratch_bytes=made.scratch_bytes,
        warnings=warnings,
        build_seconds=round(seconds, 2),
    )


def _serialize(job: Job, network: str, log: BuildLog, logger: Any) -> tuple[Any, dict[str, str]]:
    """Build an engine; returns it in serialized form, and the types its products should have."""
    try:
        builder = job.trt.Builder(logger)
    except Exception as error:  # the bindings raise TypeError where the library returns nothing
        raise BackendError(f"{job.library.name} cannot start: {log.reasons()}") from error
    flag = 1 << int(job.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    graph = builder.create_network(flag)
    # The library keeps no hold of these: they have to live until the engine is built.
    parser = _parse(job, network, graph, logger)
    config = configure(job, builder, graph)
    cache = open_timing_cache(job, config)
    monitor = config.progress_monitor = _monitor(job, network, log)
    expected = products(job.trt, graph)
    with _interrupts_noted(log):
        serialized = builder.build_serialized_network(graph, config)
    if log.interruption is not None:
        raise log.interruption
    if serialized is None:
        raise BackendError(
            f"{job.library.name} {job.trt.__version__} cannot build the {network} for "
            f"{job.target} in {job.bundle.manifest.precision}: {log.reasons()}"
        )
    if job.timing_cache is not None:
        write_atomic(job.timing_cache, bytes(cache.serialize()))
    del parser, monitor
    return serialized, expected


@contextlib.contextmanager
def _interrupts_noted(log: BuildLog) -> Iterator[None]:
    """Note Ctrl-C instead of raising it: inside a call from the library it would be lost."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.default_int_handler or not _in_main_thread():
        yield  # somebody else's to handle
        return

    def note(number: int, frame: FrameType | None) -> None:
        log.interruption = KeyboardInterrupt()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _parse(job: Job, network: str, graph: Any, logger: Any) -> Any:
    path = job.bundle.file(f"onnx/{network}.onnx")
    parser = job.trt.OnnxParser(graph, logger)
    if not parser.parse_from_file(str(path)):
        reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise BackendError(
            f"{job.library.name} {job.trt.__version__} cannot read {path}: "
            f"{'; '.join(reasons) or 'it gave no reason'}"
        )
    return parser


def configure(job: Job, builder: Any, graph: Any) -> Any:
    """Make the configuration of a builder from the options of a build."""
    trt, options = job.trt, job.options
    config = builder.create_builder_config()
    # What the inspection reads.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # float32 is float32: TensorFloat-32 has 10 bits of mantissa, as float16 has.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.builder_optimization_level is not None:
        config.builder_optimization_level = options.builder_optimization_level
    if options.hardware_compatibility != "none":
        levels = trt.HardwareCompatibilityLevel
        config.hardware_compatibility_level = (
            levels.AMPERE_PLUS
            if options.hardware_compatibility == "ampere+"
            else levels.SAME_COMPUTE_CAPABILITY
        )
    if job.library is TENSORRT_RTX and job.target != PORTABLE:
        name = job.target.replace("sm_", "SM")
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)
    config.add_optimization_profile(_profile(options, builder, graph))
    return config


def open_timing_cache(job: Job, config: Any) -> Any:
    """Give the builder what earlier builds have timed, where a file was named for that."""
    if job.timing_cache is None:
        return None
    data = job.timing_cache.read_bytes() if job.timing_cache.is_file() else b""
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        raise BackendError(
            f"{job.timing_cache} is no timing cache of TensorRT {job.trt.__version__} for this "
            "GPU; name another file"
        )
    return cache


def _profile(options: BuildOptions, builder: Any, graph: Any) -> Any:
    """Batch sizes of every input that has any."""
    profile = builder.create_optimization_profile()
    for index in range(graph.num_inputs):
        tensor = graph.get_input(index)
        shape = tuple(tensor.shape)
        if shape[0] == -1:
            profile.set_shape(tensor.name, *[(size, *shape[1:]) for size in options.dynamic_batch])
    return profile


def _monitor(job: Job, network: str, log: BuildLog) -> Any:
    """Pass the library's progress on, and a wish to stop back to it."""

    class Monitor(job.trt.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            job.trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = steps
            self.step_complete(phase, -1)

        def step_complete(self, phase: str, step: int) -> bool:
            """Report a step; False asks the library to stop."""
            try:
                if job.progress is not None and log.interruption is None:
                    job.progress(network, phase, (step + 1) / max(1, self._steps.get(phase, 1)))
            except BaseException as error:  # must not travel through the library
                log.interruption = error
            return log.interruption is None

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()


def _checked_warnings(network: str, log: BuildLog) -> tuple[str, ...]:
    """Warnings of a build; refused where they tell of something unsupported, or of a fallback."""
    warnings = [w for w in log.warnings if not any(known.search(w) for known in _HARMLESS)]
    suspect = [message for message in warnings if _SUSPECT.search(message)]
    if suspect:
        raise BackendError(
            f"the {network} engine may not run as the ONNX file says; the library warns: "
            f"{'; '.join(suspect[:3])}; nothing was written"
        )
    return tuple(warnings)


@dataclass(frozen=True)
class _Made:
    """What the library tells of an engine."""

    layers: list[inspection.Layer]
    inputs: dict[str, str]
    outputs: dict[str, str]
    scratch_bytes: int


def _inspect(job: Job, network: str, serialized: Any, log: BuildLog, logger: Any) -> _Made:
    """Look at what was built: at the engine where one can be opened, else at the build log."""
    if job.gpu is None:
        scratch = inspection.memory_from_log(log.facts, "Activation")
        if scratch is None:
            raise BackendError(
                f"{job.library.name} {job.trt.__version__} does not tell how much memory the "
                f"{network} engine works in; nothing was written"
            )
        layers = inspection.layers_from_log(log.facts)
        return _Made(layers, *inspection.io_from_log(log.facts), scratch)
    runtime = job.trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(serialized)
    if engine is None:
        raise BackendError(f"the {network} engine cannot be opened here: {log.reasons()}")
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(job.trt.LayerInformationFormat.JSON)
    layers = inspection.layers_from_json(text)
    return _Made(layers, *_io_of_engine(job.trt, engine), int(engine.device_memory_size_v2))


def _io_of_engine(trt: ModuleType, engine: Any) -> tuple[dict[str, str], dict[str, str]]:
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        found = inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs
        found[name] = inspection.type_name(engine.get_tensor_dtype(name).name)
    return inputs, outputs


def _check_io(network: str, inputs: dict[str, str], outputs: dict[str, str]) -> None:
    *names, output = TENSORS[network]
    wanted = {name: "int64" if name == "t" else "float32" for name in names}
    if inputs != wanted or outputs != {output: "float32"}:
        raise BackendError(
            f"the {network} engine takes {inputs} and returns {outputs}; expected {wanted} and "
            f"{{'{output}': 'float32'}}; nothing was written"
        )
