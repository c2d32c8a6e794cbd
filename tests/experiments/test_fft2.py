"""The fft2 experiment finds the spectrum in closed form, and the way back, whoever computes."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import parcompute as pc

SOURCE = Path(__file__).resolve().parents[2] / "experiments" / "fft2.py"
N = 90  # six blocks of columns, the last a short one; 2·3²·5, so that no transform is of a power of two
WAYS = [
    {"backend": "threads", "workers": 2},
    {"backend": "processes", "workers": 2},
    {"backend": "processes", "workers": 2, "schedule": "static"},
]


@pytest.fixture
def fft2():
    """Return the experiment's module; the fields that it keeps are released in the end."""
    spec = importlib.util.spec_from_file_location("fft2", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    module.fields.cache_clear()


def there_and_back(fft2, n=N, backend="serial", **options):
    with pc.Executor(backend=backend, **options) as executor:
        return tuple(map(np.array, fft2.fft2(executor, n, 0)))  # its own, the next run writes to again


def transform(fft2, field):
    """Return the transform of any field as the experiment computes it, not transposed."""
    with pc.Executor(backend="serial") as executor:
        between, result = np.empty_like(field), np.empty_like(field)
        return fft2.transposed_transform(executor, field, between, result, np.fft.fft).T


@pytest.mark.parametrize("n", [2, 16, 18, N, 128])
def test_the_spectrum_is_as_known(fft2, n):
    assert fft2.known_spectrum(there_and_back(fft2, n), n).passes


def test_the_closed_form_is_the_sum_that_defines_a_transform(fft2):
    n = 12
    kernel = np.exp(-2j * np.pi / n * (np.outer(np.arange(n), np.arange(n)) % n))
    np.testing.assert_allclose(kernel @ fft2.chirp(n) @ kernel.T, fft2.chirp_transform(n), atol=1e-12)


def test_a_plane_wave_becomes_one_point(fft2):
    wave = np.outer(*(fft2.phases(0, w, N) for w in fft2.WAVE))
    expected = np.zeros((N, N))
    expected[fft2.WAVE] = N * N
    np.testing.assert_allclose(transform(fft2, wave), expected, atol=1e-10)


def test_one_point_becomes_a_plane_wave(fft2):
    point = np.zeros((N, N), complex)
    point[fft2.WAVE] = 1
    wave = np.outer(*(fft2.phases(0, w, N) for w in fft2.WAVE))
    np.testing.assert_allclose(transform(fft2, point), wave.conj(), atol=1e-13)


def test_two_dimensions_of_noise_are_transformed_as_numpy_does(fft2):
    noise = np.random.default_rng(1).standard_normal((40, 40, 2)).view(complex)[..., 0]
    np.testing.assert_allclose(transform(fft2, noise), np.fft.fft2(noise), atol=1e-12)


@pytest.mark.parametrize("wrong", [1 + 1e-9, 0.0, np.nan])
@pytest.mark.parametrize("which", range(2))
def test_one_wrong_point_does_not_pass(fft2, which, wrong):
    result = there_and_back(fft2)
    result[which][3, 70] *= wrong
    assert not fft2.known_spectrum(result, N).passes


def test_a_transposition_too_many_does_not_pass(fft2):
    spectrum, back = there_and_back(fft2)
    assert not fft2.known_spectrum((spectrum.T, back), N).passes
    assert not fft2.known_spectrum((spectrum, back.T), N).passes


@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(map(str, way.values())))
def test_the_bits_are_the_same_whoever_computes(fft2, way):
    for x, y in zip(there_and_back(fft2, **way), there_and_back(fft2), strict=True):
        assert x.tobytes() == y.tobytes()


def test_each_preset_is_larger_than_the_one_before(fft2):
    sizes = fft2.fft2.sizes
    assert sizes["quick"] < sizes["default"] < sizes["full"]
