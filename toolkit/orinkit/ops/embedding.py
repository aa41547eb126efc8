# SPDX-License-Identifier: Apache-2.0
"""OrinEmbedding: rows of a table by token id."""

from __future__ import annotations

import numpy as np

from orinkit import int4
from orinkit.ops.description import ACTIVATION, Array, Attribute, Int32, Op, Tensor


def reference(
    ids: Int32, table: Array, scale: Array | None, *, hidden: int, group_size: int, float32_output: int
) -> tuple[Array]:
    """Rows of `table`; an id outside of it gives a row of zeros."""
    known = (ids >= 0) & (ids < table.shape[0])
    picked = np.where(known, ids, 0)
    if group_size and scale is not None:
        rows = int4.dequantise(table[picked], scale[picked])
    elif scale is not None:
        rows = table[picked].astype(np.float32) * scale[picked].astype(np.float32)[:, None]
    else:
        rows = table[picked].astype(np.float32)
    out = np.where(known[:, None], rows, np.float32(0)).reshape(len(ids), hidden)
    return (out.astype(np.float32 if float32_output else np.float16),)


OP = Op(
    name="OrinEmbedding",
    doc="Token ids to hidden rows. The table is wide, int8 rows with a scale each, or int4 groups.",
    inputs=(
        Tensor("ids", "[T]", ("int32",), "token ids; an id outside the table (padding: -1) gives a row of zeros"),
        Tensor(
            "table", "[V, H] or int4 [V, H/2]", ("float16", "float32", "int8"), "int8 with group_size 0: whole bytes"
        ),
        Tensor("scale", "[V] or [V, H/G]", ("float16",), "absent for a wide table", optional=True),
    ),
    attributes=(
        Attribute("hidden", "int", "H"),
        Attribute("group_size", "int", "G of an int4 table; 0 = the table is not int4"),
        Attribute("float32_output", "int", "1: rows are float32, else float16"),
    ),
    outputs=(Tensor("y", "[T, H]", ACTIVATION, "hidden rows"),),
    reference=reference,
)
