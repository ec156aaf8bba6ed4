"""Fine-tunes existing weights: as from scratch, but weights, and unless one is imported the tokenizer, come first."""

from tfx.orchestration.pipeline import Pipeline

from gpt2_orchestration import components
from gpt2_orchestration.pipelines.settings import PipelineSettings, ServiceFacts
from gpt2_orchestration.pipelines.stages import Stages
from gpt2_orchestration.specification import PipelineSpecification, SpecificationError


def create_pipeline(specification: PipelineSpecification, facts: ServiceFacts, settings: PipelineSettings) -> Pipeline:
    """Builds the pipeline. Raises SpecificationError when the specification names no weights."""
    if specification.import_checkpoint is None:
        raise SpecificationError("import_checkpoint is needed to fine-tune")
    stages = Stages(specification, facts)
    corpus = stages.corpus()
    imported = stages.add(components.ImportCheckpoint, specification.import_checkpoint)
    tokenizer = stages.tokenizer(corpus) or imported["tokenizer"]
    dataset = stages.dataset(corpus, tokenizer)
    trained = stages.add(
        components.FineTuneModel, specification.train_model, dataset=dataset, initial_checkpoint=imported["checkpoint"]
    )
    stages.release(trained)
    return stages.pipeline(settings)
