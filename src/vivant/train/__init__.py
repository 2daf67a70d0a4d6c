"""Training: autoencoders, text-to-image bases, styles and PIA's motion, by one loop and a recipe for each.

`recipe.py` reads what a run is made of, `loop.py` runs it; `vae.py`, `base.py` and `pia.py` say what is learnt.
"""
