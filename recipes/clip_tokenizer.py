"""Put CLIP's byte-pair merges into the package, from the file that its authors publish.

    python recipes/clip_tokenizer.py open_clip_torch-3.3.0-py3-none-any.whl src/vivant/hub/sd15/tokenizer

The wheel is that of open-clip-torch 3.3.0, of the Python package index; any that holds OpenAI's
`bpe_simple_vocab_16e6.txt.gz` (MIT) gives the same bytes. Of its 262,145 lines CLIP reads those that make its table of
49,408 tokens. The table itself follows from the merges (`vivant.text.clip.vocabulary`), so it is not shipped.
"""

import gzip
import sys
import zipfile
from pathlib import Path

from vivant.text.clip import NUM_TOKENS, vocabulary

NAME = "bpe_simple_vocab_16e6.txt.gz"


def main(wheel: Path, folder: Path) -> None:
    """Write `merges.txt`, in the form that CLIP's tokenizers are published in."""
    with zipfile.ZipFile(wheel) as archive:
        inside = next(name for name in archive.namelist() if name.endswith(f"/{NAME}"))
        lines = gzip.decompress(archive.read(inside)).decode("utf-8").splitlines()
    merges = lines[1 : NUM_TOKENS - 2 * 256 - 2 + 1]  # the first line names the version; bytes and two marks need none
    assert len(vocabulary(merges)) == NUM_TOKENS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "merges.txt"
    path.write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    print(f"{path}: {len(merges)} merges, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
