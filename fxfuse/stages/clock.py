"""How long every stage takes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fxfuse.memory import give_back


@dataclass(slots=True)
class Clock:
    """Seconds by stage, in the order in which the stages were first gone through."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what happens inside to a stage."""
        start = time.monotonic()
        yield
        give_back()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 3)
