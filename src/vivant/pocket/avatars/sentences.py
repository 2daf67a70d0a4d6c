"""What clips of avatars show, in sentences: what the person does, wears and stands before, never who it is."""

import numpy as np

from vivant.pocket.avatars.figure import Setting
from vivant.pocket.avatars.pose import Action
from vivant.pocket.world.captions import GROUNDS
from vivant.pocket.world.scene import COLOURS, TONES

PEOPLE = ("a person", "someone")
SHIRTS = ("in a {} shirt", "wearing a {} shirt", "dressed in {}")
ACTIONS: dict[Action, tuple[str, ...]] = {
    "nod": ("nods", "is nodding", "says yes with a nod"),
    "shake": ("shakes the head", "is shaking the head", "says no with the head"),
    "look left": ("looks left", "looks to the left", "turns the head left"),
    "look right": ("looks right", "looks to the right", "turns the head right"),
    "smile": ("smiles", "begins to smile", "is smiling"),
    "talk": ("talks", "is talking", "opens the mouth to speak"),
    "wave": ("waves", "is waving", "waves a hand"),
}


def sentence(action: Action, setting: Setting, rng: np.random.Generator | None = None) -> str:
    """One sentence; the words by `rng`, which may leave out the clothes or the ground. Without it the first of each."""

    def say(options: tuple[str, ...]) -> str:
        return options[0] if rng is None else options[int(rng.integers(len(options)))]

    def mentions() -> bool:
        return rng is None or rng.random() < 0.9

    shirt = say(SHIRTS).format(setting.shirt) if mentions() else ""
    ground = say(GROUNDS[setting.ground]).format(setting.tone) if mentions() else ""
    return " ".join(piece for piece in (say(PEOPLE), shirt, say(ACTIONS[action]), ground) if piece)


def vocabulary() -> tuple[str, ...]:
    """Every word that sentences can contain, in alphabetical order."""
    phrases = [*PEOPLE, *SHIRTS, *(said for options in (*ACTIONS.values(), *GROUNDS.values()) for said in options)]
    words = " ".join(phrases).replace("{}", " ").split()
    return tuple(sorted({*words, *COLOURS, *TONES}))
