"""Runs PTX with NumPy: what a GPU does with the shipped kernels, on a machine without one.

All threads of a chunk take each instruction together, as one array operation; where they part,
those that are behind go first until all meet again. It knows the instructions that the kernels use
and no others: what may round differently than NumPy (fma, approximate division, flushing) is
refused like everything unknown. Every address is checked.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]

BLOCK = 256
CHUNK = 64  # blocks at once: arrays that fit the cache

TYPES = {
    "pred": np.dtype(np.bool_),
    "f32": np.dtype(np.float32),
    **{f"{kind}{bits}": np.dtype(f"{'i' if kind == 's' else 'u'}{bits // 8}")
       for kind in "bus" for bits in (8, 16, 32, 64)},
}  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """``@guard opcode destinations, sources``."""

    opcode: str
    operands: tuple[str, ...]
    guard: str | None = None
    guard_value: bool = True


@dataclass(frozen=True)
class Kernel:
    """One entry: its parameters' types, its registers' types by prefix, its basic blocks."""

    name: str
    parameters: tuple[str, ...]
    registers: dict[str, np.dtype[Any]]
    blocks: tuple[tuple[Instruction, ...], ...]
    labels: dict[str, int]


def parse(text: str) -> dict[str, Kernel]:
    """Every kernel of a PTX file, by name."""
    text = re.sub(r"//[^\n]*", "", text)
    entries = re.findall(r"\.entry (\w+)\((.*?)\)(.*?)\{\n(.*?)\n\}", text, re.DOTALL)
    return {
        name: _kernel(name, parameters, body) for name, parameters, _directives, body in entries
    }


def _kernel(name: str, parameters: str, body: str) -> Kernel:
    registers, labels = {}, {}
    blocks: list[list[Instruction]] = [[]]
    for line in filter(None, (line.strip() for line in body.splitlines())):
        if match := re.fullmatch(r"\.reg \.(\w+)\s+%(\w+)<\d+>;", line):
            registers[match[2]] = TYPES[match[1]]
        elif match := re.fullmatch(r"(\$\w+):", line):
            blocks.append([])
            labels[match[1]] = len(blocks) - 1
        else:
            instruction = _instruction(line)
            blocks[-1].append(instruction)
            if instruction.opcode.split(".")[0] in {"bra", "ret"}:
                blocks.append([])
    types = tuple(re.findall(r"\.param \.(\w+)", parameters))
    return Kernel(name, types, registers, tuple(map(tuple, blocks)), labels)


def _instruction(line: str) -> Instruction:
    match = re.fullmatch(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.]*)\s*(.*);", line)
    if match is None:
        raise NotImplementedError(f"cannot read the PTX line {line!r}")
    operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^\s,]+", match[4])
    return Instruction(match[3], tuple(operands), match[2], not match[1])


class Memory:
    """Arrays of this process, by their addresses."""

    def __init__(self, arrays: list[Values]) -> None:
        self._arrays = [
            (array.ctypes.data, array.reshape(-1).view(np.uint8)) for array in arrays if array.size
        ]

    def find(self, addresses: Values, type_: np.dtype[Any], count: int) -> tuple[Values, Values]:
        """The array that all addresses lie in and their indices, for `count` elements each."""
        size = type_.itemsize
        low, high = int(addresses.min()), int(addresses.max()) + size * count
        for base, content in self._arrays:
            if base <= low and high <= base + content.nbytes:
                if np.any(addresses % (size * count)):
                    raise IndexError(f"misaligned access to {count} x {type_}")
                elements = content[: content.nbytes // size * size].view(type_)
                return elements, ((addresses - np.uint64(base)) // size).astype(np.intp)
        raise IndexError(f"access from {low:#x} to {high:#x} lies outside of every array")


def launch(
    kernel: Kernel, threads: int, *arguments: np.generic, memory: Memory, grid: int | None = None
) -> None:
    """Run a kernel on at least `threads` threads, or on `grid` blocks."""
    grid = -(-threads // BLOCK) if grid is None else grid
    assert len(arguments) == len(kernel.parameters)
    parameters = {
        f"[{kernel.name}_param_{index}]": np.array([argument])
        for index, argument in enumerate(arguments)
    }
    for first in range(0, grid, CHUNK):
        blocks = np.arange(first, min(first + CHUNK, grid), dtype=np.uint32)
        special = {
            "%tid.x": np.tile(np.arange(BLOCK, dtype=np.uint32), len(blocks)),
            "%ctaid.x": np.repeat(blocks, BLOCK),
            "%ntid.x": np.array([BLOCK], np.uint32),
            "%nctaid.x": np.array([grid], np.uint32),
        }
        threads_here = Threads(kernel, len(blocks) * BLOCK, memory, {**special, **parameters})
        with np.errstate(all="ignore"):
            threads_here.run()


@dataclass
class Threads:
    """Threads that run together. Values that are the same in all of them are arrays of one."""

    kernel: Kernel
    count: int
    memory: Memory
    values: dict[str, Values]
    active: Values | None = field(default=None, init=False)  # None: all of them

    def run(self) -> None:
        """Run all threads to their end."""
        blocks = self.kernel.blocks
        at = np.zeros(self.count, np.intp)
        while (block := int(at.min())) < len(blocks):
            here = at == block
            self.active = None if here.all() else here
            following: Values | int = block + 1
            for instruction in blocks[block]:
                following = self._execute(instruction, following)
            at = np.where(here, following, at)

    def _execute(self, instruction: Instruction, following: Values | int) -> Values | int:
        """Execute one instruction and return where each thread goes after its basic block."""
        operation, *_ = instruction.opcode.split(".")
        if operation in {"bra", "ret"}:
            end = len(self.kernel.blocks)
            target = end if operation == "ret" else self.kernel.labels[instruction.operands[0]]
            if instruction.guard is None:
                return target
            return np.where(self._guard(instruction), target, following)
        if instruction.guard is not None:
            raise NotImplementedError(f"a guarded {instruction.opcode}")
        if operation in {"ld", "st"} and ".param" not in instruction.opcode:
            (self._load if operation == "ld" else self._store)(instruction)
            return following
        function, sources, result = operation_of(instruction.opcode)
        destination, *operands = instruction.operands
        if len(operands) != len(sources):
            raise NotImplementedError(f"{instruction.opcode} with {len(operands)} operands")
        values = function(*map(self._read, operands, sources))
        self._write(destination, values.astype(result, copy=False))
        return following

    def _guard(self, instruction: Instruction) -> Values:
        assert instruction.guard is not None
        return self._read(instruction.guard, TYPES["pred"]) == instruction.guard_value

    def _read(self, operand: str, type_: np.dtype[Any]) -> Values:
        if operand[0] not in "%[":
            return immediate(operand, type_)
        return _as(self.values[operand], type_)

    def _write(self, register: str, values: Values) -> None:
        values = _as(values, self.kernel.registers[re.match(r"%([a-z]+)", register)[1]])
        if self.active is not None and register in self.values:
            values = np.where(self.active, values, self.values[register])
        self.values[register] = values

    def _access(self, opcode: str, place: str, allowed: str) -> tuple[Values, Values, int]:
        """The array, the indices of the active threads in it, and how many elements each moves."""
        match = re.fullmatch(allowed, opcode)
        if match is None:
            raise NotImplementedError(f"the instruction {opcode}")
        register, _, offset = place.strip("[]").partition("+")
        addresses = self._read(register, TYPES["u64"]) + np.uint64(int(offset or 0))
        addresses = np.broadcast_to(addresses, self.count)
        if self.active is not None:
            addresses = addresses[self.active]
        count = 4 if match[1] else 1
        return *self.memory.find(addresses, TYPES[match[2]], count), count

    def _load(self, instruction: Instruction) -> None:
        destinations, place = instruction.operands
        elements, index, count = self._access(
            instruction.opcode, place, r"ld\.global\.(v4\.)?([usf]\d+)"
        )
        for lane, register in zip(range(count), destinations.strip("{}").split(","), strict=True):
            loaded = elements[index + lane]
            if self.active is not None:
                values = np.zeros(self.count, loaded.dtype)
                values[self.active] = loaded
                loaded = values
            self._write(register.strip(), loaded)

    def _store(self, instruction: Instruction) -> None:
        place, sources = instruction.operands
        elements, index, count = self._access(
            instruction.opcode, place, r"st\.global\.(?:cg\.)?(v4\.)?([usf]\d+)"
        )
        for lane, register in zip(range(count), sources.strip("{}").split(","), strict=True):
            values = np.broadcast_to(self._read(register.strip(), elements.dtype), self.count)
            elements[index + lane] = values if self.active is None else values[self.active]


def _as(values: Values, type_: np.dtype[Any]) -> Values:
    """The same bits as another type; integers are cut, or extended by their sign."""
    if values.dtype.itemsize != type_.itemsize:
        values = values.astype(np.dtype(f"{values.dtype.kind}{type_.itemsize}"))
    return values.view(type_)


@functools.cache
def immediate(text: str, type_: np.dtype[Any]) -> Values:
    """A constant in the text: decimal, or the bits of a float."""
    if text.startswith("0f"):
        return np.array([int(text[2:], 16)], np.uint32).view(type_)
    return np.array([int(text)], np.int64).astype(type_)


def _insert(field_: Values, into: Values, position: Values, length: Values) -> Values:
    mask = ((np.uint32(1) << length) - np.uint32(1)) << position
    return (into & ~mask) | ((field_ << position) & mask)


Operation = tuple[Callable[..., Values], tuple[np.dtype[Any], ...], np.dtype[Any]]

UNARY = {"mov": np.positive, "neg": np.negative, "not": np.invert, "cvta.to.global": np.positive,
         "ld.param": np.positive}  # fmt: skip
BINARY = {
    "add": np.add, "sub": np.subtract, "mul.lo": np.multiply, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor, "min": np.minimum, "max": np.maximum,
}  # fmt: skip
# Division rounds towards zero, as NumPy's of unsigned integers and its fmod do.
DIVISION = {"div": (np.floor_divide, "u"), "rem": (np.fmod, "us")}
FLOAT = {
    "add.rn.f32": (np.add, 2), "sub.rn.f32": (np.subtract, 2), "mul.rn.f32": (np.multiply, 2),
    "div.rn.f32": (np.divide, 2), "abs.f32": (np.abs, 1), "neg.f32": (np.negative, 1),
    "mov.f32": (np.positive, 1),
}  # fmt: skip
COMPARISONS = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
               "gt": np.greater, "ge": np.greater_equal}  # fmt: skip
UNORDERED = {"gtu": np.less_equal, "geu": np.less, "ltu": np.greater_equal, "leu": np.greater,
             "neu": np.equal}  # fmt: skip


@functools.cache
def operation_of(opcode: str) -> Operation:
    """What an instruction computes, from which types, to which type."""
    pred = TYPES["pred"]
    if opcode in FLOAT:
        function, count = FLOAT[opcode]
        return function, (TYPES["f32"],) * count, TYPES["f32"]
    name, _, suffix = opcode.rpartition(".")
    type_ = TYPES[suffix]
    if suffix == "pred" and name == "mov":
        return np.array, (pred,), pred
    if type_.kind != "f":
        if name in UNARY:
            return (np.logical_not if suffix == "pred" else UNARY[name]), (type_,), type_
        if name in BINARY:
            return BINARY[name], (type_, type_), type_
        if name in DIVISION and suffix[0] in DIVISION[name][1]:
            return DIVISION[name][0], (type_, type_), type_
        if name in {"shl", "shr"}:
            shift = np.left_shift if name == "shl" else np.right_shift
            return shift, (type_, type_), type_
    if name == "mul.wide":
        wide = np.dtype(f"{type_.kind}{2 * type_.itemsize}")
        return (lambda a, b: a.astype(wide) * b.astype(wide)), (type_, type_), wide
    if name == "selp":
        return (lambda a, b, p: np.where(p, a, b)), (type_, type_, pred), type_
    if opcode == "bfi.b32":
        return _insert, (type_,) * 4, type_
    operation, *details = name.split(".")
    if operation == "cvt" and details[:-1] == (["rn"] if details[-1] == "f32" else []):
        return np.positive, (type_,), TYPES[details[-1]]
    if operation == "setp" and details[0] in COMPARISONS:
        return COMPARISONS[details[0]], (type_, type_), pred
    if operation == "setp" and details[0] in UNORDERED and type_.kind == "f":
        opposite = UNORDERED[details[0]]
        return (lambda a, b: ~opposite(a, b)), (type_, type_), pred
    raise NotImplementedError(f"the instruction {opcode}")
