"""Small models that ship with the package, and the drawn world that they were trained on."""
