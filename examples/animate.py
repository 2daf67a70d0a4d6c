"""A clip of a picture, from Python: `python examples/animate.py PHOTO PROMPT BASE MOTION_ADAPTER OUT.mp4`."""

import sys

from vivant import Animator


def main(photo: str, prompt: str, base: str, motion_adapter: str, output: str) -> None:
    """Animate with the model in `base`, a folder or hub id."""
    animator = Animator.from_pretrained(base, motion_adapter)
    result = animator.animate(
        photo,
        prompt,
        motion="animate:moderate",
        seed=7,
        progress=lambda at: print(f"step {at.step} of {at.total}, {at.remaining:.0f} s left"),
    )
    print(result.report.to_json())
    print(result.save(output))


if __name__ == "__main__":
    main(*sys.argv[1:])
