"""Normalise: one canonical graph language, whatever the user wrote and whichever front end read it.

``normalize`` runs the graph passes of :mod:`fxfuse.passes.normalizing` in the order of ``PASSES``. Afterwards

1. every parameter is read by a ``torch.nn`` layer under the user's own path, or by a ``get_attr`` node;
2. no operator writes in place;
3. attention and transformers are open;
4. dropout, identities, checks and dead code are gone;
5. sizes in the graph follow the widths of the weights wherever that could be decided;
6. each operation has one spelling.

The function is the same in evaluation mode, for every batch size; ``trace`` checks that.
"""

from collections.abc import Callable

from torch import Tensor, fx

from fxfuse.passes.normalizing.aten import respell_aten
from fxfuse.passes.normalizing.constants import fold_constants
from fxfuse.passes.normalizing.forms import drop_dead, drop_identities, unify_forms
from fxfuse.passes.normalizing.inplace import functionalize
from fxfuse.passes.normalizing.layers import drop_zero_states, restore_layers, restore_recurrent
from fxfuse.passes.normalizing.sizes import follow_widths, unfollowed
from fxfuse.passes.normalizing.stacks import split_stacks
from fxfuse.passes.probing import PROBE, probe

GraphPass = Callable[[fx.GraphModule], int]

PASSES: tuple[tuple[str, GraphPass], ...] = (
    ("constants folded", fold_constants),
    ("in-place operators made functional", functionalize),
    ("aten operators respelled", respell_aten),
    ("operations respelled", unify_forms),
    ("dead nodes dropped", drop_dead),
    ("functions with parameters made layers again", restore_layers),
    ("recurrent operators made layers again", restore_recurrent),
    ("zero initial states dropped", drop_zero_states),
    ("identities, dropout and checks dropped", drop_identities),
    ("sizes made to follow widths", follow_widths),
    ("stacked recurrent layers written out", split_stacks),
    ("identities dropped again", drop_identities),
    ("dead nodes dropped again", drop_dead),
)
"""What is done, in order, and how to say it."""


def normalize(module: fx.GraphModule, example: tuple[Tensor, ...]) -> tuple[str, ...]:
    """Bring ``module`` into canonical form, in place.

    ``example`` holds one tensor per placeholder. Returns what was changed and what could not be, in words.

    Raises:
        GraphError: an in-place operator has no functional form.
    """
    if PROBE not in module.meta:
        probe(module, example)
    done = []
    for name, run in PASSES:
        changes = run(module)
        module.graph.lint()
        if changes:
            done.append(f"{name} ({changes})")
    notes = [f"the graph was brought into one form: {', '.join(done)}"] if done else []
    notes.extend(unfollowed(module))
    module.recompile()
    return tuple(notes)
