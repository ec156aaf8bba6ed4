"""The catalogue of stages: every start call with its artifacts, as the protos declare them (gpt2/jobs/v1/stage.proto).

Services, pipelines, command line and dashboard derive their lists of stages from it.
"""

from gpt2_catalogue.catalogue import Catalogue, build_catalogue, catalogue
from gpt2_catalogue.stage import Stage, StageInput, StageOutput, default_stage_name

__all__ = ["Catalogue", "Stage", "StageInput", "StageOutput", "build_catalogue", "catalogue", "default_stage_name"]
