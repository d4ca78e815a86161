"""The files of finished stages: RUN/stages/stage_01.safetensors is the result after stage 1, an ordinary result file of all images then.

They are what later stages start from (their networks were trained on these very images), so they are checked against the hashes in
the checkpoint. `raydd evaluate`, `report` and `export` take them like any other result.
"""

from collections.abc import Sequence
from pathlib import Path

from raydd import artifact
from raydd.artifact import Artifact
from raydd.errors import CheckpointError
from raydd.runfolder import images_sha256
from raydd.types import SyntheticSet

FOLDER = "stages"


def stage_path(run: Path, stage: int) -> Path:
    """Where the result after a stage lies."""
    return run / FOLDER / f"stage_{stage:02d}.safetensors"


def write_stage(run: Path, stage: int, result: Artifact) -> str:
    """Write the result after a stage; returns the sha-256 of its images. Raises `ResourceError` when it cannot be written."""
    path = stage_path(run, stage)
    path.parent.mkdir(exist_ok=True)
    artifact.write(path, result)
    return images_sha256(result.synthetic.images)


def read_stages(run: Path, hashes: Sequence[str]) -> list[SyntheticSet]:
    """The sets after the stages 1, 2, .., one for each of the hashes (sha-256 of the images), each with the step size of its last stage.

    Raises `CheckpointError` naming a file that is missing, damaged, or not the one that the run went on from.
    """
    found = []
    for stage, sha256 in enumerate(hashes, start=1):
        path = stage_path(run, stage)
        if not path.exists():
            raise CheckpointError(f"{path} is missing: later stages start from it. Restore it, or start anew under another --run.")
        synthetic = artifact.read(path).synthetic
        if images_sha256(synthetic.images) != sha256:
            raise CheckpointError(
                f"{path} holds other images than this run went on from after stage {stage} (sha-256 {sha256[:12]}). Restore the file, "
                "or start anew under another --run."
            )
        found.append(synthetic)
    return found
