"""Find anomalies in images in memory, as a program would that embeds the detector.

    python examples/detect_in_memory.py BUNDLE

The image is drawn here, so that there is something to run on.
"""

import sys
import threading

import numpy as np

from berdiff.runtime import Cancelled, DeadlineExceeded, Detector, InputError


def acquire(channels: int, size: tuple[int, int]) -> np.ndarray:
    """Stand in for your own source: a textured disc with a bright spot, in 12-bit intensities."""
    rows, columns = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    image = 700 + 150 * np.sin(9 * rows) * np.cos(7 * columns)
    image[(rows - 0.3) ** 2 + (columns + 0.2) ** 2 < 0.02] = 2200
    image[rows**2 + columns**2 > 0.7] = 0
    return np.repeat(image[None].astype(np.uint16), channels, axis=0)


def main(bundle: str) -> None:
    stop = threading.Event()  # set by whoever wants the detection to end, from another thread
    with Detector.open(bundle, threads=2) as detector:
        detector.warm_up(batch_size=1)  # so that the first image is not the slow one
        model = detector.bundle.manifest.preprocessing
        spacing = None if model.spacing is None else (model.spacing, model.spacing)  # yours, in mm
        slices = acquire(model.channels, model.size)[None]  # [slice, channel, row, column]
        try:
            found = detector.detect_slices(slices, spacing, seed=0, timeout=60, cancel=stop)
        except InputError as error:  # never a blank map that looks normal
            sys.exit(f"the image cannot be used: {error}")
        except (Cancelled, DeadlineExceeded) as error:
            sys.exit(f"no result: {error}")

    anomaly = found.anomaly_map[found.worst_slice]
    row, column = np.unravel_index(np.argmax(anomaly), anomaly.shape)
    print(f"score {found.score:.4f}")
    print(f"input: {found.verdict} {'; '.join(found.reasons)}")
    print(f"most anomalous pixel: row {row}, column {column}, {anomaly[row, column]:.4f}")
    print(f"mask: {np.count_nonzero(found.mask)} pixels above {found.threshold:.4f}")
    print(", ".join(f"{stage} {1000 * s:.0f} ms" for stage, s in found.timings.items()))


if __name__ == "__main__":
    main(sys.argv[1])
