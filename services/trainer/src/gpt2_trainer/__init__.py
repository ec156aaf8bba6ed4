"""The trainer service: imports, trains, evaluates and exports GPT-2 models, and generates text."""
