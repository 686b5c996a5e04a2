"""What made a result: recorded beside every map, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NOTICE = "RESEARCH - not for clinical use"


@dataclass(frozen=True)
class Provenance:
    """The detector, the settings and the threshold a scan's results come from.

    Attributes
    ----------
    model : str
        Name of the bundle.
    bundle : str
        Its digest (SHA-256 of ``bundle.json``).
    software : str
        Version of berdiff.
    backend, device : str
        What ran the networks.
    seed : int
        64-bit seed of the run.
    settings : dict of str to object
        Settings of the loop, none left open.
    threshold : float
        Threshold of the mask.
    threshold_source : str
        "option", "bundle" or "otsu".
    input_sha256 : str
        Digest of the scan's content.
    """

    model: str
    bundle: str
    software: str
    backend: str
    device: str
    seed: int
    settings: dict[str, Any]
    threshold: float
    threshold_source: str
    input_sha256: str
