"""A Holoscan pipeline with a detector in it: a source of images, the detector, a sink.

    python examples/holoscan/anomaly_pipeline.py BUNDLE

The images are drawn by the source, so that there is something to run on; put your own in its place.
`AnomalyOp` takes and gives named tensors, as operators written in C++ do too. Run with Holoscan 4.6
on a CPU (see README.md in this folder); on a GPU it has not been run.
"""

import sys

import numpy as np
from holoscan.conditions import CountCondition
from holoscan.core import Application, Operator, OperatorSpec

from berdiff.runtime import Detector, InputError


class AnomalyOp(Operator):
    """Finds anomalies in every message.

    In: "slices" [slice, channel, row, column], stored intensities in host memory. Out:
    "anomaly_map" and "mask" (0 or 1) [slice, row, column] on the same grid, "score" [1], and
    "suspect" [1]: 1 where the input is not what the detector was trained on. What cannot be used at
    all gives a message without maps, so that nothing blank passes as normal.
    """

    def __init__(self, fragment, *args, bundle, device="cpu", spacing=None, **kwargs):
        self.bundle, self.device, self.spacing = bundle, device, spacing
        self.detector = None
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("image")
        spec.output("result")

    def start(self) -> None:
        """Load and warm up before the first image, not at it."""
        self.detector = Detector.open(self.bundle, device=self.device)
        self.detector.warm_up(batch_size=1)

    def compute(self, op_input, op_output, context) -> None:
        slices = op_input.receive("image")["slices"]  # read where it lies, through DLPack
        try:
            found = self.detector.detect_slices(slices, self.spacing, seed=0)
        except InputError as error:
            print(f"not usable: {error}", file=sys.stderr)
            op_output.emit({"suspect": np.ones(1, np.uint8)}, "result")
            return
        op_output.emit(
            {
                "anomaly_map": found.anomaly_map,
                "mask": found.mask.astype(np.uint8),
                "score": np.array([found.score]),
                "suspect": np.array([found.verdict != "ok"], np.uint8),
            },
            "result",
        )

    def stop(self) -> None:
        if self.detector is not None:
            self.detector.close()


def draw(channels: int, size: tuple[int, int], number: int) -> np.ndarray:
    """A textured disc with a spot, the brighter the later: [slice, channel, row, column]."""
    rows, columns = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    image = 700 + 150 * np.sin(9 * rows) * np.cos(7 * columns)
    image[(rows - 0.3) ** 2 + (columns + 0.2) ** 2 < 0.02] += 400 * number
    image[rows**2 + columns**2 > 0.7] = 0
    return np.repeat(image[None, None].astype(np.uint16), channels, axis=1)


class AcquireOp(Operator):
    """Stands in for your own source."""

    def __init__(self, fragment, *args, channels, size, **kwargs):
        self.channels, self.size, self.sent = channels, size, 0
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.output("image")

    def compute(self, op_input, op_output, context) -> None:
        op_output.emit({"slices": draw(self.channels, self.size, self.sent)}, "image")
        self.sent += 1


class ShowOp(Operator):
    """Stands in for your own sink."""

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("result")

    def compute(self, op_input, op_output, context) -> None:
        result = {name: np.asarray(value) for name, value in op_input.receive("result").items()}
        if "anomaly_map" not in result:
            print("no result")
            return
        brightest = np.unravel_index(result["anomaly_map"].argmax(), result["anomaly_map"].shape)
        print(f"score {result['score'][0]:.6f}, most anomalous at {tuple(map(int, brightest))}")


class AnomalyApp(Application):
    """Three images through the detector."""

    def __init__(self, bundle: str, images: int = 3):
        super().__init__()
        self.bundle, self.images = bundle, images

    def compose(self) -> None:
        with Detector.open(self.bundle) as detector:
            model = detector.bundle.manifest.preprocessing
        spacing = None if model.spacing is None else (model.spacing, model.spacing)  # yours, in mm
        count = CountCondition(self, self.images)
        source = AcquireOp(self, count, channels=model.channels, size=model.size, name="source")
        anomaly = AnomalyOp(self, bundle=self.bundle, spacing=spacing, name="anomaly")
        self.add_flow(source, anomaly, {("image", "image")})
        self.add_flow(anomaly, ShowOp(self, name="sink"), {("result", "result")})


if __name__ == "__main__":
    AnomalyApp(sys.argv[1]).run()
