"""From pictures to video: the pipeline and its output."""

from .pipeline_mardini import MarDiniPipeline
from .pipeline_output import MarDiniPipelineOutput


__all__ = ["MarDiniPipeline", "MarDiniPipelineOutput"]
