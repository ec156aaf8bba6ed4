"""Makes what the tests on a node need and cannot make inside its namespaces, from which no network leads out.

python -m tests.node.prepare
"""

import sys
from pathlib import Path

from tests.containers.engine import EngineError, default_engine

from .cni import install_plugins
from .images import load_images

_HELPERS = Path(__file__).resolve().parents[2] / "services" / "common" / "tests"


def main() -> None:
    # Where pytest finds the helpers that tests of several members share.
    sys.path.append(str(_HELPERS))
    from go_programs import HELM, install_go_program

    engine = default_engine()
    try:
        was_running = engine.answers()
        engine.start()
        try:
            load_images(engine)
        finally:
            if not was_running:
                engine.stop()
        install_plugins()
    except (EngineError, AssertionError) as error:
        sys.exit(f"the images of a node cannot be made: {error}")
    install_go_program(HELM)


if __name__ == "__main__":
    main()
