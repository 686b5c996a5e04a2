"""The kernels give the bits that NumPy gives.

The same checks run on the source compiled for this machine, on the shipped PTX in an emulator, and
on a GPU where there is one.
"""

from collections.abc import Callable
from typing import Any

import host_kernels
import numpy as np
import ptx_emulator
import pytest
from numpy.typing import NDArray

from berdiff.runtime import anomaly
from berdiff.runtime.cuda import kernels
from berdiff.runtime.cuda.layout import settings_record, step_records
from berdiff.runtime.philox import CODE_STEP, PhiloxNoise
from berdiff.runtime.sampler import Sampler, State, posterior
from berdiff.runtime.schedule import Schedule

Array = NDArray[Any]
FloatArray = NDArray[np.float32]
# Runs one kernel: its name, the number of threads, its arguments as arrays, None and integers.
Run = Callable[..., None]

SCHEDULE = Schedule.linear()
SEED = 0xFEDCBA98_76543210
IDS = np.array([0, 2**64 - 1, 7, 7, 2**40 + 3], np.uint64)
EDGES = np.array([0, 1, 0.5, 1e-40, 1 - 2**-24, 2**-24], np.float32)


def as_numbers(name: str, arguments: tuple[Any, ...], address: Callable[[Array], int]) -> list[Any]:
    """What a kernel is called with."""
    return [
        type_(address(argument) if isinstance(argument, np.ndarray) else argument or 0)
        for type_, argument in zip(kernels.SIGNATURES[name], arguments, strict=True)
    ]


def on_host(name: str, threads: int, *arguments: Any) -> None:
    host_kernels.call(name, *as_numbers(name, arguments, lambda array: array.ctypes.data))


PTX = ptx_emulator.parse(kernels.load_image((0, 0)).rstrip(b"\0").decode())


def on_emulator(name: str, threads: int, *arguments: Any, grid: int | None = None) -> None:
    memory = ptx_emulator.Memory([array for array in arguments if isinstance(array, np.ndarray)])
    numbers = as_numbers(name, arguments, lambda array: array.ctypes.data)
    ptx_emulator.launch(PTX[name], threads, *numbers, memory=memory, grid=grid)


def on_gpu() -> Run:
    """Every array travels to the first GPU and back."""
    from berdiff.runtime.cuda.device import cuda_devices, open_device

    try:
        device = open_device(cuda_devices()[0])
    except Exception as error:
        pytest.skip(str(error))

    def run(name: str, threads: int, *arguments: Any) -> None:
        arrays = [array for array in arguments if isinstance(array, np.ndarray)]
        buffers = {id(array): device.allocate(array.nbytes) for array in arrays}
        for array in arrays:
            device.upload(array, buffers[id(array)].pointer)
        numbers = as_numbers(name, arguments, lambda array: buffers[id(array)].pointer)
        device.launch(name, threads, *numbers)
        for array in arrays:
            device.download(buffers[id(array)].pointer, array)

    return run


@pytest.fixture(params=["host", "ptx", pytest.param("gpu", marks=pytest.mark.gpu)])
def run(request: pytest.FixtureRequest) -> Run:
    if request.param == "gpu":
        return on_gpu()
    return {"host": on_host, "ptx": on_emulator}[request.param]


def same_bits(got: FloatArray, expected: FloatArray) -> bool:
    """Whether all floats are equal to the last bit, up to the sign of zero."""
    zero = np.float32(0)  # -0 + 0 is 0, and nothing else changes
    return np.array_equal((got + zero).view(np.uint32), (expected + zero).view(np.uint32))


class Loop:
    """The buffers of a run on a device, and its launches."""

    def __init__(
        self, run: Run, sampler: Sampler, ids: Array, probability: FloatArray, sampled: bool
    ) -> None:
        self.run, self.ids, self.probability = run, ids, probability
        self.images, self.bits = len(ids), probability[0].size
        self.threads = self.images * -(-self.bits // 4)
        self.settings = settings_record(SEED, sampler, "sample" if sampled else "threshold")
        self.steps = step_records(sampler)
        self.code = np.full_like(probability, 9)
        self.flips = np.full_like(probability, 9)
        self.state = np.full(probability.shape, 0xA5, np.uint8)
        self.unsound = np.zeros(self.images, np.int32)
        self.cursor = np.full(1, 77, np.int32)
        self.t = np.full(1, -1, np.int64)

    def begin(self) -> None:
        self.run(
            "begin", self.threads, self.settings, self.ids, self.probability, self.code,
            self.state, self.flips, self.unsound, self.cursor, self.bits, self.images,
        )  # fmt: skip

    def step(self, eps: FloatArray) -> None:
        self.run(
            "step", self.threads, self.settings, self.steps, self.cursor, self.ids, eps,
            self.code, self.state, self.flips, self.bits, self.images,
        )  # fmt: skip

    def finish(self, eps: FloatArray) -> None:
        self.run(
            "finish", self.threads, eps, self.code, self.state, self.flips, self.unsound,
            self.bits, self.images,
        )  # fmt: skip

    def check(self, expected: State) -> None:
        assert same_bits(self.code, expected.z)
        assert same_bits(self.flips, expected.flips)
        assert np.array_equal(self.state & kernels.OWN != 0, expected.z_org == 1)
        assert np.array_equal(self.state & kernels.MASK != 0, expected.mask)
        if expected.remaining:
            assert np.array_equal(self.state & kernels.CURRENT != 0, expected.z == 1)
        assert self.state.max() < 8


def walk(
    run: Run,
    sampler: Sampler,
    probability: FloatArray,
    sampled: bool,
    flip_probability: Callable[[State, int], FloatArray],
    ids: Array = IDS,
) -> Loop:
    """Run the loop both ways and compare after every kernel."""
    noise = PhiloxNoise(SEED, ids)
    uniforms = noise(CODE_STEP, probability.shape) if sampled else np.float32(0.5)
    state = sampler.init((uniforms < probability).astype(np.float32), noise)
    loop = Loop(run, sampler, ids, probability, sampled)
    loop.begin()
    loop.check(state)
    assert loop.cursor == -1
    for index, kept in enumerate(reversed(sampler.kept)):
        timestep = int(sampler.schedule.timesteps[kept])
        run("advance", 1, loop.steps, loop.cursor, loop.t)
        assert (loop.cursor, loop.t) == (index, timestep)
        eps = flip_probability(state, timestep)
        state = sampler.step(state, lambda z, t, eps=eps: eps, noise)
        (loop.step if state.remaining else loop.finish)(eps)
        loop.check(state)
    assert not loop.unsound.any()
    return loop


def probabilities(shape: tuple[int, ...], seed: int, threshold: float = 0.5) -> FloatArray:
    """Random floats in [0, 1), one in eight of them at an edge."""
    rng = np.random.default_rng(seed)
    values = rng.random(shape, np.float32)
    around = np.nextafter(np.float32(threshold), np.float32([-1, 2]))
    edges = np.concatenate([EDGES, np.float32([threshold]), np.clip(around, 0, 1)])
    chosen = rng.random(shape, np.float32) < 0.125
    values[chosen] = rng.choice(edges, np.count_nonzero(chosen))
    return values


@pytest.mark.parametrize("sampled", [False, True], ids=["threshold", "sample"])
@pytest.mark.parametrize("forward", ["bernoulli", "upstream"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 1), (3, 3, 3), (8, 4, 5), (1, 5, 103)])
def test_the_loop_is_that_of_the_sampler(
    run: Run, shape: tuple[int, int, int], forward: str, sampled: bool
) -> None:
    sampler = Sampler(SCHEDULE, 150, 6, 0.4, forward)  # type: ignore[arg-type]
    shape_of_all = (len(IDS), *shape)
    walk(
        run,
        sampler,
        probabilities(shape_of_all, 0),
        sampled,
        lambda state, t: probabilities(shape_of_all, t + 1, sampler.flip_threshold),
    )


@pytest.mark.slow
def test_ten_million_elements(run: Run) -> None:
    # An odd number of bits: of the images' first blocks, one in four is aligned.
    shape = (len(IDS), 3, 1, 174763)
    steps = 5  # the last takes another kernel
    assert np.prod(shape) * (steps - 1) >= 1e7
    walk(
        run,
        Sampler(SCHEDULE, 200, steps),
        probabilities(shape, 0),
        True,
        lambda state, t: probabilities(shape, t + 1),
    )


def tied(sampler: Sampler, state: State, timestep: int) -> FloatArray:
    """Flip probabilities whose posterior is exactly the uniform, wherever bisection finds some."""
    coefficients = sampler.reverse(state.remaining - 1)[1]
    assert coefficients is not None
    uniforms = PhiloxNoise(SEED, IDS)(timestep, state.z.shape)

    def excess(bits: NDArray[np.int32]) -> FloatArray:
        z0 = np.abs(state.z - bits.view(np.float32))
        probability = posterior(state.z, z0, coefficients)
        return np.where(state.z == 1, uniforms - probability, probability - uniforms)

    # Positive floats are in the order of their bits.
    low = np.full(state.z.shape, 1, np.int32)
    high = np.full(state.z.shape, np.float32(1).view(np.int32), np.int32)
    for _ in range(32):
        middle = low + (high - low) // 2
        above = excess(middle) > 0
        high, low = np.where(above, middle, high), np.where(above, low, middle)
    assert np.count_nonzero(excess(low) == 0) > 1000
    # Every fourth is a float off.
    low[..., ::4] += 1
    return low.view(np.float32)


def test_a_probability_equal_to_the_uniform_gives_0(run: Run) -> None:
    shape = (len(IDS), 8, 32, 32)
    sampler = Sampler(SCHEDULE, 200, 8, flip_threshold=0)
    last = np.zeros(shape, np.float32)
    walk(
        run,
        sampler,
        # The own code: p equal to its uniform, to 0 and to 1.
        np.where(
            np.arange(32) % 3, PhiloxNoise(SEED, IDS)(CODE_STEP, shape), np.arange(32) % 2
        ).astype(np.float32),
        True,
        lambda state, t: tied(sampler, state, t) if state.remaining > 1 else last,
    )


def test_a_tie_in_the_forward_noise_gives_0(run: Run) -> None:
    shape = (len(IDS), 2, 3, 5)
    uniforms = PhiloxNoise(SEED, IDS)(50, shape)
    abar = SCHEDULE.abar.copy()
    abar[50] = uniforms[0, 0, 0, 0]
    sampler = Sampler(Schedule(abar, SCHEDULE.timesteps), 50, 2, forward_noise="upstream")
    ones = np.ones(shape, np.float32)
    loop = Loop(run, sampler, IDS, ones, sampled=False)
    loop.begin()
    assert loop.code[0, 0, 0, 0] == 0
    assert np.array_equal(loop.code, uniforms < np.float32(abar[50]))


def test_a_small_grid_takes_every_element() -> None:
    def on_two_blocks(name: str, threads: int, *arguments: Any) -> None:
        on_emulator(name, threads, *arguments, grid=1 if name == "advance" else 2)

    shape = (len(IDS), 2, 9, 111)  # 5 passes
    sampler = Sampler(SCHEDULE, 150, 3)
    walk(
        on_two_blocks, sampler, probabilities(shape, 0), True,
        lambda state, t: probabilities(shape, t + 1),
    )  # fmt: skip


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_noticed_and_stay_in_their_image(run: Run, bad: float) -> None:
    shape = (len(IDS), 2, 3, 3)
    sampler = Sampler(SCHEDULE, 100, 3)
    for place in range(4):  # in the probability, or in the answer to one of the three steps
        answers = [probabilities(shape, seed) for seed in range(4)]
        answers[place][3, 1, 2, 2] = bad
        loop = Loop(run, sampler, IDS, answers[0], sampled=False)
        loop.begin()
        state = sampler.init(
            (np.float32(0.5) < answers[0]).astype(np.float32), noise := PhiloxNoise(SEED, IDS)
        )
        for eps in answers[1:]:
            run("advance", 1, loop.steps, loop.cursor, loop.t)
            with np.errstate(invalid="ignore"):
                state = sampler.step(state, lambda z, t, eps=eps: eps, noise)
            (loop.step if state.remaining else loop.finish)(eps)
            np.testing.assert_array_equal(loop.code, state.z)
            np.testing.assert_array_equal(loop.flips, state.flips)
        assert loop.unsound.tolist() == [0, 0, 0, 1, 0]


def test_own_code(run: Run) -> None:
    state = np.random.default_rng(0).integers(0, 8, (3, 2, 5, 7), np.uint8)
    code = np.full(state.shape, 9, np.float32)
    run("own_code", 3 * 18, state, code, 70, 3)
    assert np.array_equal(code, state & 1)


def decoded_images(shape: tuple[int, ...], seed: int) -> FloatArray:
    """What a decoder may answer: around [0, 1], with edges."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0.5, 0.5, shape).astype(np.float32)
    chosen = rng.random(shape) < 0.125
    values[chosen] = rng.choice([*EDGES, -0.0, -3, 7], np.count_nonzero(chosen))
    return values


@pytest.mark.parametrize("shape", [(2, 1, 9, 11), (3, 4, 16, 20), (1, 3, 1, 2), (4, 5, 7, 3)])
@pytest.mark.parametrize("kind", kernels.KINDS)
def test_difference(
    run: Run, kind: Any, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, answers = probabilities(shape, 0), [decoded_images(shape, 1), decoded_images(shape, 2)]
    clipped = [np.clip(answer, 0, 1) for answer in answers]
    monkeypatch.setattr(anomaly, "median_filter", lambda maps: maps)
    expected = anomaly.anomaly_map(kind, images, *clipped, np.zeros(0, np.float32))

    N, C, P = shape[0], shape[1], shape[2] * shape[3]
    unchanged = answers[1] if kind == "change" else None
    made, reconstruction = np.empty_like(expected), np.empty_like(images)
    unsound = np.zeros(N, np.int32)
    everything = (images, answers[0], unchanged, made, reconstruction, unsound, C, P, N)
    run("difference", N * P, kernels.KINDS[kind], *everything)
    assert same_bits(made, expected)
    assert same_bits(reconstruction, clipped[0])
    assert not unsound.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_an_unsound_decoder_is_noticed(run: Run, which: int, bad: float) -> None:
    shape = (3, 2, 4, 5)
    answers = [decoded_images(shape, 1), decoded_images(shape, 2)]
    answers[which][1, 1, 3, 4] = bad
    made, reconstruction = np.empty((3, 4, 5), np.float32), np.empty(shape, np.float32)
    unsound = np.zeros(3, np.int32)
    everything = (probabilities(shape, 0), *answers, made, reconstruction, unsound, 2, 20, 3)
    run("difference", 60, kernels.KINDS["change"], *everything)
    assert unsound.tolist() == [0, 1, 0]


@pytest.mark.parametrize("levels", [None, 5], ids=["floats", "ties"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2), (3, 7), (5, 4), (33, 40)])
def test_median(run: Run, size: tuple[int, int], levels: int | None) -> None:
    rng = np.random.default_rng(0)
    maps = rng.random((3, *size), np.float32)
    if levels:
        maps = np.floor(maps * levels, dtype=np.float32)
    out = np.empty_like(maps)
    run("median", maps.size, maps, out, *size, len(maps))
    assert same_bits(out, anomaly.median_filter(maps))


@pytest.mark.parametrize("shape", [(2, 1, 3, 3), (3, 8, 4, 5), (1, 128, 6, 7), (2, 33, 2, 3)])
def test_mean_of_the_flips(run: Run, shape: tuple[int, ...]) -> None:
    N, K, h, w = shape
    settings = settings_record(0, Sampler(SCHEDULE, 100, 7), "threshold")
    flips = 7 * probabilities(shape, 0)
    out = np.empty((N, h, w), np.float32)
    run("flip_mean", out.size, settings, flips, out, K, h * w, N)
    assert same_bits(out, anomaly.flip_mean(flips / np.float32(7)))


def test_blank(run: Run) -> None:
    values = probabilities((4, 3, 5), 0)
    expected = values.copy()
    expected[[1, 2]] = np.nan
    run("blank", values.size, np.array([0, 1, 5, 0], np.int32), values, 15, 4)
    np.testing.assert_array_equal(values, expected)
