"""Names of stored fields in earlier versions, by which their checkpoints are read."""

CONFIG_NAMES = {
    "accumulate_gradients": "gradient_accumulation_steps",
    "memory_saving_gradients": "gradient_checkpointing",
    "most_skipped_in_a_row": "max_consecutive_skipped_updates",
    "report_every": "log_every",
}
"""Of ResolvedTrainingConfig."""
STATE_NAMES = {"skipped_in_a_row": "consecutive_skipped_steps"}
"""Of TrainingState."""
