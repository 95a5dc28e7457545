"""Models, data and training recipes that show and test fxfuse; nothing here imports the rest of it."""

from fxfuse.models_zoo.randomise import randomise
from fxfuse.models_zoo.zoo import ZOO, Input, ZooEntry

__all__ = ["ZOO", "Input", "ZooEntry", "randomise"]
