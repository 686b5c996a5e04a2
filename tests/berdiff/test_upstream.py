"""Import of upstream's checkpoints: what is accepted, what is refused and why."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy_networks
import pytest
import torch
from numpy_networks import AutoencoderSpec, DenoiserSpec
from torch_models import autoencoder_config, denoiser_config, tensor
from upstream_checkpoints import (
    SMALL_AUTOENCODER,
    SMALL_DENOISER,
    StateDict,
    autoencoder_file,
    denoiser_file,
)
from upstream_reference import Reference

from berdiff.checkpoint import load_checkpoint, save_checkpoint
from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.manifest import SamplingDefaults
from berdiff.upstream import Imported, import_upstream

SIZE = 32
Files = tuple[Path, Path]


def save(
    folder: Path, autoencoder: StateDict | None = None, denoiser: StateDict | None = None
) -> Files:
    files = folder / "binaryae_ema_12000.th", folder / "emabrats0.999_100000.pt"
    torch.save(autoencoder_file() if autoencoder is None else autoencoder, files[0])
    torch.save(denoiser_file() if denoiser is None else denoiser, files[1])
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return save(tmp_path_factory.mktemp("upstream"))


@pytest.fixture(scope="module")
def imported(files: Files) -> Imported:
    return import_upstream(*files, name="small", image_size=SIZE)


def refused(files: Files, expected: str, **options: Any) -> None:
    with pytest.raises(BerdiffError, match=expected):
        import_upstream(*files, **{"image_size": SIZE, **options})


# --- what an import says of the model ----------------------------------------------------------


def test_configuration_is_read_from_the_shapes(imported: Imported) -> None:
    config = imported.config
    assert config.autoencoder == autoencoder_config(SMALL_AUTOENCODER)
    assert config.denoiser == denoiser_config(SMALL_DENOISER)
    assert config.forward_noise == "upstream"
    assert config.schedule.num_timesteps == 1000
    assert config.sampling == SamplingDefaults(noise_level=200, steps=None, flip_threshold=0.5)
    assert config.name == "small"
    assert imported.notes == ()


@pytest.mark.parametrize(
    "autoencoder",
    [
        {"multipliers": (1, 2, 2, 4), "blocks": 2},
        {"multipliers": (2,), "blocks": 3},
        {"base": 64, "multipliers": (1, 1), "embedding": 32},
    ],
)
def test_other_autoencoders_are_recognised(tmp_path: Path, autoencoder: dict[str, Any]) -> None:
    spec = replace(SMALL_AUTOENCODER, **autoencoder)
    files = save(tmp_path, autoencoder=autoencoder_file(spec))
    imported = import_upstream(*files, image_size=SIZE)
    assert imported.config.autoencoder == autoencoder_config(spec)


@pytest.mark.parametrize(
    "denoiser",
    [
        {"multipliers": (1, 2, 2), "blocks": 1, "attention_levels": (0, 2)},
        {"multipliers": (1,), "blocks": 2, "attention_levels": ()},
        {"multipliers": (2, 1), "blocks": 3, "attention_levels": (0,)},
    ],
)
def test_other_denoisers_are_recognised(tmp_path: Path, denoiser: dict[str, Any]) -> None:
    spec = replace(SMALL_DENOISER, **denoiser)
    files = save(tmp_path, denoiser=denoiser_file(spec))
    imported = import_upstream(*files, image_size=SIZE)
    assert imported.config.denoiser == denoiser_config(spec)


def test_brats_images_are_padded_at_one_millimetre(imported: Imported) -> None:
    prepared = imported.config.preprocessing
    assert prepared.modalities == ("t1", "t1ce", "t2", "flair")
    assert prepared.size == (SIZE, SIZE)
    assert (prepared.fit, prepared.spacing) == ("pad", 1.0)
    assert (prepared.orientation, prepared.normalisation) == ("LPS", "minmax")


def test_oct_images_are_resized(tmp_path: Path) -> None:
    spec = replace(SMALL_AUTOENCODER, in_channels=1)
    files = save(tmp_path, autoencoder=autoencoder_file(spec))
    prepared = import_upstream(*files).config.preprocessing
    assert prepared.modalities == ("oct",)
    assert prepared.size == (256, 256)
    assert (prepared.fit, prepared.spacing) == ("resize", None)
    assert prepared.normalisation == "minmax"


def test_other_channels_must_be_named(tmp_path: Path) -> None:
    spec = replace(SMALL_AUTOENCODER, in_channels=2)
    files = save(tmp_path, autoencoder=autoencoder_file(spec))
    refused(files, "takes 2 channels.*--modalities")
    refused(files, "2 channels need as many modality names", modalities=("t1",))
    imported = import_upstream(*files, image_size=SIZE, modalities=("t2", "flair"))
    assert imported.config.preprocessing.modalities == ("t2", "flair")
    assert imported.config.preprocessing.fit == "pad"


def test_provenance_names_both_files_and_their_digests(files: Files, imported: Imported) -> None:
    for file, network in zip(files, ("autoencoder", "denoiser"), strict=True):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert imported.config.provenance[f"{network}_file"] == file.name
        assert imported.config.provenance[f"{network}_sha256"] == digest


# --- the networks -----------------------------------------------------------------------------


@torch.no_grad()
def test_imported_networks_compute_what_the_oracle_does(imported: Imported, tmp_path: Path) -> None:
    generator = np.random.Generator(np.random.Philox(key=1))
    image = generator.random((1, 4, SIZE, SIZE), np.float32)
    code = generator.random((1, 8, SIZE // 4, SIZE // 4), np.float32) < 0.5
    ae, unet = (
        {name.removeprefix("ae."): values.numpy() for name, values in state.items()}
        for state in (autoencoder_file(), denoiser_file())
    )
    expected = (
        numpy_networks.encode(ae, SMALL_AUTOENCODER, image),
        numpy_networks.decode(ae, SMALL_AUTOENCODER, code),
        numpy_networks.denoise(unet, SMALL_DENOISER, code, 321),
    )
    save_checkpoint(
        tmp_path / "checkpoint", imported.config, imported.autoencoder, imported.denoiser
    )
    config, autoencoder, denoiser = load_checkpoint(tmp_path / "checkpoint")
    assert config == imported.config
    computed = (
        autoencoder.encode(tensor(image)),
        autoencoder.decode(tensor(code)),
        denoiser(tensor(code), torch.tensor([321])),
    )
    for values, wanted in zip(computed, expected, strict=True):
        np.testing.assert_allclose(values.numpy(), wanted, rtol=0, atol=1e-5)


def test_half_precision_files_are_widened(tmp_path: Path) -> None:
    halves = {name: values.half() for name, values in denoiser_file().items()}
    denoiser = import_upstream(*save(tmp_path, denoiser=halves), image_size=SIZE).denoiser
    weight = denoiser.state_dict()["out.2.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, halves["out.2.weight"].float())


def test_unused_arrays_may_be_absent(tmp_path: Path, imported: Imported) -> None:
    state = autoencoder_file()
    ours = {f"ae.{name}" for name in imported.autoencoder.state_dict()}
    unused = [name for name in state if name not in ours]
    assert any("conv_out" in name for name in unused)
    assert any("logsigma" in name for name in unused)
    slim = {name: values for name, values in state.items() if name in ours}
    again = import_upstream(*save(tmp_path, autoencoder=slim), image_size=SIZE)
    for name, values in again.autoencoder.state_dict().items():
        assert torch.equal(values, imported.autoencoder.state_dict()[name])


@pytest.mark.slow
@torch.no_grad()
def test_full_size_import_reproduces_upstreams_numbers(reference: Path, tmp_path: Path) -> None:
    upstream = Reference(reference)
    files = save(tmp_path, autoencoder_file(AutoencoderSpec()), denoiser_file(DenoiserSpec()))
    imported = import_upstream(*files)
    assert imported.config.autoencoder == autoencoder_config(AutoencoderSpec())
    assert imported.config.denoiser == denoiser_config(DenoiserSpec())
    probability = imported.autoencoder.encode(tensor(upstream["image"]))
    np.testing.assert_allclose(probability, upstream["code_prob"], rtol=0, atol=1e-4)
    reconstruction = imported.autoencoder.decode(tensor(upstream.code))
    np.testing.assert_allclose(reconstruction, upstream["recon"], rtol=0, atol=1e-4)
    eps = imported.denoiser(tensor(upstream.z0[:1]), torch.tensor([50]))
    np.testing.assert_allclose(eps, upstream["unet_t50"], rtol=0, atol=1e-4)


# --- files that are refused -------------------------------------------------------------------


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


@pytest.mark.parametrize("as_zip", [True, False])
def test_code_in_a_file_is_not_run(files: Files, tmp_path: Path, as_zip: bool) -> None:
    witness, evil = tmp_path / "witness", tmp_path / "evil.pt"
    content = {**denoiser_file(), "out.2.bias": Malicious(witness)}
    torch.save(content, evil, _use_new_zipfile_serialization=as_zip)
    refused((files[0], evil), r"only arrays are ever loaded \(.*GLOBAL.*\)$")
    refused((evil, files[1]), r"only arrays are ever loaded \(.*GLOBAL.*\)$")
    assert not witness.exists()
    torch.load(evil, weights_only=False)
    assert witness.exists(), "the file is harmless: the test shows nothing"


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_truncated_files_are_refused(files: Files, tmp_path: Path, part: float) -> None:
    cut = tmp_path / "cut"
    for index, file in enumerate(files):
        whole = file.read_bytes()
        cut.write_bytes(whole[: int(part * len(whole))])
        given = (cut, files[1]) if index == 0 else (files[0], cut)
        refused(given, f"{cut} cannot be read as PyTorch weights: it is damaged")


def test_another_format_is_refused(files: Files, tmp_path: Path) -> None:
    other = tmp_path / "weights.pt"
    other.write_text("not weights")
    refused((files[0], other), "cannot be read as PyTorch weights")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([torch.zeros(2)], "holds a list, expected a state dict"),
        ({1: torch.zeros(2)}, "holds a dict, expected a state dict"),
        ({}, r"got names such as \[\]"),
        ({"state": {}, "param_groups": []}, r"got names such as \['state', 'param_groups'\]"),
        ({"module.input_blocks.0.0.weight": torch.zeros(2)}, "start with 'input_blocks.'"),
        ({"input_blocks.0.0.weight": 3}, "is a int, expected an array"),
        ({"input_blocks.0.0.weight": torch.zeros(2, dtype=torch.int64)}, "torch.int64"),
        ({"input_blocks.0.0.weight": torch.zeros(2).to_sparse()}, "torch.sparse_coo"),
        ({"input_blocks.0.0.weight": torch.zeros(1).expand(10**12)}, "more than the file can"),
        ({"input_blocks.0.0.weight": torch.zeros(32)}, "expected 4 dimensions"),
        ({"input_blocks.0.1.weight": torch.zeros(32)}, "'input_blocks.0.0.weight' is missing"),
    ],
)
def test_what_is_no_denoiser_is_refused(
    files: Files, tmp_path: Path, content: object, expected: str
) -> None:
    other = tmp_path / "other.pt"
    torch.save(content, other)
    refused((files[0], other), expected)


def test_files_in_the_wrong_order_are_refused(files: Files) -> None:
    refused((files[1], files[0]), "got an upstream denoiser. Give the autoencoder first")
    refused((files[0], files[0]), "no upstream denoiser.*got an upstream autoencoder")


Change = Callable[[StateDict], Any]


def rename(old: str, new: str) -> Change:
    return lambda state: state.__setitem__(new, state.pop(old))


def put(name: str, values: torch.Tensor) -> Change:
    return lambda state: state.__setitem__(name, values)


def remove(name: str) -> Change:
    return lambda state: state.pop(name)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (remove("ae.generator.blocks.3.q.weight"), "1 of .* missing: generator.blocks.3.q.weight"),
        (remove("ae.quantize.embed.weight"), "'quantize.embed.weight' is missing"),
        (put("ae.encoder.blocks.99.weight", torch.ones(1)), "unexpected: encoder.blocks.99.weight"),
        (put("encoder.blocks.0.weight", torch.ones(1)), "unexpected .*'encoder.blocks.0.weight'"),
        (put("ae.encoder.blocks.0.bias", torch.ones(31)), r"\[31\] instead of \[32\]"),
        (put("ae.encoder.blocks.0.weight", torch.ones(30, 4, 3, 3)), "multiples of the first, 30"),
        (put("ae.encoder.blocks.3.conv1.weight", torch.ones(48, 32, 3, 3)), "no multiples"),
        (rename("ae.encoder.blocks.7.q.weight", "ae.encoder.blocks.7.query"), "no attention block"),
    ],
)
def test_other_autoencoder_architectures_are_refused(
    tmp_path: Path, change: Change, expected: str
) -> None:
    state = autoencoder_file()
    change(state)
    refused(save(tmp_path, autoencoder=state), expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (remove("middle_block.1.qkv.bias"), "1 of .* missing: middle_block.1.qkv.bias"),
        (put("label_emb.weight", torch.ones(2, 128)), "unexpected: label_emb.weight"),
        (put("out.2.bias", torch.ones(16)), r"out.2.bias \[16\] instead of \[8\]"),
        (
            put("input_blocks.1.0.emb_layers.1.weight", torch.ones(64, 128)),
            r"\[64, 128\] instead of \[32, 128\]",
        ),
    ],
)
def test_other_denoiser_architectures_are_refused(
    tmp_path: Path, change: Change, expected: str
) -> None:
    state = denoiser_file()
    change(state)
    refused(save(tmp_path, denoiser=state), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    autoencoder, denoiser = autoencoder_file(), denoiser_file()
    autoencoder["ae.quantize.proj.0.bias"][3] = value
    refused(save(tmp_path, autoencoder=autoencoder), "'quantize.proj.0.bias' holds NaN or infinity")
    denoiser["time_embed.2.weight"][0, 0] = value
    refused(save(tmp_path, denoiser=denoiser), "'time_embed.2.weight' holds NaN or infinity")


def test_networks_must_fit_each_other_and_the_image(files: Files, tmp_path: Path) -> None:
    other = denoiser_file(replace(SMALL_DENOISER, code_channels=16))
    refused(save(tmp_path, denoiser=other), "codes of 16 channels, the autoencoder makes 8")
    refused(files, "must be a multiple of 8", image_size=36)
