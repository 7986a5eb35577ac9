"""A device that is none: its tensors say that they are not the processor's, are computed there all the same, and must
not meet the processor's own. What draws and trains on it finds its way on a GPU.

It goes by the name of torch's "meta", the one other device that every torch has.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("meta")
# what takes tensors of both: copies, and indices, which may always be the processor's
MIXED = {"aten::_to_copy", "aten::copy_", "aten::index", "aten::index_put", "aten::index_put_"}


class Far(Tensor):
    """A tensor of the device; `near` holds its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> "Far":
        far = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=DEVICE,
        )
        far.near = near
        return far

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation, on the processor. Raises AssertionError for one that a GPU refuses."""
    with torch.inference_mode(False), torch.no_grad():
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with Operations():
                return func.decompose(*args, **kwargs)
        flat, structure = tree_flatten((args, kwargs))
        given = [one for one in flat if isinstance(one, Tensor)]
        strangers = [one for one in given if not isinstance(one, Far)]
        assert not any(one.is_meta for one in strangers), f"{func} is given what has no numbers"
        far, to = len(strangers) < len(given), kwargs.get("device")
        if far and func._schema.name not in MIXED:
            shapes = [tuple(one.shape) for one in strangers if one.dim()]
            assert not shapes, f"{func} is given tensors {shapes} of the processor beside those of the device"
        near = tree_unflatten([one.near if isinstance(one, Far) else one for one in flat], structure)
        made = func(*near[0], **near[1] | ({} if to is None else {"device": "cpu"}))
        if not (far if to is None else torch.device(to) == DEVICE):
            return made
        known = {id(one.near): one for one in given if isinstance(one, Far)}  # what is changed in place

        def there(one: Any) -> Any:
            return one if type(one) is not Tensor else known[id(one)] if id(one) in known else Far(one)

        return tree_map(there, made)


class Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Functions(TorchFunctionMode):
    """What makes tensors of Python's numbers, which torch fills before it asks any mode."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.new_tensor:
            like, data = args
            return torch.tensor(data, dtype=kwargs.get("dtype", like.dtype)).to(like.device)
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            listed = lambda at: torch.tensor(at) if isinstance(at, list) else at  # noqa: E731
            place = tuple(map(listed, args[1])) if isinstance(args[1], tuple) else listed(args[1])
            args = (args[0], place, *args[2:])
        return func(*args, **kwargs)


@contextmanager
def elsewhere() -> Iterator[None]:
    """Within, tensors and networks can be made on the device, and moved there."""
    future = torch.__future__
    before = future.get_overwrite_module_params_on_conversion()
    future.set_overwrite_module_params_on_conversion(True)  # a Far can't be a parameter's new data
    try:
        with Functions(), Operations():
            yield
    finally:
        future.set_overwrite_module_params_on_conversion(before)
