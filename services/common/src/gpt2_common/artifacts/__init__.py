"""Artifacts: what passes between stages. A directory whose `manifest.json`, written last, lists every file.

No manifest, no artifact: a crash leaves nothing half-written that anyone can open.
"""

from gpt2_common.artifacts.manifest import FileEntry, Manifest, Parent
from gpt2_common.artifacts.store import Artifact, ArtifactStore, ArtifactWriter

__all__ = ["Artifact", "ArtifactStore", "ArtifactWriter", "FileEntry", "Manifest", "Parent"]
