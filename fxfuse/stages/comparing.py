"""The trained network beside its parents, their ensembles, the plain average and what fine-tuning started from."""

from dataclasses import dataclass

from fxfuse.passes.verify import compare
from fxfuse.stages.analysis import Matched
from fxfuse.stages.arguments import Data, Job
from fxfuse.stages.building import Built
from fxfuse.stages.plain import plain_average
from fxfuse.stages.training import Trained
from fxfuse.types import Score


@dataclass(frozen=True, slots=True)
class Compared:
    """The rows of the comparison, none where there is no data to compare on."""

    scores: tuple[Score, ...] = ()
    notes: tuple[str, ...] = ()


def judge(job: Job, matched: Matched, data: Data, built: Built, trained: Trained) -> Compared:
    """Compare on the evaluation data, or on the calibration data where there are no others, which is said."""
    samples = data.any
    if samples is None:
        return Compared()
    scores = compare(
        [parent.program for parent in built.pairs.parents],
        built.made.module,
        samples,
        weights=job.parents.shares,
        device=job.host.device,
        average=plain_average(matched.pairs, job.parents.shares, job.parents.union),
        union=built.answer,
        others=trained.others,
        progress=job.host.progress,
    )
    said = "no evaluation data was given: the comparison is on the calibration data"
    return Compared(tuple(scores), () if data.evaluation is not None else (said,))
