"""Training: the same result however it is interrupted, and refusals that lose nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from berdiff.autoencoder import BinaryAutoencoder
from berdiff.checkpoint import load_checkpoint, load_config, save_weights
from berdiff.config import AutoencoderConfig, DenoiserConfig, ModelConfig
from berdiff.data import Batches, HealthyImages, augment
from berdiff.discriminator import PatchDiscriminator, adaptive_weight, discriminator_loss
from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.train_processes import StoppedByAnother, check_batch, make_accelerator
from berdiff.trainer import RunSettings, learning_rate_factor
from berdiff.training import prepare_folder, train_autoencoder, train_denoiser
from berdiff.training_config import (
    Augmentation,
    AutoencoderStage,
    DenoiserStage,
    StageSettings,
    TrainingConfig,
)


@pytest.fixture(scope="module")
def config() -> TrainingConfig:
    """A model small enough to train in seconds, with every part of training switched on."""
    return TrainingConfig(
        model=ModelConfig(
            preprocessing=Preprocessing(
                channels=1, modalities=("flair",), size=(32, 32), normalisation="none"
            ),
            autoencoder=AutoencoderConfig(
                in_channels=1,
                channel_multipliers=(1, 1),
                residual_blocks=1,
                code_channels=8,
                embedding_channels=32,
            ),
            denoiser=DenoiserConfig(
                code_channels=8,
                base_channels=32,
                channel_multipliers=(1, 1),
                residual_blocks=1,
                dropout=0.1,
            ),
        ),
        autoencoder=AutoencoderStage(
            steps=6,
            batch_size=4,
            learning_rate=1e-3,
            commitment_weight=0.1,
            adversarial_start=3,
            discriminator_channels=8,
            validate_every=3,
            save_every=2,
        ),
        denoiser=DenoiserStage(
            steps=6, batch_size=4, learning_rate=1e-3, validate_every=3, save_every=2
        ),
        augmentation=Augmentation(flip=True, rotation=5, scale=0.1, shift=0.05, intensity=0.1),
        validation_fraction=0.2,
    )


@pytest.fixture(scope="module")
def images() -> HealthyImages:
    """Smooth random pictures."""
    rng = np.random.default_rng(0)
    coarse = rng.random((12, 1, 8, 8), dtype=np.float32)
    fine = np.kron(coarse, np.ones((4, 4), np.float32))
    return HealthyImages(fine[:9], fine[9:], "digest")


def settings(folder, *, resume=False, progress=None) -> RunSettings:
    """Run settings on the CPU."""
    return RunSettings(folder, make_accelerator("cpu", "no"), 0, resume, progress)


class _Killed(Exception):
    pass


def _kill_at(stage: str, step: int):
    def progress(name, done, steps, figures):
        if (name, done) == (stage, step):
            raise _Killed

    return progress


def test_a_killed_run_continues_to_the_same_weights(config, images, tmp_path) -> None:
    """Steps after the last saved state are taken again, and come out the same."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    prepare_folder(whole, config, resume=False)
    train_autoencoder(config, images, settings(whole))
    train_denoiser(config, images, settings(whole))

    prepare_folder(broken, config, resume=False)
    with pytest.raises(_Killed):
        train_autoencoder(config, images, settings(broken, progress=_kill_at("autoencoder", 5)))
    prepare_folder(broken, config, resume=True)
    train_autoencoder(config, images, settings(broken, resume=True))
    with pytest.raises(_Killed):
        train_denoiser(config, images, settings(broken, progress=_kill_at("denoiser", 3)))
    train_denoiser(config, images, settings(broken, resume=True))

    for name in ("autoencoder.safetensors", "denoiser.safetensors"):
        first = (whole / "checkpoint" / name).read_bytes()
        assert first == (broken / "checkpoint" / name).read_bytes()
    # The log has one row per step, none twice, and the same figures but for the seconds.
    logs = [
        (folder / "denoiser" / "log.csv").read_text().splitlines() for folder in (whole, broken)
    ]
    assert [row.split(",")[:2] for row in logs[0]] == [row.split(",")[:2] for row in logs[1]]
    assert [row.split(",")[0] for row in logs[0]] == ["step", "1", "2", "3", "4", "5", "6"]
    assert (whole / "denoiser" / "samples" / "step-0000006.png").is_file()


def test_training_learns(config, images, tmp_path) -> None:
    """The reconstruction error falls well below that of a constant image."""
    longer = dataclasses.replace(
        config,
        autoencoder=dataclasses.replace(
            config.autoencoder, steps=120, adversarial_weight=0.0, ema=0.9, learning_rate=3e-3
        ),
    )
    losses = {}
    prepare_folder(tmp_path / "run", longer, resume=False)
    train_autoencoder(
        longer,
        images,
        settings(tmp_path / "run", progress=lambda _, step, __, f: losses.update({step: f["l1"]})),
    )
    constant = np.abs(images.train - np.median(images.train)).mean()
    assert np.mean([losses[step] for step in range(111, 121)]) < 0.7 * constant
    assert losses[1] > constant


def test_the_checkpoint_can_be_read_and_says_what_it_was_trained_on(
    config, images, tmp_path
) -> None:
    """Weights in half precision load as float32."""
    prepare_folder(tmp_path / "run", config, resume=False)
    train_autoencoder(config, images, settings(tmp_path / "run"))
    path = train_denoiser(config, images, settings(tmp_path / "run"), half=True)
    model, autoencoder, denoiser = load_checkpoint(path)
    assert "9 healthy images" in model.provenance["trained_on"]
    assert model.input_statistics is None  # of twelve images nothing can be said
    assert all(p.dtype == torch.float32 for p in denoiser.parameters())
    assert autoencoder.encode(torch.zeros(1, 1, 32, 32)).shape == (1, 8, 16, 16)


def test_the_checkpoint_says_what_healthy_images_look_like(config, images, tmp_path) -> None:
    """Of the images as they are, those held out among them, not of what augmentation makes."""
    more = HealthyImages(np.tile(images.train, (3, 1, 1, 1)), images.validation, "digest")
    short = dataclasses.replace(
        config,
        autoencoder=dataclasses.replace(config.autoencoder, steps=1),
        denoiser=dataclasses.replace(config.denoiser, steps=1),
    )
    prepare_folder(tmp_path / "run", short, resume=False)
    train_autoencoder(short, more, settings(tmp_path / "run"))
    path = train_denoiser(short, more, settings(tmp_path / "run"))
    found = load_config(path).input_statistics
    assert found is not None
    assert found.images == 30
    mean = np.concatenate([more.train, more.validation]).mean(dtype=np.float64)
    assert found.mean[found.features.index("flair mean")] == pytest.approx(mean, rel=1e-4)


def test_other_settings_are_refused_when_continuing(config, images, tmp_path) -> None:
    """A continued run must be the same run: model, images, learning rate."""
    run = tmp_path / "run"
    prepare_folder(run, config, resume=False)
    with pytest.raises(BerdiffError, match="--continue"):
        prepare_folder(run, config, resume=False)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, name="other"))
    with pytest.raises(BerdiffError, match=r"model\.name"):
        prepare_folder(run, other, resume=True)
    train_autoencoder(config, images, settings(run))
    changed = HealthyImages(images.train, images.validation, "another")
    with pytest.raises(BerdiffError, match="images"):
        train_autoencoder(config, changed, settings(run, resume=True))
    faster = dataclasses.replace(
        config, autoencoder=dataclasses.replace(config.autoencoder, learning_rate=1.0)
    )
    with pytest.raises(BerdiffError, match="settings"):
        train_autoencoder(faster, images, settings(run, resume=True))


def test_the_denoiser_goes_on_with_its_own_autoencoder_only(config, images, tmp_path) -> None:
    """Codes of another autoencoder would be another training set."""
    run = tmp_path / "run"
    prepare_folder(run, config, resume=False)
    train_autoencoder(config, images, settings(run))
    with pytest.raises(_Killed):
        train_denoiser(config, images, settings(run, progress=_kill_at("denoiser", 3)))
    torch.manual_seed(1)
    save_weights(run / "autoencoder.safetensors", BinaryAutoencoder(config.model.autoencoder))
    with pytest.raises(BerdiffError, match="other autoencoder"):
        train_denoiser(config, images, settings(run, resume=True))


def test_the_denoiser_needs_an_autoencoder(config, images, tmp_path) -> None:
    """Stage two alone says how to get stage one."""
    prepare_folder(tmp_path / "run", config, resume=False)
    with pytest.raises(BerdiffError, match="train autoencoder"):
        train_denoiser(config, images, settings(tmp_path / "run"))


def test_divergence_is_an_error(config, images, tmp_path) -> None:
    """A loss that is not a number stops the run instead of being saved."""
    broken = HealthyImages(np.full_like(images.train, np.nan), images.validation, "digest")
    prepare_folder(tmp_path / "run", config, resume=False)
    with pytest.raises(BerdiffError, match="diverged"):
        train_autoencoder(config, broken, settings(tmp_path / "run"))
    assert not (tmp_path / "run" / "autoencoder" / "state.pt").exists()


def test_a_folder_with_other_things_is_refused(config, tmp_path) -> None:
    """Nothing of the user's is mixed with a run."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BerdiffError, match="not empty"):
        prepare_folder(tmp_path, config, resume=False)


@pytest.mark.parametrize(("device", "precision"), [("tpu", "no"), ("cpu", "fp16"), ("cpu", "int8")])
def test_unknown_devices_and_precisions_are_refused(device, precision) -> None:
    """Nothing falls back silently."""
    with pytest.raises(BerdiffError):
        make_accelerator(device, precision)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "give --precision bf16 to berdiff"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "--set denoiser.accumulate=4"),
        ({"ACCELERATE_USE_FSDP": "true"}, "DistributedDataParallel only"),
        (
            {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"},
            "--multi_gpu with -d cpu",
        ),
    ],
)
def test_what_a_launcher_was_told_is_not_ignored(variables, message, monkeypatch) -> None:
    """The first process says so; the others are left nothing to say."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BerdiffError, match=message) as caught:
        make_accelerator("cpu", "no")
    assert caught.type is BerdiffError
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(StoppedByAnother):
        make_accelerator("cpu", "no")


def test_a_batch_is_shared_equally_or_not_at_all() -> None:
    """The message says which sizes would do."""
    check_batch("denoiser", StageSettings(batch_size=12, accumulate=2), 3)
    with pytest.raises(BerdiffError, match=r"may be 6 or 12, as in --set denoiser\.batch_size=12"):
        check_batch("denoiser", StageSettings(batch_size=8, accumulate=2), 3)
    with pytest.raises(BerdiffError, match="may be 16, as in"):
        check_batch("denoiser", StageSettings(batch_size=8), 16)


def test_processes_share_a_batch_without_overlap() -> None:
    """Two processes see together what one would see alone, with the same draws."""
    alone = Batches(count=10, batch_size=4, seed=3)
    shared = [Batches(10, 4, 3, rank, 2) for rank in (0, 1)]
    for step in range(7):
        together = [0] * 4
        draws = [0.0] * 4
        for part in shared:
            for position, index, rng in zip(
                part.positions(), part.indices(step), part.generators(step), strict=True
            ):
                together[position], draws[position] = index, rng.random()
        assert together == alone.indices(step)
        assert draws == [rng.random() for rng in alone.generators(step)]


def test_an_epoch_shows_every_image_once() -> None:
    """10 images in batches of 4: five steps are two epochs."""
    batches = Batches(count=10, batch_size=4, seed=0)
    seen = [index for step in range(5) for index in batches.indices(step)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_augmentation_without_settings_changes_nothing() -> None:
    """And a flip mirrors columns."""
    image = np.arange(12, dtype=np.float32).reshape(1, 3, 4) / 12
    rng = np.random.default_rng
    off = Augmentation(flip=False)
    np.testing.assert_array_equal(augment(image, off, rng(0)), image)
    results = [augment(image, Augmentation(flip=True), rng(seed)) for seed in range(20)]
    mirrored = [bool((result == image[:, :, ::-1]).all()) for result in results]
    assert 0 < sum(mirrored) < 20


def test_augmentation_moves_the_centre_of_mass_as_far_as_asked() -> None:
    """A shift of at most 10 % of 20 pixels moves a blob by at most 2 pixels."""
    image = np.zeros((1, 20, 20), np.float32)
    image[0, 9:11, 9:11] = 1
    moved = []
    for seed in range(30):
        result = augment(image, Augmentation(flip=False, shift=0.1), np.random.default_rng(seed))[0]
        rows = (result.sum(axis=1) * np.arange(20)).sum() / result.sum()
        moved.append(abs(rows - 9.5))
    assert 1 < max(moved) <= 2.01


def test_learning_rate_rises_and_falls() -> None:
    """Linear up over the warm-up, cosine down to the final fraction."""
    schedule = StageSettings(steps=110, warmup_steps=10, final_learning_rate=0.1)
    factors = [learning_rate_factor(schedule, step) for step in range(110)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10] == pytest.approx(1.0)
    assert factors[60] == pytest.approx(0.55, abs=0.01)
    assert factors[-1] == pytest.approx(0.1, abs=0.001)


def test_discriminator_losses() -> None:
    """Hinge values by hand; the adaptive weight is the ratio of gradient norms, clamped."""
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 1.0])
    assert discriminator_loss(real, fake) == pytest.approx((0.5 + 1.0) / 2)
    assert adaptive_weight(torch.tensor([3.0]), torch.tensor([6.0])) == pytest.approx(0.5, abs=1e-4)
    assert adaptive_weight(torch.tensor([9.0]), torch.tensor([3.0])) == 1
    critic = PatchDiscriminator(2, 8)
    assert critic(torch.zeros(1, 2, 64, 48)).shape == (1, 1, 6, 4)
