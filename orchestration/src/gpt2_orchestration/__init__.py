"""TFX pipelines over the services, the gpt2 command and the embedded stack."""
