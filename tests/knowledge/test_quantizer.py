"""Codes of log-probabilities: monotone, and as exact as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfuse.knowledge.quantizer import QUANTIZERS, nearly_equal

each = pytest.mark.parametrize("bits", QUANTIZERS)


@each
@given(values=st.lists(st.floats(0, 150, width=32), min_size=2))
def test_the_declared_error_is_kept(bits: int, values: list[float]) -> None:
    quantizer = QUANTIZERS[bits]
    logprobs = -np.sort(np.array(values, dtype=np.float32))
    codes = quantizer.codes(logprobs)
    assert (np.diff(codes) >= 0).all()
    found = quantizer.logprobs()[codes]
    wrong = np.abs(found - logprobs.astype(np.float64))
    assert (wrong <= quantizer.error * (1 + np.abs(logprobs)) * (1 + 1e-9)).all()
    np.testing.assert_array_equal(quantizer.codes(found), codes)


def test_what_is_declared() -> None:
    """As good as float16 from -1 on: half a unit in the last place is up to 2**-11 of the value."""
    default, compact = QUANTIZERS[16], QUANTIZERS[8]
    assert default.error == pytest.approx(2**-12, rel=1e-3)
    assert compact.error == pytest.approx(1 / 96, rel=1e-2)
    values = -np.linspace(1, 60, 5000)
    half = np.abs(values.astype(np.float16).astype(np.float64) - values)
    assert default.error * (1 + 1) <= 1.001 * 2**-11
    assert (half <= 2**-11 * np.abs(values)).all()
    assert default.smallest < -1e13
    assert -200 < compact.smallest < -190


@each
def test_the_ends(bits: int) -> None:
    quantizer = QUANTIZERS[bits]
    table = quantizer.logprobs()
    assert len(table) == 2**quantizer.bits
    assert quantizer.codes(np.array([0.0, 1e-4, -np.inf])).tolist() == [0, 0, quantizer.zero_code]
    assert quantizer.codes(np.array([-1e30], dtype=np.float32)).tolist() == [
        quantizer.zero_code - 1
    ]
    assert table[0] == 0
    assert table[-1] == -np.inf
    assert table[-2] == pytest.approx(quantizer.smallest)


def test_same() -> None:
    one = np.array([-1.0, -1.0, -np.inf, -np.inf, -100.0])
    other = np.array([-1.00001, -1.001, -np.inf, -3.0, -100.0005])
    assert nearly_equal(one, other).tolist() == [True, False, False, False, True]
