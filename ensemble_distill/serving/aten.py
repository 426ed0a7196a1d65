"""A torch.export program as data: its graph is read and run operator by operator, without executing code from the file.

`torch.export.load` unpickles objects in the file and evaluates texts in it as Python. Here weights are plain bytes, the
graph is JSON, and it can call only torch's own tensor functions (`torch.ops.aten`) and a few of Python's functions of
numbers. Anything else is refused by name.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
FILES = ("from_file",)  # operators that read or write files, which are refused
COMPARED = ("eq", "ne", "le", "ge", "lt", "gt", "and_", "or_")
RECKONED = ("neg", "pos", "mul", "add", "sub", "floordiv", "mod", "pow", "truediv")
NUMBERS: dict[str, Callable[..., Any]] = {  # functions of sizes
    **{f"_operator.{name}": getattr(operator, name) for name in (*COMPARED, *RECKONED)},
    "math.trunc": math.trunc,
    "torch.sym_not": operator.not_,
    "torch.sym_int": int,
    "torch.sym_float": float,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_sqrt": math.sqrt,
}
WRAPPED = ("torch.ops.higher_order.wrap_with_set_grad_enabled", "torch.ops.higher_order.wrap_with_autocast")
# as numbered by `torch._export.serde.schema`
DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64"}
DTYPES |= {9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16"}
MEMORY = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format}
STRIDED = 7

Named = dict[str, Any]  # values of a graph, by name


class UnknownPartError(ValueError):
    """A program has a part that is not supported here, though torch.export.load may read it."""


def dtype_of(number: int) -> torch.dtype:
    """The dtype with this number; raises UnknownPartError for an unknown one."""
    if number not in DTYPES:
        raise UnknownPartError(f"numbers of type {number}")
    found: torch.dtype = getattr(torch, DTYPES[number])
    return found


class Program(nn.Module):
    """Maps x (B, ...) to the outputs of the graph, in its order."""

    def __init__(self, graph_module: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Read a graph.

        Args:
            graph_module: from `models/NAME.json`.
            tensors: weights, buffers and constants, by their names in the graph. A tensor with two names is stored
                once.

        Raises:
            UnknownPartError: an operator or an argument is not supported.
            LookupError, TypeError, ValueError: the graph is invalid, or a tensor is missing.
        """
        super().__init__()
        signature = graph_module["signature"]
        self._graph = _Graph(graph_module["graph"])
        self._kept: list[tuple[str, str]] = []  # the name in the graph, and the attribute that holds the tensor
        self._given: list[str] = []
        at: dict[int, str] = {}
        for spec in signature["input_specs"]:
            ((kind, told),) = spec.items()
            if kind == "user_input":
                self._given.append(told["arg"]["as_tensor"]["name"])
                continue
            if kind not in ("parameter", "buffer", "tensor_constant"):
                raise UnknownPartError(f"an input that is a {kind}")
            tensor = tensors[told[f"{kind}_name"]]
            if id(tensor) not in at:
                at[id(tensor)] = f"tensor_{len(at)}"
                self._keep(at[id(tensor)], tensor, kind == "parameter")
            self._kept.append((told["arg"]["name"], at[id(tensor)]))
        if other := [kind for spec in signature["output_specs"] for kind in spec if kind != "user_output"]:
            raise UnknownPartError(f"an output that is a {other[0]}")
        if len(self._given) != 1:
            raise ValueError(f"it takes {len(self._given)} inputs, and not one")

    def _keep(self, name: str, tensor: Tensor, learned: bool) -> None:
        if learned and tensor.is_floating_point():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        else:
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        values: Named = {name: getattr(self, attribute) for name, attribute in self._kept}
        values[self._given[0]] = x
        return self._graph.run(values, x.device)


class _Graph:
    """Calls in order, and after each the values that no later call needs."""

    def __init__(self, graph: Mapping[str, Any]) -> None:
        self.inputs = [_name_of(one) for one in graph["inputs"]]
        self.outputs: Sequence[Mapping[str, Any]] = graph["outputs"]
        self._calls = [_Call(node) for node in graph["nodes"]]
        last = {name: at for at, call in enumerate(self._calls) for name in call.reads}
        kept = {name for one in self.outputs for name in _names(one)}
        self._done: list[list[str]] = [[] for _ in self._calls]
        for name, at in last.items():
            if name not in kept:
                self._done[at].append(name)

    def run(self, values: Named, device: torch.device) -> tuple[Any, ...]:
        for call, done in zip(self._calls, self._done, strict=True):
            call.run(values, device)
            for name in done:
                values.pop(name, None)
        return tuple(_found(one, values, device) for one in self.outputs)


class _Call:
    """A call of one operator, with the places of its arguments and results."""

    def __init__(self, node: Mapping[str, Any]) -> None:
        self.target: str = node["target"]
        self.inputs: Sequence[Mapping[str, Any]] = node["inputs"]
        self.outputs: Sequence[Mapping[str, Any]] = node["outputs"]
        self.reads = {name for given in self.inputs for name in _names(given["arg"])}
        self._inner: _Graph | None = None
        if self.target in WRAPPED:
            (inner,) = (given["arg"]["as_graph"]["graph"] for given in self.inputs if "as_graph" in given["arg"])
            self._inner = _Graph(inner)
        else:
            self._operator, self._by_name = _operator(self.target)

    def run(self, values: Named, device: torch.device) -> None:
        found: Any
        if self._inner is not None:
            before = next(at for at, given in enumerate(self.inputs) if "as_graph" in given["arg"])
            how = [_found(given["arg"], values, device) for given in self.inputs[:before]]
            rest = [_found(given["arg"], values, device) for given in self.inputs[before + 1 :]]
            own = dict(zip(self._inner.inputs, rest, strict=True))
            with _autocast(self.target, how):
                found = self._inner.run(own, device)
            _bind_inner(self.outputs, found, values)
            return
        given = {one["name"]: _found(one["arg"], values, device) for one in self.inputs}
        found = self._operator(**given) if self._by_name else self._operator(*given.values())
        if len(self.outputs) == 1:
            _bind(self.outputs[0], found, values)
        else:
            for output, value in zip(self.outputs, () if found is None else found, strict=True):
                _bind(output, value, values)


def _operator(target: str) -> tuple[Callable[..., Any], bool]:
    """The function that a target names, and whether it takes its arguments by name.

    Raises:
        UnknownPartError: the target is not supported.
    """
    if target in NUMBERS:
        return NUMBERS[target], False
    match = ATEN.fullmatch(target)
    packet = None if match is None or match[1] in FILES else getattr(torch.ops.aten, match[1], None)
    overload = None if match is None else getattr(packet, match[2], None)
    if not isinstance(overload, torch._ops.OpOverload):
        raise UnknownPartError(f"the operator {target}")
    return overload, True


def _autocast(target: str, how: Sequence[Any]) -> Any:
    """The context manager of an inner graph; `run` is called without gradients in any case."""
    if target == WRAPPED[0]:
        return torch.no_grad()
    device, dtype, enabled, cached = (*how, None, None, None)[:4]
    return torch.autocast(device, dtype, bool(enabled), cached)


# --- arguments: a mapping with one key, the kind of its value ----------------------------------------------------

PLAIN = {"as_int", "as_ints", "as_bool", "as_bools", "as_string", "as_strings", "as_int_lists"}
OF_VALUES = ("as_sym_int", "as_sym_bool", "as_sym_float")  # a number, or the name of one


def _only(argument: Mapping[str, Any]) -> tuple[str, Any]:
    ((kind, value),) = argument.items()
    return kind, value


def _names(argument: Mapping[str, Any]) -> Iterator[str]:
    """The names of the graph's values that an argument refers to."""
    kind, value = _only(argument)
    if kind == "as_tensor":
        yield value["name"]
    elif kind == "as_tensors":
        yield from (one["name"] for one in value)
    elif kind == "as_nested_tensors":
        yield from (one["name"] for several in value for one in several)
    elif kind == "as_optional_tensor":
        yield from _names(value)
    elif kind == "as_optional_tensors":
        yield from (name for one in value for name in _names(one))
    elif kind in OF_VALUES and "as_name" in value:
        yield value["as_name"]
    elif kind.removesuffix("s") in OF_VALUES:
        yield from (one["as_name"] for one in value if "as_name" in one)


def _name_of(argument: Mapping[str, Any]) -> str:
    (name,) = _names(argument)
    return name


def _found(argument: Mapping[str, Any], values: Named, device: torch.device) -> Any:
    """The value of an argument; devices in the graph are replaced by that of the rows."""
    kind, value = _only(argument)
    if kind in PLAIN:
        return value
    if kind in ("as_float", "as_floats"):
        return float(value) if kind == "as_float" else [float(one) for one in value]
    if kind == "as_none":
        return None
    if kind == "as_device":
        return device
    if kind == "as_scalar_type":
        return dtype_of(value)
    if kind == "as_memory_format" and value in MEMORY:
        return MEMORY[value]
    if kind == "as_layout" and value == STRIDED:
        return torch.strided
    if kind == "as_tensor":
        return values[value["name"]]
    if kind in ("as_tensors", "as_nested_tensors"):
        inner = "as_tensor" if kind == "as_tensors" else "as_tensors"
        return [_found({inner: one}, values, device) for one in value]
    if kind == "as_optional_tensor":
        return _found(value, values, device)
    if kind == "as_optional_tensors":
        return [_found(one, values, device) for one in value]
    if kind in OF_VALUES:
        _, number = _only(value)
        return values[number] if "as_name" in value else number
    if kind.removesuffix("s") in OF_VALUES:
        return [_found({kind.removesuffix("s"): one}, values, device) for one in value]
    raise UnknownPartError(f"an argument {kind} = {str(value)[:60]}")


def _bind(output: Mapping[str, Any], value: Any, values: Named) -> None:
    """Store a result under its name."""
    kind, _ = _only(output)
    names = list(_names(output))
    if kind in ("as_tensors", "as_optional_tensors"):
        values.update(zip(names, value, strict=True))
    elif kind != "as_none" and names:
        values[names[0]] = value


def _bind_inner(outputs: Sequence[Mapping[str, Any]], found: Sequence[Any], values: Named) -> None:
    """Store the results of an inner graph, which `outputs` lists one by one or as one list."""
    names = [name for output in outputs for name in _names(output)]
    values.update(zip(names, found, strict=True))
