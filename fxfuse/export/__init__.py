"""Write a network so that others can run it, check what was written against the network itself, and read it back.

Three formats: ONNX (checked in onnxruntime at batch sizes 1, 3 and 17), a ``torch.export`` program (``.pt2``, which
loads without fxfuse and without the user's code: tracing dissolves every helper function into torch's own operators),
and safetensors. The batch is dynamic in all of them.

With ``y`` the network's outputs and ``z`` those of the written file, the differences reported are
``max |y - z|`` and ``max |y - z| / max |y|``, each the largest over outputs and batch sizes.

A file is written and checked under a temporary name beside its target and moved into place only if it passes, so
that a failure leaves nothing behind.
"""

from fxfuse.export.onnx_file import CHECKED_BATCHES, LEVELS_KEY, OnnxReport, to_onnx
from fxfuse.export.programs import exported, to_pt2
from fxfuse.export.reading import LoadedResult, load_result
from fxfuse.export.weights_file import CLASSES_KEY, to_safetensors

__all__ = [
    "CHECKED_BATCHES",
    "CLASSES_KEY",
    "LEVELS_KEY",
    "LoadedResult",
    "OnnxReport",
    "exported",
    "load_result",
    "to_onnx",
    "to_pt2",
    "to_safetensors",
]
