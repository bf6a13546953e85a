"""An accelerator in pure Python that is as strict as a GPU, and counts what would be slow there.

A tensor on `strict:0` holds its values in an ordinary tensor on the CPU, so results are true. What
fails on a GPU fails here: tensors of two devices in one operator, a generator of the CPU for
numbers on the device, `.numpy()`. A copy that is not waited for is late: until the next wait its
target holds nonsense, and its source must not change. Nothing in here has run on CUDA."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = 'strict'
# Operators after which the host waits for the device: their result, or its shape, is needed there.
WAITS = {
    'aten::_local_scalar_dense',  # item, bool, int, float
    'aten::nonzero',
    'aten::masked_select',
    'aten::_unique',
    'aten::_unique2',
    'aten::unique_dim',
    'aten::unique_consecutive',
    'aten::repeat_interleave',
    'aten::isin',
    'aten::bincount',
    'aten::equal',
    'aten::_linalg_check_errors',
    'aten::_assert_async',
}
COPIES = {'aten::_to_copy', 'aten::copy_'}
INDEXING = {
    'aten::index',
    'aten::index_put',
    'aten::index_put_',
    'aten::_index_put_impl_',
    'aten::_unsafe_index',
    'aten::_unsafe_index_put',
}


@dataclass
class Counts:
    "What was done on the device, and between it and the host."

    operators: Counter = field(default_factory=Counter)
    waits: Counter = field(default_factory=Counter)  # operators that the host had to wait for
    copies: Counter = field(default_factory=Counter)  # 'in' and 'out', pinned or not, late or not


COUNTS = Counts()
_late: list[Callable[[], None]] = []  # copies that are under way
_pinned: set[int] = set()  # storages of memory that is pinned


def wait(why: str) -> None:
    "The host waits: all copies arrive."
    COUNTS.waits[why] += 1
    deliver()


def deliver() -> None:
    "All copies arrive."
    while _late:
        _late.pop(0)()


@contextmanager
def counted() -> Iterator[Counts]:
    "Yield what is counted inside."
    global COUNTS
    before, COUNTS = COUNTS, Counts()
    try:
        yield COUNTS
    finally:
        COUNTS = before


class Strict(torch.Tensor):
    "A tensor on the device; its values are in `raw`."

    raw: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> Strict:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
        )
        made.raw = raw
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f'strict({self.raw})'

    def __reduce_ex__(self, protocol: int) -> Any:  # type: ignore[override]
        "A file holds the values; who opens it says where they go."
        return self.cpu().__reduce_ex__(protocol)

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        "The values alone, which can be given others."
        return self.detach()

    @data.setter
    def data(self, new: Strict) -> None:
        if not isinstance(new, Strict) or new.shape != self.shape:
            raise RuntimeError(f'cannot hold values of {new.device} {tuple(new.shape)}')
        self.raw = new.raw

    def tolist(self) -> Any:
        "As on a GPU, where the values are copied first."
        return self.cpu().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        "As on a GPU."
        raise TypeError(f"can't convert {self.device} tensor to numpy; use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs or {})


def each(x: Any) -> Iterator[torch.Tensor]:
    "Yield the tensors among arguments."
    if isinstance(x, torch.Tensor):
        yield x
    elif isinstance(x, (tuple, list)):
        for y in x:
            yield from each(y)


def mapped(f: Callable[[Any], Any], x: Any) -> Any:
    "Return arguments or results with `f` applied to each of them."
    if isinstance(x, (tuple, list)):
        return type(x)(mapped(f, y) for y in x)
    return f(x)


def is_mask(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8)


def check_devices(name: str, op: Any, args: Any, kwargs: Any) -> None:
    "Raise `RuntimeError` for what a GPU refuses; count what an index makes it wait for."
    flat = [*each(args), *each(list(kwargs.values()))]
    if name in COPIES or name == 'aten::_local_scalar_dense':
        return
    if name in INDEXING:
        check_index(name, args)
        flat = [x for x in flat if not any(x is i for i in args[1])]
    for x in flat:
        if not isinstance(x, Strict) and x.dim():
            raise RuntimeError(f'{name}: expected all tensors on {DEVICE}, found one on {x.device}')


def check_index(name: str, args: Any) -> None:
    "An index of the host is copied in; a mask is turned into places, which the host waits for."
    data, indices = args[0], [i for i in args[1] if i is not None]
    if not isinstance(data, Strict) and any(isinstance(i, Strict) for i in indices):
        raise RuntimeError(f'{name}: indices on {DEVICE} for a tensor on {data.device}')
    filled = name != 'aten::index' and len(indices) == 1 and args[2].numel() == 1
    for i in indices:
        if not isinstance(i, Strict) and i.dim():
            COUNTS.copies['in'] += 1
            wait(f'{name} by an index on the host')
        elif is_mask(i) and not filled:
            wait(f'{name} by a mask')


def check_generator(name: str, kwargs: Any, there: bool) -> None:
    made = kwargs.get('generator')
    if made is not None and there:
        raise RuntimeError(f'{name}: expected a generator on {DEVICE}, found {made.device}')


def nonsense(x: torch.Tensor) -> torch.Tensor:
    "What memory holds before a copy has arrived."
    if x.is_floating_point() or x.is_complex():
        return torch.full_like(x, torch.nan)
    return ~x if x.dtype == torch.bool else torch.full_like(x, torch.iinfo(x.dtype).min)


def copied_out(name: str, op: Any, args: Any, kwargs: Any, late: bool) -> Any:
    "A copy to the host."
    COUNTS.copies['out, late' if late else 'out'] += 1
    if not late:
        wait('a copy out')
        return op(*mapped(bare, args), **kwargs)
    source = args[1] if name == 'aten::copy_' else args[0]
    values = bare(source).clone()
    if name == 'aten::copy_':
        target = args[0]
        target.copy_(nonsense(target))
    else:
        values = op(*mapped(bare, args), **kwargs)
        target = nonsense(values)
    _late.append(lambda: target.detach().copy_(values))
    return target


def copied_in(name: str, op: Any, args: Any, kwargs: Any, late: bool) -> Any:
    "A copy to the device."
    source = args[1] if name == 'aten::copy_' else args[0]
    if source.dim() or not late:  # a single number travels with the operator
        pinned = source.untyped_storage()._cdata in _pinned
        COUNTS.copies[('pinned in' if pinned else 'in') + ', late' * late] += 1
    if not late:
        wait('a copy in')
    else:
        version = source._version

        def arrive() -> None:
            if source._version != version:
                raise RuntimeError('memory was changed while it was being copied to the device')

        _late.append(arrive)
    return op(*mapped(bare, args), **kwargs)


def bare(x: Any) -> Any:
    """Return what an operator is to see of `x`: its values, conjugate or negative where a bit of
    the tensor says that it is to be read so."""
    if not isinstance(x, Strict):
        return x
    values = x.raw.conj() if x.is_conj() else x.raw
    return torch._neg_view(values) if x.is_neg() else values


def made_of(values: Any) -> Any:
    "Return the tensor of some values; PyTorch is told of their bits, and sees to them."
    if not isinstance(values, torch.Tensor):
        return values
    conjugate, negative = values.is_conj(), values.is_neg()
    if not (conjugate or negative):
        return Strict(values)
    plain = torch._neg_view(values) if negative else values
    made = Strict(plain.conj() if conjugate else plain)
    torch._C._set_conj(made, conjugate)
    torch._C._set_neg(made, negative)
    return made


def run(op: Any, args: Any, kwargs: Any) -> Any:
    "Run an operator that has to do with the device."
    name = op._schema.name
    COUNTS.operators[name] += 1
    ours = any(
        isinstance(x, Strict) for given in (args, list(kwargs.values())) for x in each(given)
    )
    there, late = ours, False
    if kwargs.get('device') is not None:
        there = torch.device(kwargs['device']).type == NAME
        kwargs = {**kwargs, 'device': torch.device('cpu')}
    if name in COPIES:
        late = bool(kwargs.get('non_blocking') or (name == 'aten::copy_' and args[2:3] == (True,)))
        come = isinstance(args[1 if name == 'aten::copy_' else 0], Strict)
        go = isinstance(args[0], Strict) if name == 'aten::copy_' else there
        if come != go:
            out = (copied_in if go else copied_out)(name, op, args, kwargs, late)
            return args[0] if name == 'aten::copy_' else made_of(out) if go else out
    if ours:
        check_devices(name, op, args, kwargs)
    check_generator(name, kwargs, there)
    if name in WAITS:
        wait(name.removeprefix('aten::'))
    out = op(*mapped(bare, args), **{k: mapped(bare, x) for k, x in kwargs.items()})
    if name == 'aten::_local_scalar_dense' or name == 'aten::equal':
        return out
    if op._schema.is_mutable and name.endswith('_'):
        return args[0]
    if op._schema.is_mutable and kwargs.get('out') is not None:
        return kwargs['out']
    return mapped(made_of, out) if there else out


class _Hook(torch._C._acc.PrivateUse1Hooks):
    "Nothing takes the device for one that it should use by itself."

    def is_available(self) -> bool:
        return False

    def has_primary_context(self, number: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class _Module:
    "What PyTorch asks about the device."

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass


_HOOK = _Hook()
_setup_privateuseone_for_python_backend(NAME, backend_module=_Module(), hook=_HOOK)
DEVICE = torch.device(f'{NAME}:0')
_library = torch.library.Library('_', 'IMPL')
_library.fallback(lambda op, *args, **kwargs: run(op, args, kwargs), 'PrivateUse1')
_makers = torch.library.Library('aten', 'IMPL')  # else they fill an empty tensor, whose shape stays
for _name in ('arange', 'arange.start', 'arange.start_step', 'eye', 'linspace', 'randperm'):
    _op = getattr(getattr(torch.ops.aten, _name.split('.')[0]), (_name + '.default').split('.')[1])
    _makers.impl(_name, lambda *args, op=_op, **kwargs: run(op, args, kwargs), 'PrivateUse1')


def from_values(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    "Return `torch.tensor` or `torch.as_tensor`, which makes a tensor here and copies it there."

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if device is None or torch.device(device).type != NAME or isinstance(data, Strict):
            return make(data, *args, device=device, **kwargs)
        return make(data, *args, **kwargs).to(device)

    return made


def pinned(x: torch.Tensor) -> torch.Tensor:
    "Return a copy in pinned memory."
    if isinstance(x, Strict):
        raise RuntimeError(f'cannot pin a tensor on {x.device}')
    made = x.clone()
    storage = made.untyped_storage()
    _pinned.add(storage._cdata)
    weakref.finalize(storage, _pinned.discard, storage._cdata)
    return made


@contextmanager
def installed() -> Iterator[None]:
    "Inside, what PyTorch does not ask a backend in Python is done here."
    empty = torch.empty
    new: list[tuple[Any, str, Any]] = [
        (torch.Tensor, 'pin_memory', pinned),
        (torch, 'tensor', from_values(torch.tensor)),
        (torch, 'as_tensor', from_values(torch.as_tensor)),
        (torch.accelerator, 'synchronize', lambda device: wait('synchronize')),
        (torch, 'inference_mode', torch.no_grad),  # tensors without a version cannot be held
    ]

    def made_empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return pinned(empty(*args, **kwargs)) if pin_memory else empty(*args, **kwargs)

    with ExitStack() as stack:
        for where, name, it in (*new, (torch, 'empty', made_empty)):
            stack.callback(setattr, where, name, getattr(where, name))
            setattr(where, name, it)
        yield
