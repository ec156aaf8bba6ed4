"""Stubs generated from protos/gpt2. Other distributions can add services below this package."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
