"""Time to partition against the number of nodes; linear if the last column stays level.

    uv run python tests/bench/bench_partition.py [--nodes 1000,2000,4000,8000,16000] [--granularity block|layer|N]

The networks are chains of residual blocks, and one in which every layer reads all layers before it in its block.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import fx, nn

from fxfuse.passes.partition import partition
from fxfuse.types import Axes, Granularity, Program

NO_AXES = Axes((), {}, {}, {})


def residual(count: int) -> Program:
    """Residual blocks in a row."""
    graph, root = fx.Graph(), nn.Module()
    x = graph.placeholder("x")
    for i in range(count // 3):
        root.add_module(f"l{i}", nn.Linear(4, 4))
        y = graph.call_function(torch.relu, (graph.call_module(f"l{i}", (x,)),))
        x = graph.call_function(torch.add, (x, y))
    graph.output(x)
    return Program("residual", fx.GraphModule(root, graph), (torch.randn(2, 4),), "fx")


def dense(count: int, block: int = 12) -> Program:
    """Densely connected blocks in a row."""
    graph, root = fx.Graph(), nn.Module()
    x = graph.placeholder("x")
    for i in range(count // (3 * block + 1)):
        seen = [x]
        for j in range(block):
            name = f"l{i}_{j}"
            root.add_module(name, nn.Linear(4 * len(seen), 4))
            y = graph.call_module(name, (graph.call_function(torch.cat, (list(seen), 1)),))
            seen.append(graph.call_function(torch.relu, (y,)))
        name = f"t{i}"
        root.add_module(name, nn.Linear(4 * len(seen), 4))
        x = graph.call_module(name, (graph.call_function(torch.cat, (seen, 1)),))
    graph.output(x)
    return Program("dense", fx.GraphModule(root, graph), (torch.randn(2, 4),), "fx")


def main() -> None:
    """Print one line per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="1000,2000,4000,8000,16000")
    parser.add_argument("--granularity", default="block")
    given = parser.parse_args()
    granularity: Granularity = int(given.granularity) if given.granularity.isdigit() else given.granularity
    torch.set_num_threads(1)
    makers: tuple[Callable[[int], Program], ...] = (residual, dense)
    for make in makers:
        for count in map(int, given.nodes.split(",")):
            program = make(count)
            start = time.process_time()
            levels = partition(program, NO_AXES, granularity).levels
            seconds = time.process_time() - start
            nodes = len(program.module.graph.nodes)
            figures = f"{nodes:6d} nodes {len(levels):6d} levels {seconds:7.2f} s {1e3 * seconds / nodes:6.3f} ms/node"
            print(f"{make.__name__:9s} {figures}")


if __name__ == "__main__":
    main()
