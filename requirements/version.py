"""Writes one version wherever a tool reads it from: `python requirements/version.py X.Y.Z`.

uv's build backend reads it from each package's own pyproject file, the builder of images from the Dockerfile, and the
manifests and the chart name the images of that version; a test compares them.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_VERSION = re.compile(r'^version = "[^"]*"$', re.MULTILINE)
_TAG = re.compile(r'newTag: "[^"]*"')
_CHART = re.compile(r"^(version|appVersion): .*$", re.MULTILINE)
_LABEL = re.compile(r'image\.version="[^"]*"')


def project_files() -> list[Path]:
    """The pyproject files of the root and of all packages."""
    return [path for pattern in ("", "*/", "services/*/") for path in sorted(ROOT.glob(f"{pattern}pyproject.toml"))]


def kustomizations() -> list[Path]:
    """The kustomizations that name images with a tag."""
    folder = ROOT / "orchestration" / "kubernetes"
    return [path for path in sorted(folder.glob("*/**/kustomization.yaml")) if _TAG.search(path.read_text("utf-8"))]


def set_version(version: str) -> None:
    """Writes a version into all pyproject files, the images' label, the kustomizations and the chart.

    Args:
        version: Such as `1.2.3` or `1.2.3rc1`.
    """
    for path in project_files():
        text = path.read_text(encoding="utf-8")
        path.write_text(_VERSION.sub(f'version = "{version}"', text, count=1), encoding="utf-8")
    for path in kustomizations():
        text = path.read_text(encoding="utf-8")
        path.write_text(_TAG.sub(f'newTag: "{version}"', text), encoding="utf-8")
    chart = ROOT / "orchestration" / "kubernetes" / "chart" / "Chart.yaml"
    # Helm asks for semantic versions, whose pre-releases follow a hyphen.
    values = {"version": re.sub(r"(?<=\d)(a|b|rc)", r"-\1", version), "appVersion": f'"{version}"'}
    text = chart.read_text(encoding="utf-8")
    chart.write_text(_CHART.sub(lambda match: f"{match[1]}: {values[match[1]]}", text), encoding="utf-8")
    dockerfile = ROOT / "Dockerfile"
    text = dockerfile.read_text(encoding="utf-8")
    dockerfile.write_text(_LABEL.sub(f'image.version="{version}"', text), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Runs the command; its exit status is the result."""
    if len(arguments) != 1 or not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", arguments[0]):
        print(__doc__, file=sys.stderr)
        return 2
    set_version(arguments[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
