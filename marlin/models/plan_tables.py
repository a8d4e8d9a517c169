"""Tables of which single rows are read: their files stay open from when they are found.

Refuses to know which models have them.
"""

from marlin.models.spec import ModelSpec
from marlin.weights.row_table import hold
from marlin.weights.tensor_file import TensorInfo


def with_held(
    spec: ModelSpec, tensors: dict[str, TensorInfo], attribute: str
) -> dict[str, TensorInfo]:
    """The same tensors, those of a table held open; `attribute` as plan.split_fused()."""
    tables = [getattr(tensor, attribute) for tensor in spec.tensors if tensor.is_table]
    stems = tuple(f"{name.removesuffix('.weight')}." for name in tables)
    if not stems:
        return tensors
    return {name: hold(at) if name.startswith(stems) else at for name, at in tensors.items()}
