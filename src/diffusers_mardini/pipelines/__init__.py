"""From pictures to video: the pipeline and its output."""

from .pipeline_mardini import MarDiniPipeline
from .pipeline_output import MarDiniPipelineOutput
from .rollout import MarDiniRollout


__all__ = ["MarDiniPipeline", "MarDiniPipelineOutput", "MarDiniRollout"]
