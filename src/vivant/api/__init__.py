"""One call each: `Animator` makes a clip of a picture, `Portrait` films a person, and a `Result` is what comes back."""
