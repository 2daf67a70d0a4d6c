"""The small face networks that ship with the package: nothing to download, nothing that is not permissive.

Where they come from and what they learnt from stands in weights/NOTICES.md, what they can do in docs/small-faces.md.
"""

from functools import cached_property
from pathlib import Path

from vivant.faces.centerface import CenterFace
from vivant.faces.dlib import DlibResNet
from vivant.faces.mesh import FaceMesh

WEIGHTS = Path(__file__).parent / "weights"


class SmallFaces:
    """A detector, a recogniser and a mesh, each read from its file when it is first asked for.

    The recogniser's embeddings can be compared with each other only: another recogniser's are of another space.
    """

    space = DlibResNet.SPACE
    """The name of what its embeddings can be compared with."""

    @cached_property
    def detector(self) -> CenterFace:
        """Finds faces and five points in each."""
        return CenterFace.from_file(WEIGHTS / "centerface.safetensors")

    @cached_property
    def recogniser(self) -> DlibResNet:
        """Tells faces apart."""
        return DlibResNet.from_file(WEIGHTS / "dlib.safetensors")

    @cached_property
    def mesh(self) -> FaceMesh:
        """Finds 468 points on a face, in float32."""
        return FaceMesh.from_file(WEIGHTS / "mesh.safetensors").float()
