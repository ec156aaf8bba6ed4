"""The API, a module for each thing that it is about. `dashboard/__init__.py` lists its calls."""
