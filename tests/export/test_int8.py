# SPDX-License-Identifier: Apache-2.0
"""INT8 matrices: their scales and integers."""

from __future__ import annotations

import numpy as np
import pytest

from orinkit.errors import ConfigError
from orinkit_export import int8
from rounding_inputs import gauss


def test_the_nearest_integers() -> None:
    """Within half a step of the scale as stored; a row of zeros stays zero."""
    given = gauss(40, 64) * np.float32(0.02)
    given[7] = 0
    rounded = int8.nearest(given)
    values, scale = rounded.packed, rounded.scales
    assert [values.dtype.name, scale.dtype.name] == ["int8", "float16"]
    assert scale[7] == 1
    assert not values[7].any()
    wide = scale.astype(np.float64)[:, None]
    half_a_step = 0.5 + 127 * 2.0**-11  # a scale that float16 rounded down clips the largest value
    assert (np.abs(values * wide - given) <= wide * half_a_step).all()
    assert (np.abs(np.delete(values, 7, axis=0)).max(axis=1) >= 126).all()
    expected = values.astype(np.float64) * wide
    assert np.abs(rounded.dequantised() - expected).max() < 1e-6
    assert rounded.beside == (scale,)


def test_columns_that_no_product_takes_are_refused() -> None:
    with pytest.raises(ConfigError, match="a multiple of 32 weights for int8, found 40; use float16"):
        int8.nearest(gauss(2, 40))
