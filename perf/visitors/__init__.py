"""Programs for a visitor's first impression: take the pictures in the documentation, and try the README's commands."""
