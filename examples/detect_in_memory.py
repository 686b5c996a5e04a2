"""Find anomalies in images in memory, as a program would that embeds the detector.

    python examples/detect_in_memory.py BUNDLE

The image is drawn here, so that there is something to run on.
"""

import hashlib
import sys

import numpy as np

from berdiff.runtime.detector import Detector


def acquire(channels: int, size: tuple[int, int]) -> np.ndarray:
    """Stand in for your own source: a textured disc with a bright spot, in 12-bit intensities."""
    rows, columns = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    image = 700 + 150 * np.sin(9 * rows) * np.cos(7 * columns)
    image[(rows - 0.3) ** 2 + (columns + 0.2) ** 2 < 0.02] = 2200
    image[rows**2 + columns**2 > 0.7] = 0
    return np.repeat(image[None].astype(np.uint16), channels, axis=0)


def identity(image: np.ndarray) -> int:
    """A number that belongs to the image: it chooses the noise, so that results can be repeated."""
    return int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "little")


def main(bundle: str) -> None:
    with Detector.open(bundle, threads=2) as detector:
        detector.warm_up(batch_size=1)  # so that the first image is not the slow one
        model = detector.bundle.manifest.preprocessing
        spacing = None if model.spacing is None else (model.spacing, model.spacing)  # yours, in mm

        image = acquire(model.channels, model.size)
        prepared = model.to_grid(image, spacing)
        result = detector.detect(prepared[None], ids=[identity(image)], seed=0)

        # Back to the image's own pixels.
        anomaly = model.from_grid(result.anomaly_map[0], image.shape[1:], spacing)
        row, column = np.unravel_index(np.argmax(anomaly), anomaly.shape)
        print(f"score {result.score[0]:.4f}")
        print(f"most anomalous pixel: row {row}, column {column}, {anomaly[row, column]:.4f}")
        print(f"mask: {np.count_nonzero(result.mask[0])} pixels of the model's grid")
        print(", ".join(f"{stage} {1000 * s:.0f} ms" for stage, s in result.timings.items()))


if __name__ == "__main__":
    main(sys.argv[1])
