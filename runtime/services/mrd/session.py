"""One client, from its first message to the last answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ...deadline import Cancel
from ...detection import ScanDetection
from ...detector import Detector
from ...errors import InputError
from ...manifest import SamplingDefaults
from ...provenance import NOTICE
from . import wire as mrd
from .image import Image, Limits, read_image
from .parameters import Request, check_config, check_config_text, read_parameters
from .replies import Context, SeriesNumbers, make_replies
from .volumes import (
    Input,
    Volume,
    choose_channels,
    group,
    is_for_detector,
    make_input,
    make_volume,
)
from .wire import ProtocolError, Wire


@dataclass(frozen=True)
class Work:
    """What every session works with.

    Attributes
    ----------
    detector : Detector
        Shared by all.
    request : Request
        What holds where a client asks for nothing else.
    limits : Limits
        What a client may send.
    batch_size : int
        Slices at a time.
    timeout : float
        Seconds that one detection may take.
    cancel : Cancel
        Calls detections off.
    """

    detector: Detector
    request: Request
    limits: Limits
    batch_size: int
    timeout: float
    cancel: Cancel


@dataclass
class Session:
    """What one client has sent, and is told.

    Attributes
    ----------
    wire : Wire
        To the client.
    work : Work
        What it is done with.
    request : Request
        What the client asks for.
    images : list of Image
        What it has sent.
    sent : int
        Images that went back.
    digests : list of str
        SHA-256 of the voxels the detector looked at.
    verdicts : list of str
        What was said of each input.
    failures : list of str
        Why nothing is said of some of the volumes.
    settings : SamplingDefaults or None
        Of the loop; None until there was something to do.
    answered : float or None
        Seconds from the last image to the last answer.
    """

    wire: Wire
    work: Work
    request: Request = field(init=False)
    images: list[Image] = field(default_factory=list)
    sent: int = 0
    digests: list[str] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    settings: SamplingDefaults | None = None
    answered: float | None = None
    _bytes: int = 0
    _waveforms: int = 0
    _stage: int = 0  # 0: nothing yet, 1: it has named a configuration, 2: and sent a header

    def __post_init__(self) -> None:
        """Begin with what the server was started with."""
        self.request = self.work.request

    @property
    def begun(self) -> bool:
        """Whether the client has sent anything."""
        return self._stage > 0

    def run(self) -> None:
        """Listen until the client has sent everything, and answer.

        Raises
        ------
        BerdiffError
            Saying what the client did wrong, or why nothing can be said of its images.
        Vanished
            If it is gone.
        """
        self._listen()
        start = time.perf_counter()
        if self.images:
            self._answer()
        elif self._stage == 2:
            raise InputError("no images came")
        self.wire.send_close()
        self.answered = time.perf_counter() - start

    def _listen(self) -> None:
        """Take messages until the one that closes."""
        takers: dict[int, Callable[[], None]] = {
            mrd.CONFIG_FILE: self._take_config,
            mrd.CONFIG_TEXT: self._take_config_text,
            mrd.HEADER: self._take_header,
            mrd.TEXT: self._take_text,
            mrd.IMAGE: self._take_image,
            mrd.WAVEFORM: self._take_waveform,
        }
        while (number := self.wire.next_number(not self.begun)) != mrd.CLOSE:
            if number == mrd.ACQUISITION:
                raise ProtocolError(
                    "got raw data (message 1008); this server takes reconstructed images "
                    "(message 1022)"
                )
            if number not in takers:
                raise ProtocolError(f"got a message of unknown number {number}")
            takers[number]()

    def _take_config(self) -> None:
        self._expect(0, "a configuration")
        check_config(self.wire.config_name())
        self._stage = 1

    def _take_config_text(self) -> None:
        self._expect(0, "a configuration")
        check_config_text(self.wire.text("the configuration"))
        self._stage = 1

    def _take_header(self) -> None:
        """Read past it: it may name a patient, and nothing in it is needed."""
        self._expect(1, "a header")
        self.wire.text("the header")
        self._stage = 2

    def _take_text(self) -> None:
        self._expect(2, "a text")
        text = self.wire.text("a text")
        if self.images:
            raise ProtocolError("a text with parameters came after images, expected it before them")
        self.request = read_parameters(text, self.request)
        self.request.settings(self.work.detector)

    def _take_image(self) -> None:
        self._expect(2, "an image")
        limits = self.work.limits
        if len(self.images) == limits.images:
            raise ProtocolError(f"more than {limits.images} images came, which is the most taken")
        self.images.append(read_image(self.wire, limits, limits.total - self._bytes))
        self._bytes += self.images[-1].size

    def _take_waveform(self) -> None:
        self._expect(2, "a waveform")
        self._waveforms += 1
        self.wire.skip_waveform()

    def _expect(self, stage: int, what: str) -> None:
        if self._stage != stage:
            needed = ("nothing", "a configuration", "a configuration and a header")
            raise ProtocolError(
                f"got {what} after {needed[self._stage]}, expected it after {needed[stage]}"
            )

    def _answer(self) -> None:
        """Send back what was found; nothing is sent before all of it has been.

        A volume that cannot be used does not spoil the others of the session.
        """
        found = list(self._detect())
        if not found:
            raise InputError("; ".join(self.failures))
        context = Context(self.work.detector.bundle, self.request, self._settings())
        if self.request.sendoriginals:
            for image in self.images:
                self._send(image)
        numbers = SeriesNumbers([int(image["image_series_index"]) for image in self.images])
        for given, detection in found:
            for image in make_replies(given, detection, context, numbers):
                self._send(image)
        for given, detection in found:
            self._tell(given, detection)
        for failure in self.failures:
            self.wire.send_text(f"ERROR    {failure}")

    def _detect(self) -> Iterator[tuple[Input, ScanDetection]]:
        """Find anomalies in each volume, or in the volumes that are the channels of one."""
        preprocessing = self.work.detector.bundle.manifest.preprocessing
        chosen = choose_channels(self._volumes(), self.request.channels, preprocessing.modalities)
        for together in chosen:
            try:
                given = make_input(together, preprocessing)
                found = self._look(given)
            except InputError as error:
                self.failures.append(f"{together[0].name}: {error}")
                continue
            self.digests.append(given.sha256)
            self.verdicts.append(found.verdict)
            yield given, found

    def _volumes(self) -> list[Volume]:
        """Sort what came; what cannot be used becomes a failure."""
        looked_at = [image for image in self.images if is_for_detector(image)]
        if not looked_at:
            raise InputError("none of the images is a magnitude image (image type 0 or 1)")
        volumes = []
        for key, images in group(looked_at).items():
            try:
                volumes.append(make_volume(key, images, self.request.slices))
            except InputError as error:
                self.failures.append(str(error))
        return volumes

    def _look(self, given: Input) -> ScanDetection:
        work = self.work
        return work.detector.detect_slices(
            given.slices,
            given.spacing,
            given.ids,
            self.request.seed or 0,
            self._settings(),
            threshold=self.request.threshold,
            batch_size=work.batch_size,
            timeout=work.timeout,
            cancel=work.cancel,
        )

    def _settings(self) -> SamplingDefaults:
        self.settings = self.settings or self.request.settings(self.work.detector)
        return self.settings

    def _send(self, image: Image) -> None:
        image.send(self.wire)
        self.sent += 1

    def _tell(self, given: Input, found: ScanDetection) -> None:
        name = given.volumes[0].name
        self.wire.send_text(
            f"INFO     {name}: score {found.score:.4g} in slice {found.worst_slice}, threshold "
            f"{found.threshold:.4g} ({found.threshold_source}); {NOTICE}"
        )
        for volume in given.volumes:
            if volume.note:
                self.wire.send_text(f"WARNING  {volume.name}: {volume.note}")
        if found.verdict == "suspect":
            self.wire.send_text(f"WARNING  {name} is suspect: {'; '.join(found.reasons)}")
