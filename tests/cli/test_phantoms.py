"""The verb `berdiff phantoms`."""

import subprocess
import sys

import nibabel as nib
import pytest
import typer
from typer.testing import CliRunner

from berdiff.cli.phantoms import phantoms
from berdiff.runtime.errors import InputError

runner = CliRunner()


@pytest.fixture
def app():
    app = typer.Typer()
    app.command()(phantoms)
    return app


def _names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*"))


def test_slices_with_lesions_are_pictures_and_masks(app, tmp_path):
    out = tmp_path / "set"
    result = runner.invoke(app, ["-o", str(out), "--count", "2", "--size", "48", "--lesions"])
    assert result.exit_code == 0, result.output
    assert _names(out) == [
        "README.txt",
        "images/phantom-00000.png",
        "images/phantom-00001.png",
        "manifest.csv",
        "masks/phantom-00000.png",
        "masks/phantom-00001.png",
    ]
    assert "2 synthetic slices" in result.output


def test_several_contrasts_choose_nifti(app, tmp_path):
    out = tmp_path / "set"
    arguments = ["-o", str(out), "--count", "1", "--size", "48", "--contrast", "flair, T1"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert nib.load(out / "images" / "phantom-00000.nii.gz").shape == (2, 48, 48)


def test_volumes_have_the_slices_asked_for(app, tmp_path):
    out = tmp_path / "set"
    arguments = ["-o", str(out), "--count", "1", "--size", "48", "--volumes", "--slices", "5"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert nib.load(out / "images" / "phantom-00000.nii.gz").shape == (48, 48, 5)


def test_a_seed_repeats_its_set(app, tmp_path):
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        arguments = ["-o", str(tmp_path / name), "--count", "1", "--size", "48", "--seed", seed]
        assert runner.invoke(app, arguments).exit_code == 0
    first, same, other = (
        (tmp_path / n / "images" / "phantom-00000.png").read_bytes() for n in "abc"
    )
    assert first == same
    assert first != other


def test_what_contradicts_is_refused(app, tmp_path):
    arguments = ["-o", str(tmp_path / "set"), "--volumes", "--format", "png"]
    result = runner.invoke(app, arguments)
    assert isinstance(result.exception, InputError)
    assert "nifti" in str(result.exception)


def test_importing_the_verb_loads_no_numerical_library():
    code = (
        "import sys, berdiff.cli.phantoms\n"
        "print([m for m in ('numpy', 'scipy', 'torch', 'PIL', 'nibabel') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
