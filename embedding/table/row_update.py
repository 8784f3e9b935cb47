"""How rows are updated: by the optimizer's kernel, around which narrow vectors are widened."""

import numpy as np
import numpy.typing as npt

from embedding.kernels.mixing import mix_text
from embedding.optimizers.rule import OptimizerRule
from embedding.spec.table import TableSpec
from embedding.table.precision import FLOAT32, kind_of, narrow_rows, widen_rows

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

# That are widened together: with their gradients they stay in a core's second-level cache.
_ROWS_AT_ONCE = 2048


class RowUpdate:
    """The update of a table's rows.

    Args:
        spec: of the table.
        rule: of its optimizer.
    """

    def __init__(self, spec: TableSpec, rule: OptimizerRule) -> None:
        self._dim = spec.dim
        self._rule = rule
        self._precision = kind_of(spec.value_dtype)
        # No table's name has a slash, so these draws are not the initial values of any.
        self._seed = np.uint64(mix_text(f"{spec.name}/rounding", spec.seed))

    def __call__(
        self,
        values: Float32Array,
        positions: Int64Array,
        keys: Int64Array,
        gradients: Float32Array,
        *,
        step: int,
        scale: np.float32,
        scalars: npt.NDArray[np.float64],
    ) -> None:
        """Update rows in place.

        Vectors of 16 bits are widened, updated in float32 and rounded.

        Args:
            values: float32[capacity, width], the table's rows.
            positions: int64[n], rows to update; -1 leaves one out.
            keys: int64[n], whose rows they are.
            gradients: float32[n, dim], sums.
            step, scale, scalars: as of `EmbeddingVariable.apply`.
        """
        if self._precision == FLOAT32:
            self._rule.run(values, positions, gradients, scale, scalars)
            return
        n, kind, dim = min(keys.size, _ROWS_AT_ONCE), self._precision, self._dim
        wide = np.empty((n, self._rule.row_width(dim)), np.float32)
        for start in range(0, keys.size, _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            rows, places = positions[part], np.empty(min(n, keys.size - start), np.int64)
            widen_rows(values, rows, kind, dim, wide, places)
            self._rule.run(wide, places, gradients[part], scale, scalars)
            narrow_rows(values, rows, kind, dim, wide, keys[part], self._seed, step)
