"""Cut a runnable piece out of a graph: the nodes that lead from given values to others.

The piece shares modules and parameters with the graph that it came from, so training the piece trains the graph.
"""

from collections.abc import Iterable, Sequence

from torch import fx, nn

from fxfuse.errors import GraphError
from fxfuse.passes.graphs import spell_keywords


def subgraph(module: fx.GraphModule, inputs: Sequence[str], outputs: Sequence[str]) -> fx.GraphModule:
    """A module that computes the values of the nodes ``outputs`` (a tuple) from those of the nodes ``inputs``, which it
    takes in that order. Raises ``GraphError`` if an output needs a graph input that is not among ``inputs``."""
    nodes = {node.name: node for node in module.graph.nodes}
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {nodes[name]: graph.placeholder(name) for name in inputs}
    needed = needed_nodes([nodes[name] for name in outputs], {nodes[name] for name in inputs})
    for node in module.graph.nodes:
        if node not in needed or node in env:
            continue
        if node.op == "placeholder":
            raise GraphError(f"{', '.join(outputs)} needs the graph input {node.name}, which was not given")
        env[node] = graph.node_copy(node, lambda n: env[n])
    graph.output(tuple(env[nodes[name]] for name in outputs))
    spell_keywords(graph)
    piece = fx.GraphModule(module, graph)
    piece.train(module.training)
    return piece


def capture(module: fx.GraphModule, nodes: Sequence[str]) -> fx.GraphModule:
    """The whole module with other outputs: a tuple of the values of ``nodes``; nothing behind them is computed."""
    placeholders = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    return subgraph(module, placeholders, nodes)


def needed_nodes(targets: Iterable[fx.Node], stop: set[fx.Node]) -> set[fx.Node]:
    """``targets`` and all that they are computed from, up to the nodes in ``stop``."""
    seen: set[fx.Node] = set()
    stack = list(targets)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node not in stop:
            stack.extend(node.all_input_nodes)
    return seen


def parameters_of(module: nn.Module, node: fx.Node) -> list[str]:
    """State names of the parameters that a node itself holds (of a called module, or an attribute)."""
    if node.op == "call_module":
        prefix = str(node.target)
        return [f"{prefix}.{name}" for name, _ in module.get_submodule(prefix).named_parameters(remove_duplicate=False)]
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        holder = module.get_submodule(owner)
        if name in holder._parameters and holder._parameters[name] is not None:
            return [str(node.target)]
    return []


def output_nodes(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that the graph returns, each once, in order."""
    final = next(node for node in reversed(graph.nodes) if node.op == "output")
    return list(dict.fromkeys(final.all_input_nodes))
