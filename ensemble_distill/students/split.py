"""Taking a network apart at one of its modules: what comes before, and what follows."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torch import fx, nn

from ensemble_distill.errors import EdistillError, quoted

WISHES = "no_weight_decay"  # a key of `meta`, the only attribute that copies of a traced graph keep


def undecayed(module: nn.Module) -> set[str]:
    """Names of the parameters that a network, or a part of one, exempts from weight decay."""
    if isinstance(module, fx.GraphModule):
        return set(module.meta.get(WISHES, ()))
    wished: set[str] = getattr(module, "no_weight_decay", set)()
    return wished


@dataclass(frozen=True)
class Split:
    """A body in three parts that share its layers; run one after the other, they are the body.

    Attributes:
        trunk: x to the input of the first of the two modules.
        bridge: from there to the input of the last stage; an identity if both modules are the same.
        tail: from there to features (B, F).
    """

    trunk: nn.Module
    bridge: nn.Module
    tail: nn.Module


def split(body: nn.Module, last_stage: str, adapt_from: str | None = None) -> Split:
    """Split a body before `last_stage`, the name of a module in it.

    Args:
        adapt_from: a module before the last stage, at which the trunk ends; the last stage itself by default.

    Raises:
        EdistillError: there is no such module, it does not run exactly once with one input, something bypasses it (a
            skip connection around it), or the body's forward cannot be traced.
    """
    names = (adapt_from or last_stage, last_stage)
    graph = _traced(body, names)
    first, last = (_input_of(graph, name) for name in names)
    order = list(graph.nodes)
    if order.index(first) > order.index(last):
        raise EdistillError(
            f"adapt-from is {adapt_from!r}, which comes after the last stage's {last_stage!r} in the body. Adapters "
            "stand in for what is before the last stage: swap the two, or leave adapt-from out."
        )
    start = next(node for node in graph.nodes if node.op == "placeholder")
    end = next(node for node in graph.nodes if node.op == "output").args[0]
    return Split(
        trunk=_between(body, start, first, names[0]),
        bridge=_between(body, first, last, names[0]),
        tail=_between(body, last, end, last_stage),
    )


def last_stage_of(body: nn.Module) -> str:
    """The name of what is commonly called a body's last stage.

    That is timm's last feature level; otherwise the last child with weights or, if that is a sequence, its last such
    child.

    Raises:
        EdistillError: no module has parameters.
    """
    known = dict(body.named_modules())
    for level in reversed(getattr(body, "feature_info", None) or ()):
        if isinstance(level, dict) and _learns(known.get(level.get("module", ""), nn.Identity())):
            return str(level["module"])
    name, module = "", body
    while module is body or isinstance(module, nn.Sequential):
        learned = [(child, m) for child, m in module.named_children() if _learns(m)]
        if not learned:
            break
        name, module = f"{name}.{learned[-1][0]}".lstrip("."), learned[-1][1]
        if len(learned) == 1 and not isinstance(module, nn.Sequential):
            break
    if not name:
        raise EdistillError(
            'student.heads is "last-stage", but the body has no module with parameters. Use heads = [] or [100].'
        )
    return name


def _learns(module: nn.Module) -> bool:
    """Whether a module holds a matrix: a normalization alone is not a stage."""
    return any(parameter.dim() > 1 for parameter in module.parameters())


def _traced(body: nn.Module, names: tuple[str, ...]) -> fx.Graph:
    known = dict(body.named_modules())
    for name in names:
        if not name or name not in known:
            there = ", ".join(n for n in known if n and n.count(".") < 2) or "none"
            raise EdistillError(
                f"The body is to be taken apart at {name!r}, and its modules are {there}. Name one of them."
            )

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            # trace only into modules that hold the named ones: the rest may contain code that does not trace
            return not any(name.startswith(f"{module_qualified_name}.") for name in names)

    training = body.training
    body.eval()  # in training mode, functional dropout would become a permanent part of the graph
    try:
        # arguments with defaults, such as masks, keep their defaults
        arguments = list(inspect.signature(body.forward).parameters.values())[1:]
        given = {a.name: a.default for a in arguments if a.default is not a.empty}
        return Tracer().trace(body, concrete_args=given)
    except Exception as error:  # the forward is anyone's code, and tracing runs it on stand-ins for tensors
        raise EdistillError(
            f"The body cannot be taken apart at {' and '.join(dict.fromkeys(names))}: its forward does not trace "
            f"({quoted(error)}). Call these modules from a "
            "forward without branches that depend on the data, or use heads = [] or [100]."
        ) from error
    finally:
        body.train(training)


def _input_of(graph: fx.Graph, name: str) -> fx.Node:
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == name]
    if len(calls) != 1 or len(calls[0].args) != 1 or calls[0].kwargs or not isinstance(calls[0].args[0], fx.Node):
        how = f"runs {len(calls)} times" if len(calls) != 1 else "is not called with one input by position"
        raise EdistillError(
            f"The body is to be taken apart at {name}, which {how} in its forward. Name a module that runs once, as "
            f"self.{name}(x) on the output of what comes before."
        )
    found = calls[0].args[0]
    assert isinstance(found, fx.Node)
    return found


def _between(body: nn.Module, start: fx.Node, end: fx.Node, name: str) -> nn.Module:
    """The part of the graph that computes `end` from `start`."""
    needed: dict[fx.Node, None] = {}

    def visit(node: fx.Node) -> None:
        if node is start or node in needed:
            return
        if node.op == "placeholder":
            raise EdistillError(
                f"What follows {name} in the body also reads what comes before it, so the body cannot be taken apart "
                "there. Name a module that nothing passes by."
            )
        for other in node.all_input_nodes:
            visit(other)
        needed[node] = None

    visit(end)
    graph = fx.Graph()
    copies = {start: graph.placeholder("x")}
    for node in needed:  # dependencies come first
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[end])
    part = fx.GraphModule(body, graph)
    part.meta[WISHES] = undecayed(body) & dict(part.named_parameters()).keys()
    return part.train(body.training)
