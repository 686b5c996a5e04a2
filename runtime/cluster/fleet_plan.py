"""``fleet.yaml``: the engines that a fleet of machines needs, and where each can be built."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..bundle import Bundle
from ..engines.library import LIBRARIES, TENSORRT_RTX, Library
from ..engines.options import (
    PORTABLE,
    BuildOptions,
    HardwareCompatibility,
    check_options,
    check_target,
    parse_bytes,
)
from ..errors import BackendError, BerdiffError, optional
from ..precision import Precision
from ..strict import from_json
from .connection import Node

# Ray counts thousandths; what it calls "accelerator_type:A100" is a mark, of which a node has one.
_MARK = 0.001
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_SELECTOR = re.compile(rf"(!?)(?:in\(({_LABEL}(?:, ?{_LABEL})*)\)|({_LABEL}))")


@dataclass(frozen=True)
class FleetTarget:
    """One engine of a fleet, and what the node that builds it must have.

    Attributes
    ----------
    name : str
        How it is called in reports; unique in the file.
    engine : {"tensorrt", "tensorrt-rtx"}
        Library that builds and runs it.
    target : str or None
        GPU architecture, as "sm_89". With TensorRT for RTX what is built for, None being its
        portable engine; with TensorRT what the node's GPU must be, None being any.
    gpu : str or None
        Ray's accelerator type of the node, as "A100". With it, TensorRT for RTX takes a GPU too,
        on which the engine is verified.
    library_version : str or None
        Version that the library on the node must have; None: any.
    precision : str or None
        What the bundle must be in; None: any.
    dynamic_batch : tuple of int or None
        Smallest, usual and largest batch; None: the bundle's.
    workspace : str or None
        Most scratch memory a layer may use, as "2GiB".
    builder_optimization_level : int or None
        With TensorRT, 0 to 5.
    hardware_compatibility : {"none", "same-cc", "ampere+"}
        With TensorRT: which other GPUs it runs on.
    resources : dict of str to float
        Ray resources of the node, besides processors and GPU.
    labels : dict of str to str
        Ray's label selector for the node: "value", "!value", "in(a, b)" or "!in(a, b)".
    cpus : float
        CPU cores that the build takes.
    """

    name: str
    engine: Literal["tensorrt", "tensorrt-rtx"]
    target: str | None = None
    gpu: str | None = None
    library_version: str | None = None
    precision: Precision | None = None
    dynamic_batch: tuple[int, int, int] | None = None
    workspace: str | None = None
    builder_optimization_level: int | None = None
    hardware_compatibility: HardwareCompatibility = "none"
    resources: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    cpus: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what can be known to fail.

        Raises
        ------
        ValueError
            Naming the key.
        """
        if not self.name.strip() or not self.name.isprintable():
            raise ValueError(f"name: expected text, got {self.name!r}")
        if self.library is TENSORRT_RTX:
            _as_value_error(check_target, self.library, self.target)
        elif self.target is not None and not re.fullmatch(r"sm_\d{2,3}", self.target):
            raise ValueError(f"target: expected an architecture like sm_90, got '{self.target}'")
        _as_value_error(check_options, self.library, self.options((1, 1, 1)))
        _check_amounts(self.resources, self.cpus)
        for label, selector in self.labels.items():
            if not _SELECTOR.fullmatch(selector):
                raise ValueError(
                    f"labels.{label}: expected value, !value, in(a, b) or !in(a, b), "
                    f"got '{selector}'"
                )

    @property
    def library(self) -> Library:
        """What builds it."""
        return LIBRARIES[self.engine]

    @property
    def takes_gpu(self) -> bool:
        """Whether it is built where a GPU is, which it then has for itself."""
        return self.library is not TENSORRT_RTX or self.gpu is not None

    @property
    def build_target(self) -> str | None:
        """Target as `build_engines` takes it: TensorRT builds for the GPU it finds."""
        return self.target if self.library is TENSORRT_RTX else None

    def options(self, usual_batch: tuple[int, int, int]) -> BuildOptions:
        """How it is built; `usual_batch` is the bundle's."""
        try:
            workspace = None if self.workspace is None else parse_bytes(self.workspace)
        except ValueError as error:
            raise ValueError(f"workspace: {error}") from None
        return BuildOptions(
            self.dynamic_batch or usual_batch,
            workspace,
            self.builder_optimization_level,
            self.hardware_compatibility,
        )

    def precision_problem(self, bundle: Bundle) -> str:
        """Say why a bundle is in the wrong precision; empty where it is not."""
        if self.precision in (None, bundle.manifest.precision):
            return ""
        return (
            f"the bundle is in {bundle.manifest.precision}, and {self.precision} was asked for; "
            f"export the checkpoint with --precision {self.precision}, and build from that bundle"
        )

    @property
    def task_options(self) -> dict[str, Any]:
        """What Ray must find for the build, as it takes it."""
        marks = {f"accelerator_type:{self.gpu}": _MARK} if self.gpu else {}
        return {
            "num_cpus": self.cpus,
            "num_gpus": 1 if self.takes_gpu else 0,
            "resources": {**self.resources, **marks},
            "label_selector": dict(self.labels) or None,
        }

    def fits(self, node: Node) -> bool:
        """Whether a node has what the build takes, busy or not."""
        taken = self.task_options
        amounts = {"CPU": taken["num_cpus"], "GPU": taken["num_gpus"], **taken["resources"]}
        enough = all(node.resources.get(name, 0.0) >= n for name, n in amounts.items())
        return enough and all(_selects(s, node.labels.get(n)) for n, s in self.labels.items())

    @property
    def needs(self) -> str:
        """What a node must have, for people."""
        parts = [f"{self.cpus:g} CPU cores"] if self.cpus != 1 else ["a CPU core"]
        parts += ["a GPU"] if self.takes_gpu else []
        parts += [f"accelerator type {self.gpu}"] if self.gpu else []
        parts += [f"resource {name}: {amount:g}" for name, amount in self.resources.items()]
        parts += [f"label {name}: {selector}" for name, selector in self.labels.items()]
        return ", ".join(parts)


@dataclass(frozen=True)
class Fleet:
    """The whole of ``fleet.yaml``: a list of targets."""

    targets: tuple[FleetTarget, ...]

    def __post_init__(self) -> None:
        """Refuse no targets, and two that are one.

        Raises
        ------
        ValueError
            Naming them.
        """
        if not self.targets:
            raise ValueError("targets: expected at least one")
        names: set[str] = set()
        builds: dict[tuple[object, ...], str] = {}
        for target in self.targets:
            if target.name in names:
                raise ValueError(f"targets: two are called '{target.name}'")
            names.add(target.name)
            other = builds.setdefault(_identity(target), target.name)
            if other != target.name:
                raise ValueError(f"targets: '{other}' and '{target.name}' are the same engine")


def read_fleet(path: Path) -> Fleet:
    """Read ``fleet.yaml``.

    Raises
    ------
    BerdiffError
        If it is no YAML, or a key is unknown, missing, given twice or of the wrong type: names
        file and key.
    MissingDependency
        If PyYAML is not installed.
    """
    try:
        return from_json(Fleet, _load(path.read_text("utf-8"), str(path)), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise BerdiffError(f"{path} cannot be read: {error}") from error


def _load(text: str, where: str) -> Any:
    yaml: Any = optional("yaml", "cluster")

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            """A key given twice would silently be the last of the two."""
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key '{key}' is given twice", node.start_mark
                    )
            return super().construct_mapping(node, deep)  # type: ignore[no-any-return]

    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: dates such as 2024-13-01
        raise BerdiffError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def _identity(target: FleetTarget) -> tuple[object, ...]:
    """What makes its engine another one; where it is built on a GPU, so does the place."""
    options = repr((target.options((1, 1, 1)), target.dynamic_batch is None))
    common = (target.engine, target.library_version, target.precision, options)
    if target.library is TENSORRT_RTX:
        return (*common, target.target or PORTABLE)
    place = (target.gpu, sorted(target.resources.items()), sorted(target.labels.items()))
    return (*common, target.target, repr(place))


def _check_amounts(resources: dict[str, float], cpus: float) -> None:
    """Refuse amounts that Ray does not take."""
    for name in ("CPU", "GPU"):
        if name in resources:
            raise ValueError(f"resources.{name}: give cpus and gpu instead")
    for name, amount in {
        **{f"resources.{n}": a for n, a in resources.items()},
        "cpus": cpus,
    }.items():
        if amount <= 0 or (amount > 1 and amount != int(amount)):
            raise ValueError(f"{name}: expected a whole number or a part of 1, got {amount:g}")


def _selects(selector: str, value: str | None) -> bool:
    """Whether a label's value is what a selector asks for, as Ray sees it."""
    match = _SELECTOR.fullmatch(selector)
    assert match is not None, selector
    inverted, several, one = match.groups()
    wanted = re.split(r", ?", several) if several else [one]
    return (value in wanted) != bool(inverted)


def _as_value_error(check: Any, *given: Any) -> None:
    try:
        check(*given)
    except BackendError as error:
        raise ValueError(str(error)) from error
