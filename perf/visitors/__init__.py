"""What a visitor of the project sees: the pictures of the live page, and the first steps of the README."""
