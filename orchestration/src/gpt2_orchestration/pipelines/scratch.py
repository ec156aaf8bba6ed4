"""Trains a new model: data → corpus → tokenizer → dataset → training → servable model → registered version."""

from tfx.orchestration.pipeline import Pipeline

from gpt2_orchestration import components
from gpt2_orchestration.pipelines.settings import PipelineSettings, ServiceFacts
from gpt2_orchestration.pipelines.stages import Stages
from gpt2_orchestration.specification import PipelineSpecification, SpecificationError


def create_pipeline(specification: PipelineSpecification, facts: ServiceFacts, settings: PipelineSettings) -> Pipeline:
    """Builds the pipeline. Raises SpecificationError when the specification is one of fine-tuning."""
    stages = Stages(specification, facts)
    corpus = stages.corpus()
    tokenizer = stages.tokenizer(corpus)
    if tokenizer is None:
        raise SpecificationError("train_tokenizer or import_tokenizer is needed to train from scratch")
    dataset = stages.dataset(corpus, tokenizer)
    stages.release(stages.add(components.TrainModel, specification.train_model, dataset=dataset))
    return stages.pipeline(settings)
