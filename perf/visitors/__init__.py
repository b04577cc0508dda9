"""Programs for a visitor's first impression: take the pictures of the live page, and try the README's commands."""
