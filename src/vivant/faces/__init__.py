"""Faces: from a photo to the identity that ConsisID is conditioned on, by networks that are held here."""
