"""Phantoms: reproducible, in range, brain-like in shape, with exact masks."""

import csv
import subprocess
import sys
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from berdiff.phantom_anatomy import Anatomy
from berdiff.phantom_appearance import CONTRASTS, render
from berdiff.phantom_curves import Grid
from berdiff.phantoms import phantom_seed, phantom_slice, phantom_volume, write_phantoms
from berdiff.runtime.errors import BerdiffError, InputError

ALL = tuple(CONTRASTS)


def _outside_frame(mask):
    return np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])


@pytest.mark.parametrize("index", range(20))
def test_values_stay_in_range_and_nothing_is_clipped(index):
    phantom = phantom_slice(phantom_seed(1, index), contrasts=ALL, lesion=True)
    assert phantom.image.dtype == np.float32
    assert phantom.image.shape == (4, 96, 96)
    brain = (phantom.image > 0).all(axis=0)
    assert np.array_equal(brain, (phantom.image > 0).any(axis=0))
    assert phantom.image.max() < 0.99
    for channel in phantom.image:
        assert 0.28 < np.median(channel[brain]) < 0.43


@pytest.mark.parametrize("index", range(20))
def test_the_brain_is_one_piece_inside_the_frame_and_longer_than_wide(index):
    brain = phantom_slice(phantom_seed(2, index)).image[0] > 0
    _, pieces = ndimage.label(brain)
    assert pieces == 1
    assert np.array_equal(ndimage.binary_fill_holes(brain), brain)
    assert not _outside_frame(brain).any()
    rows, columns = np.nonzero(brain)
    assert 1.1 < np.ptp(rows) / np.ptp(columns) < 1.5
    assert 0.35 < brain.mean() < 0.65


@pytest.mark.parametrize(
    ("contrast", "darkest_first"),
    [
        ("flair", ["csf", "white", "cortex"]),
        ("t1", ["csf", "cortex", "white"]),
        ("t2", ["white", "cortex", "csf"]),
        ("t1ce", ["csf", "cortex", "white"]),
    ],
)
def test_tissues_are_ordered_as_the_contrast_asks(contrast, darkest_first):
    axis = np.arange(-95.0, 96.0, 2.0)
    grid = Grid(axis, axis, np.array([15.0]), 2.0)
    for seed in range(5):
        tissue = Anatomy.draw(np.random.default_rng(seed)).tissue(grid)
        parts = tissue.csf + tissue.cortex + tissue.nuclei + tissue.white
        assert np.allclose(parts, tissue.brain)
        image = render(contrast, tissue, [], grid, np.random.default_rng(seed))
        means = [image[getattr(tissue, name) > 0.8].mean() for name in darkest_first]
        assert means == sorted(means)


def test_the_same_seed_gives_the_same_image_and_another_seed_another():
    first = phantom_slice(7)
    assert np.array_equal(first.image, phantom_slice(7).image)
    assert not np.array_equal(first.image, phantom_slice(8).image)


def test_a_member_does_not_depend_on_the_rest_of_the_set():
    seed = phantom_seed(3, 5)
    seed.spawn(2)  # using the seed elsewhere must not move it
    assert np.array_equal(
        phantom_slice(seed).image, phantom_slice(np.random.SeedSequence(3, spawn_key=(5,))).image
    )
    assert not np.array_equal(phantom_slice(phantom_seed(3, 6)).image, phantom_slice(seed).image)


def test_a_contrast_does_not_depend_on_those_beside_it():
    alone = phantom_slice(11, contrasts=("t2",)).image[0]
    assert np.array_equal(alone, phantom_slice(11, contrasts=("flair", "t2")).image[1])


@pytest.mark.parametrize("seed", range(15))
def test_a_lesion_changes_the_image_only_around_its_mask(seed):
    healthy = phantom_slice(seed, contrasts=ALL)
    lesion = phantom_slice(seed, contrasts=ALL, lesion=True)
    assert not healthy.mask.any()
    assert lesion.mask.any()
    assert np.array_equal(healthy.image > 0, lesion.image > 0)
    assert (lesion.image[0][lesion.mask] > 0).all()
    change = lesion.image.astype(float) - healthy.image
    # Soft edge (1.5 mm), the rim, and the blur of the imaging reach a few pixels further.
    near = ndimage.binary_dilation(lesion.mask, iterations=7)
    assert np.abs(change[:, ~near]).max() < 0.02
    inside = change[:, lesion.mask].mean(axis=1)
    assert inside[ALL.index("flair")] > 0.02
    assert inside[ALL.index("t2")] > 0.01
    assert inside[ALL.index("t1")] < -0.005


@pytest.mark.parametrize("seed", range(15))
def test_lesions_leave_the_fluid_alone(seed):
    healthy = phantom_slice(seed, contrasts=("t2",)).image[0]
    lesion = phantom_slice(seed, lesion=True)
    # On T2 nothing healthy is as bright as fluid; the mask must hold next to none of it.
    assert (healthy[lesion.mask] > 0.62).mean() < 0.12


def test_lesion_contrast_varies_from_subtle_to_plain():
    gain = []
    for seed in range(24):
        plain = phantom_slice(seed).image[0]
        lesion = phantom_slice(seed, lesion=True)
        gain.append((lesion.image[0] - plain)[lesion.mask].mean() / 0.35)
    assert min(gain) < 0.25
    assert max(gain) > 0.5


@pytest.mark.parametrize("size", [(64, 64), (96, 128), (128, 96), (48, 40)])
def test_any_size_holds_the_whole_head(size):
    for seed in range(4):
        phantom = phantom_slice(seed, size=size, lesion=True)
        assert phantom.image.shape == (1, *size)
        assert phantom.mask.shape == size
        assert phantom.mask.any()
        brain = phantom.image[0] > 0
        assert brain.any()
        assert not _outside_frame(brain).any()


def test_neighbouring_slices_of_a_volume_fit_together():
    volume = phantom_volume(4, shape=(12, 64, 64))
    brain = volume.image[0] > 0
    assert brain.any(axis=(1, 2)).all()
    for lower, upper in pairwise(brain):
        overlap = 2 * (lower & upper).sum() / (lower.sum() + upper.sum())
        assert overlap > 0.85
    other = phantom_volume(5, shape=(12, 64, 64)).image[0]
    pairs = list(zip(volume.image[0, :-1], volume.image[0, 1:], other[1:], strict=True))
    same_head = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b, _ in pairs]
    other_head = [np.corrcoef(a.ravel(), c.ravel())[0, 1] for a, _, c in pairs]
    assert np.mean(same_head) > np.mean(other_head)


def test_ventricles_lie_in_the_middle_slices_of_a_volume():
    image = phantom_volume(4, shape=(24, 96, 96), contrasts=("t2",)).image[0]
    centre = (image[:, 34:62, 34:62] > 0.6).sum(axis=(1, 2))
    assert centre[:12].max() > 5 * max(centre[14:].max(), 1)


def test_a_lesion_of_a_volume_spans_adjacent_slices():
    phantom = phantom_volume(2, shape=(24, 64, 64), lesion=True)
    per_slice = phantom.mask.sum(axis=(1, 2))
    assert (per_slice > 0).sum() >= 2
    assert phantom.spacing == (3.0, 3.0, 3.0)


def test_what_cannot_be_drawn_is_refused_with_what_was_expected():
    with pytest.raises(InputError, match=r"pet.*flair"):
        phantom_slice(0, contrasts=("pet",))
    with pytest.raises(InputError, match="expected some of"):
        phantom_slice(0, contrasts=())
    with pytest.raises(InputError, match="8 x 96"):
        phantom_slice(0, size=(8, 96))
    with pytest.raises(InputError, match="at least 1 slice"):
        phantom_volume(0, shape=(0, 96, 96))


def test_pictures_on_disk_are_the_phantoms(tmp_path):
    write_phantoms(tmp_path / "set", 3, seed=9, size=(48, 48), lesions=True)
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == [
        "README.txt",
        "images",
        "manifest.csv",
        "masks",
    ]
    for index in range(3):
        phantom = phantom_slice(phantom_seed(9, index), size=(48, 48), lesion=True)
        name = f"phantom-{index:05d}.png"
        pixels = np.asarray(Image.open(tmp_path / "set" / "images" / name)).astype(float)
        assert np.abs(pixels / 65535 - phantom.image[0]).max() <= 0.51 / 65535
        assert np.array_equal(pixels > 0, phantom.image[0] > 0)
        mask = np.asarray(Image.open(tmp_path / "set" / "masks" / name))
        assert np.array_equal(mask == 255, phantom.mask)
        assert set(np.unique(mask)) == {0, 255}
    with open(tmp_path / "set" / "manifest.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == [f"phantom-{i:05d}.png" for i in range(3)]
    assert int(rows[2]["lesion_pixels"]) == phantom.mask.sum()
    assert float(rows[0]["row_mm"]) == 4.0
    assert "no clinical" in (tmp_path / "set" / "README.txt").read_text(encoding="utf-8")


def test_a_healthy_set_has_no_masks(tmp_path):
    write_phantoms(tmp_path / "set", 1, size=(48, 48))
    assert not (tmp_path / "set" / "masks").exists()


@pytest.mark.parametrize("contrasts", [("flair",), ("t1", "t2")])
def test_volumes_on_disk_are_oriented(tmp_path, contrasts):
    write_phantoms(
        tmp_path / "set",
        1,
        size=(48, 40),
        contrasts=contrasts,
        lesions=True,
        slices=6,
        file_format="nifti",
    )
    phantom = phantom_volume(
        phantom_seed(0, 0), shape=(6, 48, 40), contrasts=contrasts, lesion=True
    )
    image = nib.load(tmp_path / "set" / "images" / "phantom-00000.nii.gz")
    mask = nib.load(tmp_path / "set" / "masks" / "phantom-00000.nii.gz")
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert np.allclose(image.header.get_zooms()[:3], phantom.spacing[::-1])
    assert np.allclose(image.affine, mask.affine)
    to_prs = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("PRS")
    )
    stored = nib.orientations.apply_orientation(np.asarray(image.dataobj), to_prs)
    stored = stored if stored.ndim == 4 else stored[..., None]
    assert np.array_equal(stored.transpose(3, 2, 0, 1), phantom.image)
    stored = nib.orientations.apply_orientation(np.asarray(mask.dataobj), to_prs)
    assert np.array_equal(stored.transpose(2, 0, 1), phantom.mask)


def test_slices_in_several_contrasts_are_stored_channels_first(tmp_path):
    write_phantoms(
        tmp_path / "set",
        1,
        size=(48, 48),
        contrasts=ALL,
        lesions=True,
        file_format="nifti",
    )
    phantom = phantom_slice(phantom_seed(0, 0), size=(48, 48), contrasts=ALL, lesion=True)
    image = nib.load(tmp_path / "set" / "images" / "phantom-00000.nii.gz")
    mask = nib.load(tmp_path / "set" / "masks" / "phantom-00000.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), phantom.image)
    assert np.array_equal(np.asarray(mask.dataobj), phantom.mask[None])


@pytest.mark.parametrize(
    "options",
    [
        {"contrasts": ("flair", "t1")},
        {"slices": 4},
        {"file_format": "tiff"},
        {"count": 0},
        {"contrasts": ("pet",)},
    ],
)
def test_options_that_contradict_leave_nothing_behind(tmp_path, options):
    with pytest.raises(InputError):
        write_phantoms(tmp_path / "set", **{"count": 1, "size": (48, 48), **options})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(BerdiffError, match="exists already"):
        write_phantoms(tmp_path, 1, size=(48, 48))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_phantoms_need_no_torch():
    code = "import sys, berdiff.phantoms as p; p.phantom_slice(0); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
